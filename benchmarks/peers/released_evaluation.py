"""The released evaluation, written afresh from its description, for timing only."""

import numpy as np
import torch
from torch.nn import functional as F

__all__ = ["ReleasedEvaluator", "released_label_map"]


class ReleasedEvaluator:
    """Upsample the logits of a batch, take the best, and count each image by a mask and a bincount."""

    def __init__(self, num_classes: int, num_predicted: int):
        """Start with an empty histogram."""
        self.shape = (num_classes, num_predicted)
        self.histogram = np.zeros(self.shape, np.int64)

    def process(self, logits: torch.Tensor, labels: list[np.ndarray]) -> None:
        """Count logits (N, P, h, w) against N label maps (H, W), -1 where nothing is known."""
        resized = F.interpolate(logits, size=labels[0].shape, mode="bilinear", align_corners=False)
        predicted = resized.topk(1, dim=1).indices.squeeze(1).cpu().numpy()
        for label, prediction in zip(labels, predicted, strict=True):
            label, prediction = label.flatten(), prediction.flatten()
            mask = (label >= 0) & (label < self.shape[0])
            index = self.shape[1] * label[mask] + prediction[mask]
            self.histogram += np.bincount(index, minlength=self.shape[0] * self.shape[1]).reshape(self.shape)


def released_label_map(fine: np.ndarray, table: dict[int, int]) -> np.ndarray:
    """Look up every pixel in a dict."""
    return np.vectorize(lambda value: table[value])(fine)

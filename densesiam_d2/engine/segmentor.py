"""A trained segmentation model, applied to one image at a time.

Shape shorthand: K classes or clusters, H,W pixels of the image, h,w pixels of the network's input.
"""

from collections.abc import Mapping
from typing import NamedTuple

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from torch import nn

from densesiam_d2.checkpoint.comparing import contradictions
from densesiam_d2.checkpoint.export import expected_metadata
from densesiam_d2.checkpoint.files import read_checkpoint
from densesiam_d2.layers import resized_labels
from densesiam_d2.modeling import model_output, num_label_ids

__all__ = ["Segmentation", "Segmentor", "fill", "labels_of"]

# Certainties change slowly, so they are computed for each fourth row and column of the network's input.
_STEP = 4


class Segmentation(NamedTuple):
    """The ids of an image's pixels, and how certain they are.

    Attributes:
        labels: (H, W) ids: uint8, or uint16 for more than 256 ids.
        certainty: (H, W) float32, the largest probability of each pixel.
        shared: (K, K) float32; row i is the sum of the probabilities of the pixels whose id is i.
    """

    labels: np.ndarray
    certainty: np.ndarray
    shared: np.ndarray


class Segmentor:
    """A trained segmentation model, applied to one image at a time."""

    def __init__(self, cfg: CfgNode, *, certainty: bool = False):
        """Build the model and load ``cfg.MODEL.WEIGHTS``.

        The short side of an image is resized to ``TEST.CENTER_CROP_SIZE``, as in evaluation but without the crop; if
        that is 0, to ``INPUT.MIN_SIZE_TEST``.

        Args:
            cfg: the config of the checkpoint.
            certainty: let the model return logits, which :meth:`with_certainty` needs, whatever TEST.SEM_SEG_OUTPUT is.

        Raises:
            FileNotFoundError: the weight file does not exist.
            ValueError: weights are missing or of another shape, or the model does not segment.
        """
        if model_output(cfg) != "semantic":
            raise ValueError(f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} predicts no label maps")
        if certainty:
            cfg = cfg.clone()
            cfg.defrost()
            cfg.TEST.SEM_SEG_OUTPUT = "logits"
        self.model = build_model(cfg).eval()
        fill(self.model, cfg)
        self.num_classes = num_label_ids(cfg)
        # SlotCon's logits are cosines; its loss divides them by this before the softmax.
        self.temperature = getattr(self.model, "teacher_temperature", 1.0)
        self.resize = T.ResizeShortestEdge(
            cfg.TEST.CENTER_CROP_SIZE or cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
        )
        self.bgr = cfg.INPUT.FORMAT == "BGR"
        self.white_level = cfg.INPUT.WHITE_LEVEL

    @torch.no_grad()
    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Return the ids (H, W) of an image (H, W, 3), uint8 RGB: uint8, or uint16 for more than 256 ids."""
        output = self.model([{"image": self._input(image), "height": image.shape[0], "width": image.shape[1]}])[0]
        return self._ids(labels_of(output))

    @torch.no_grad()
    def with_certainty(self, image: np.ndarray) -> Segmentation:
        """Return the ids of an image (H, W, 3), uint8 RGB, and the softmax of the logits in two summaries.

        The logits are never stored at the image's size, only at that of the network's input.
        """
        logits = self.model([{"image": self._input(image)}])[0]["sem_seg"].float()  # (K, h, w)
        size, (height, width) = tuple(logits.shape[-2:]), image.shape[:2]
        labels = resized_labels(logits, size, size, (height, width))
        p = (logits[:, ::_STEP, ::_STEP] / self.temperature).softmax(dim=0)
        largest, ids = p.max(dim=0)
        shared = p.new_zeros(len(p), len(p)).index_add_(0, ids.flatten(), p.flatten(1).T)
        certainty = cv2.resize(largest.cpu().numpy(), (width, height), interpolation=cv2.INTER_LINEAR)
        return Segmentation(self._ids(labels), certainty, shared.cpu().numpy())

    def _input(self, image: np.ndarray) -> torch.Tensor:
        """Return the network's input (3, h, w)."""
        resized = self.resize.get_transform(image).apply_image(image)
        if self.bgr:
            resized = resized[:, :, ::-1]
        return torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))

    def _ids(self, labels: torch.Tensor) -> np.ndarray:
        return labels.cpu().numpy().astype(np.uint8 if self.num_classes <= 256 else np.uint16)


def labels_of(output: dict) -> torch.Tensor:
    """Return the ids (H, W) in a model's output for one image, which are given or have the largest logits."""
    return output["sem_seg_labels"] if "sem_seg_labels" in output else output["sem_seg"].max(dim=0).indices


def fill(model: nn.Module, cfg: CfgNode) -> None:
    """Load the training checkpoint MODEL.WEIGHTS; its other content, such as the optimizer, is not used.

    Raises:
        ValueError: weights are missing or of another shape, or were trained on other images than the config's.
    """
    weights = cfg.MODEL.WEIGHTS
    checkpoint = read_checkpoint(weights)
    metadata = checkpoint.get("metadata")
    if isinstance(metadata, Mapping) and (problems := contradictions(metadata, expected_metadata(cfg))):
        raise ValueError(f"{weights} contradicts the config: {'; '.join(problems)}: give the one it was trained with")
    state = {name: torch.as_tensor(value) for name, value in checkpoint.get("model", checkpoint).items()}
    wanted = model.state_dict()
    for name, tensor in wanted.items():
        have, want = tuple(state.get(name, tensor).shape), tuple(tensor.shape)
        if have != want:
            raise ValueError(f"{weights}: {name} is {have}, but {want} by the config: give the one it was trained with")
    missing = model.load_state_dict(state, strict=False).missing_keys
    if missing:
        raise ValueError(
            f"{weights} leaves {len(missing)} tensors of the model unfilled, {', '.join(missing[:3])}, ...: "
            "give the config that it was trained with"
        )

"""A stand-in for a network, images for it, and a slow bilinear interpolation."""

import numpy as np
import torch

CLASSES = ["a", "b", "c"]
STRIDE = 4


class Colours:
    """Mean and maximum of each colour in 4 x 4 pixels, in [-1, 1], of images that need no resizing."""

    channels, stride, side, device = 6, STRIDE, 20, torch.device("cpu")

    def input_size(self, height, width):
        return height, width

    def __call__(self, image):
        height, width, _ = image.shape
        blocks = image.reshape(height // 4, 4, width // 4, 4, 3).astype(np.float32) / 127.5 - 1
        x = np.concatenate([blocks.mean(axis=(1, 3)), blocks.max(axis=(1, 3))], axis=-1)
        return torch.from_numpy(x.transpose(2, 0, 1).copy())


def images(count, seed):
    """Stripes of classes at random places, each class a colour under noise; some pixels are ignored."""
    rng = np.random.default_rng(seed)
    result = []
    for _ in range(count):
        labels = np.repeat(np.repeat(rng.integers(0, 3, (4, 5)), 6, axis=0), 6, axis=1)[:20, :28]
        image = np.array([[90, 110, 120], [110, 90, 100], [120, 120, 100]])[labels] + rng.normal(0, 40, (20, 28, 3))
        labels = np.where(rng.random((20, 28)) < 0.2, 255, labels)
        labels[:4, :4] = 255  # one cell without labels
        result.append((image.clip(0, 255).astype(np.uint8), labels.astype(np.uint8)))
    return result


def interpolation(size, cells):
    """Return the (size, cells) weights of bilinear interpolation along one axis; edges are repeated."""
    weights = np.zeros((size, cells))
    for i in range(size):
        y = min(max((i + 0.5) * cells / size - 0.5, 0), cells - 1)
        weights[i, int(y)] += 1 - (y - int(y))
        weights[i, min(int(y) + 1, cells - 1)] += y - int(y)
    return weights


def enlarge(maps, height, width):
    """Interpolate maps (K, h, w) bilinearly to (K, height, width)."""
    return interpolation(height, maps.shape[1]) @ maps @ interpolation(width, maps.shape[2]).T


def mean_iou(truth, predicted):
    """Return the mean IoU in percent from lists of label maps, class by class."""
    truth, predicted = (np.concatenate([labels.ravel() for labels in maps]) for maps in (truth, predicted))
    truth, predicted = truth[truth != 255], predicted[truth != 255]
    both = [(np.sum((truth == c) & (predicted == c)), np.sum((truth == c) | (predicted == c))) for c in range(3)]
    return 100 * np.mean([shared / either for shared, either in both if either])

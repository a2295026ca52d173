"""Read the classes of an image's pixels from its label map."""

import cv2
import numpy as np

from densesiam_d2.image_io import read_label

__all__ = ["read_class_map"]


def read_class_map(
    path: str,
    image_file: str,
    shape: tuple[int, int],
    *,
    label_map: np.ndarray | None,
    num_classes: int | None,
    ignore_label: int,
) -> np.ndarray:
    """Read a label map, and check that it fits its image and holds nothing but classes.

    Args:
        path: see :func:`densesiam_d2.image_io.read_label`.
        image_file: name of the image, for messages.
        shape: height and width of the image.
        label_map: (256,) uint8, the class or ``ignore_label`` of each stored value; None if they are stored themselves.
        num_classes: classes are 0 to this number minus 1; None accepts all values.
        ignore_label: value of pixels that do not count.

    Returns:
        (H, W) classes and ``ignore_label``, uint8.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read, has another size than its image, or holds a value that is no class.
    """
    labels = read_label(path)
    if labels.shape != shape:
        raise ValueError(f"{path} has {labels.shape} pixels, its image {image_file} {shape}")
    if label_map is not None:
        labels = cv2.LUT(labels, label_map)
    if num_classes is not None:
        counts = cv2.calcHist([labels], [0], None, [256], [0, 256]).reshape(256)
        strays = [int(v) for v in np.flatnonzero(counts) if v >= num_classes and v != ignore_label]
        if strays:
            raise ValueError(
                f"{path} has the values {strays[:5]} in {int(counts[strays].sum())} pixels; classes are 0 to "
                f"{num_classes - 1}, and {ignore_label} does not count"
            )
    return labels

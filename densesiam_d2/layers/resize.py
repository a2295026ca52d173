"""Resize logits, faster than detectron2 does.

Shape shorthand: K classes, h,w cells of the logits, H,W pixels.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch.nn import functional as F

__all__ = ["resize_logits", "resized_labels"]

BLOCK_BYTES = {"cpu": 4 << 20, "cuda": 256 << 20}  # size of a block of resized logits: fits a CPU's cache


def resize_logits(logits: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Return logits (K, H, W) at another size, stored channels last.

    The values equal those of detectron2's ``sem_seg_postprocess``. That function is slower on CPU because of its memory
    format, and it also resizes when the size does not change.
    """
    if logits.shape[-2:] == (height, width):
        return logits
    logits = logits[None].contiguous(memory_format=torch.channels_last)
    return F.interpolate(logits, size=(height, width), mode="bilinear", align_corners=False)[0]


def resized_labels(
    logits: torch.Tensor, padded: tuple[int, int], crop: tuple[int, int], size: tuple[int, int]
) -> torch.Tensor:
    """Return the argmax of logits that are resized, cropped and resized again, without storing all resized logits.

    The labels equal those of bilinear ``F.interpolate`` to ``padded``, then ``[:, :, :crop_h, :crop_w]``, then
    :func:`resize_logits`. There, the logits of 500 classes at 480 x 640 would take 0.6 GB.

    Args:
        logits: (K, h, w).
        padded: height and width of the network's input.
        crop: height and width of the image in this input, without the padding; it starts at the top left corner.
        size: H and W of the labels.

    Returns:
        (H, W) labels, uint8 if K <= 256, else int16.
    """
    z = logits.permute(1, 2, 0).contiguous()  # (h, w, K)
    block = max(1, BLOCK_BYTES[z.device.type] // (z.element_size() * len(logits) * size[1]))
    labels = torch.empty(size, dtype=torch.uint8 if len(logits) <= 256 else torch.int16, device=z.device)
    with _one_thread():
        for start in range(0, size[0], block):
            rows = torch.arange(start, min(start + block, size[0]), device=z.device)
            if size == crop:
                values = _resized_rows(z, 0, len(z), rows, padded)[:, : crop[1]]
            else:
                low, high, _ = _neighbours(rows, crop[0], size[0])
                inner = torch.arange(int(low[0]), int(high[-1]) + 1, device=z.device)
                values = _resized_rows(z, 0, len(z), inner, padded)[:, : crop[1]]
                values = _resized_rows(values, int(low[0]), crop[0], rows, size)
            labels[start : start + len(rows)] = _argmax(values)
    return labels


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch use one thread: for blocks this small, the threads wait for each other longer than they work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _argmax(values: torch.Tensor) -> torch.Tensor:
    """Return the argmax over the last axis; on the CPU with NumPy, in a third of torch's time for many classes."""
    return values.argmax(dim=-1) if values.is_cuda else torch.from_numpy(values.numpy().argmax(axis=-1))


def _neighbours(rows: torch.Tensor, old: int, new: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return for each new row the old rows above and below its centre, and its distance from the one above."""
    position = ((rows + 0.5) * (old / new) - 0.5).clamp(min=0)
    low = position.long()
    return low, (low + 1).clamp(max=old - 1), position - low


def _resized_rows(z: torch.Tensor, first: int, height: int, rows: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return the given rows (n, W, K) of a map resized to ``size``.

    Args:
        z: (m, w, K), rows ``first`` to ``first + m`` of the old map.
        first: see z.
        height: number of rows of the whole old map.
        rows: (n,) indices of the new rows.
        size: height and width of the whole new map.
    """
    low, high, distance = _neighbours(rows, height, size[0])
    above, below = z.index_select(0, low - first), z.index_select(0, high - first)  # (n, w, K)
    slab = torch.lerp(above, below, distance[:, None, None].to(z.dtype))
    slab = slab[None].permute(0, 3, 1, 2)  # add the batch axis before permuting, so that torch sees channels-last
    return F.interpolate(slab, size=(len(rows), size[1]), mode="bilinear", align_corners=False)[0].permute(1, 2, 0)

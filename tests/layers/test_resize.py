import pytest
import torch
from detectron2.modeling.postprocessing import sem_seg_postprocess

from densesiam_d2.layers import resize, resize_logits, resized_labels


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("size", [(8, 12), (16, 9), (5, 7)])
def test_values_of_detectron2(size, channels_last):
    logits = torch.randn(1, 3, 8, 12)
    if channels_last:
        logits = logits.contiguous(memory_format=torch.channels_last)
    expected = sem_seg_postprocess(logits[0], (8, 12), *size)
    assert torch.allclose(resize_logits(logits[0], *size), expected, atol=1e-6)


@pytest.mark.parametrize("block", [1, 3000, 1 << 30])
@pytest.mark.parametrize("num", [5, 300])
@pytest.mark.parametrize(
    ("padded", "crop", "size"),
    [
        ((32, 48), (32, 48), (32, 48)),  # a crop that is scored as it is
        ((32, 48), (29, 41), (29, 41)),  # padded
        ((32, 48), (30, 48), (61, 75)),  # scored at the size of the file
        ((32, 48), (32, 40), (17, 23)),
    ],
)
def test_labels_are_those_of_the_resized_logits(padded, crop, size, num, block, monkeypatch):
    monkeypatch.setitem(resize.BLOCK_BYTES, "cpu", block)
    logits = torch.randn(num, 8, 12, generator=torch.Generator().manual_seed(0))
    full = torch.nn.functional.interpolate(logits[None], size=padded, mode="bilinear")[0]
    expected = resize_logits(full[:, : crop[0], : crop[1]], *size).argmax(dim=0)
    labels = resized_labels(logits, padded, crop, size)
    assert labels.dtype == (torch.uint8 if num <= 256 else torch.int16)
    # Where two classes are equal to the last digit, either may win.
    assert (labels != expected).float().mean() < 1e-3

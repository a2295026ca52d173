import pytest
import torch
from detectron2.modeling.postprocessing import sem_seg_postprocess

from densesiam_d2.layers import resize_logits


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("size", [(8, 12), (16, 9), (5, 7)])
def test_values_of_detectron2(size, channels_last):
    logits = torch.randn(1, 3, 8, 12)
    if channels_last:
        logits = logits.contiguous(memory_format=torch.channels_last)
    expected = sem_seg_postprocess(logits[0], (8, 12), *size)
    assert torch.allclose(resize_logits(logits[0], *size), expected, atol=1e-6)

"""The certainty of a segmentation against loops over pixels."""

import math

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T

from densesiam_d2.engine.segmentor import Segmentor


def fixed(logits, temperature=1.0):
    """A segmentor whose model always returns the same logits (K, h, w), and whose input has that size."""
    segmentor = Segmentor.__new__(Segmentor)
    segmentor.model = lambda inputs: [{"sem_seg": logits}]
    segmentor.num_classes, segmentor.temperature = len(logits), temperature
    segmentor.resize, segmentor.bgr = T.ResizeShortestEdge(logits.shape[1], 10_000), False
    return segmentor


@pytest.mark.parametrize("temperature", [1.0, 0.07])
def test_against_loops(temperature):
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 8, 12)).astype(np.float32))
    found = fixed(logits, temperature).with_certainty(np.zeros((8, 12, 3), np.uint8))
    assert found.labels.tolist() == logits.argmax(dim=0).tolist()
    shared = np.zeros((3, 3))
    for y in range(0, 8, 4):
        for x in range(0, 12, 4):
            powers = [math.exp(logits[k, y, x].item() / temperature) for k in range(3)]
            probabilities = [power / sum(powers) for power in powers]
            shared[int(np.argmax(probabilities))] += probabilities
    assert found.shared == pytest.approx(shared, rel=1e-4)
    assert found.certainty.shape == (8, 12) and 1 / 3 <= found.certainty.min() <= found.certainty.max() <= 1


def test_ids_and_certainty_have_the_images_size():
    logits = torch.zeros(300, 8, 8)
    logits[299, :, :4] = 9.0  # the left half is cluster 299, the right half is cluster 0 with certainty 1 / 300
    found = fixed(logits).with_certainty(np.zeros((32, 32, 3), np.uint8))
    assert found.labels.shape == found.certainty.shape == (32, 32)
    assert found.labels.dtype == np.uint16 and found.labels[5, 3] == 299 and found.labels[5, 28] == 0
    certain = math.exp(9) / (math.exp(9) + 299)
    assert found.certainty[5, 0] == pytest.approx(certain, rel=1e-4)
    assert found.certainty[5, 31] == pytest.approx(1 / 300, rel=1e-4)

"""Colours and positions as features, against OpenCV."""

import cv2
import numpy as np
import torch

from densesiam_d2.modeling.backbone.pixels import PixelBackbone, rgb_to_lab


def test_lab_equals_opencv():
    rgb = np.random.default_rng(0).random((5, 7, 3), dtype=np.float32)
    rgb[0, :2] = [[0, 0, 0], [1, 1, 1]]
    expected = cv2.cvtColor(rgb, cv2.COLOR_RGB2Lab)
    actual = rgb_to_lab(torch.from_numpy(rgb).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    assert np.abs(actual - expected).max() < 0.3  # OpenCV interpolates tables


def test_cells_have_mean_colour_and_place():
    image = torch.zeros(1, 3, 4, 8)
    image[:, :, :, 4:] = 1  # black and white, L is 0 and 100
    features = PixelBackbone(2, 40.0)(image)["pixels"][0]
    assert features.shape == (5, 2, 4)
    assert torch.allclose(features[0], torch.tensor([[0.0, 0, 100, 100]]).expand(2, 4), atol=1e-2)
    assert features[3].tolist() == [[10.0] * 4, [30.0] * 4]  # centres of 2 rows at 1/4 and 3/4 of the height
    assert features[4].tolist() == [[5.0, 15.0, 25.0, 35.0]] * 2
    assert PixelBackbone(2, 0.0)(image)["pixels"].shape == (1, 3, 2, 4)

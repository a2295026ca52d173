"""IIC's network: sizes, edges, initial weights."""

import cv2
import numpy as np
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone
from torch import nn

from densesiam_d2.config import add_densesiam_config
from densesiam_d2.modeling.backbone import IICBackbone


def backbone():
    cfg = get_cfg()
    add_densesiam_config(cfg)
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.RESNETS.NORM = "build_iic_backbone", "BN"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    torch.manual_seed(0)
    return build_backbone(cfg)


@torch.no_grad()
def test_the_map_of_128_pixels_shrinks_from_64_to_60_cells():
    network, sizes = backbone(), []
    for layer in network.layers:
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape[1:])))
    features = network(torch.zeros(1, 3, 128, 128))
    assert sizes == [
        *((64, 128, 128), (128, 128, 128), (256, 64, 64), (256, 64, 64), (512, 62, 62), (512, 60, 60)),
    ]
    assert {name: f.shape for name, f in features.items()} == {"trunk": (1, 512, 60, 60)}
    shape = network.output_shape()["trunk"]
    assert (shape.channels, shape.stride) == (512, 2)


def test_edges_are_opencvs_sobel_of_the_grey_image():
    """IIC takes left minus right, OpenCV right minus left, so the sign differs. Pixels outside count as 0."""
    image = np.random.default_rng(0).random((9, 12, 3)).astype(np.float32)
    x = IICBackbone(norm="BN", width=2).with_edges(torch.from_numpy(image).permute(2, 0, 1)[None])
    assert x.shape == (1, 5, 9, 12)
    assert np.array_equal(x[0, :3].permute(1, 2, 0).numpy(), image)
    grey = cv2.copyMakeBorder(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), 1, 1, 1, 1, cv2.BORDER_CONSTANT)
    for channel, (dx, dy) in ((3, (1, 0)), (4, (0, 1))):
        expected = -cv2.Sobel(grey, cv2.CV_32F, dx, dy, ksize=3)[1:-1, 1:-1]
        assert np.allclose(x[0, channel].numpy(), expected, atol=1e-4)


def test_weights_are_drawn_by_kaimings_rule_and_edges_are_not_learned():
    network = backbone()
    convs = [layer for layer in network.layers if isinstance(layer, nn.Conv2d)]
    assert not [conv for conv in convs if conv.bias is not None]
    for conv in convs:  # standard deviation sqrt(2 / fan_in), here within 5 %: the smallest has 2,880 weights
        assert abs(conv.weight.std() / (2 / (conv.in_channels * 9)) ** 0.5 - 1) < 0.05
    assert len(list(network.parameters())) == 6 * 3
    assert not [name for name in network.state_dict() if "sobel" in name or "grey" in name]

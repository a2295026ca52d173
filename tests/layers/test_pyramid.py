"""The feature pyramid: against detectron2's, whose layers have the same names, and its initialisation."""

import math

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from detectron2.modeling.backbone.fpn import FPN

from densesiam_d2.layers import FeaturePyramid

DIMS, STRIDES = [4, 6, 8], [8, 16, 32]


class Maps(Backbone):
    """A backbone whose input is its output."""

    def forward(self, x):
        return x

    def output_shape(self):
        return {f"res{i + 3}": ShapeSpec(channels=DIMS[i], stride=STRIDES[i]) for i in range(3)}


def test_equals_the_fpn_of_detectron2_without_its_coarsest_output():
    torch.manual_seed(0)
    ours, theirs = FeaturePyramid(DIMS, STRIDES, 5), FPN(Maps(), ["res3", "res4", "res5"], 5)
    result = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert not result.unexpected_keys
    assert result.missing_keys == ["fpn_output5.weight", "fpn_output5.bias"]
    maps = [torch.randn(2, dim, 64 // stride, 64 // stride) for dim, stride in zip(DIMS, STRIDES, strict=True)]
    expected = theirs(dict(zip(("res3", "res4", "res5"), maps, strict=True)))
    actual = ours(maps)
    assert len(actual) == 2
    assert torch.allclose(actual[0], expected["p3"], atol=1e-6)
    assert torch.allclose(actual[1], expected["p4"], atol=1e-6)


def test_weights_start_uniform_with_a_variance_of_one_over_the_inputs():
    # kaiming_uniform with a = 1: bound sqrt(3 / fan_in), so the standard deviation is sqrt(1 / fan_in).
    torch.manual_seed(0)
    pyramid = FeaturePyramid([64, 64], [16, 32], 64)
    for name, fan_in in (("fpn_lateral5", 64), ("fpn_output4", 64 * 9)):
        layer = pyramid.get_submodule(name)
        assert layer.weight.abs().max() <= math.sqrt(3 / fan_in)
        assert abs(layer.weight.std().item() * math.sqrt(fan_in) - 1) < 0.05
        assert (layer.bias == 0).all()


def test_odd_maps_fit_too():
    maps = [torch.randn(1, dim, side, side) for dim, side in zip(DIMS, (13, 7, 4), strict=True)]
    assert [f.shape[-1] for f in FeaturePyramid(DIMS, STRIDES, 5)(maps)] == [13, 7]

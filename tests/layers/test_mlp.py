"""Projectors and predictors: which layers, in which order, of which widths."""

from functools import partial

import pytest
import torch
from torch import nn

from densesiam_d2.layers import ProjectorPredictor, conv_mlp


def _names(mlp):
    return [type(layer).__name__ for layer in mlp]


@pytest.mark.parametrize("bias_last", [True, False])
@pytest.mark.parametrize("last_norm_affine", [None, True, False])
def test_layers_in_order(bias_last, last_norm_affine):
    mlp = conv_mlp(3, [4, 5, 6], norm=nn.BatchNorm2d, bias_last=bias_last, last_norm_affine=last_norm_affine)
    hidden = ["PointConv2d", "BatchNorm2d", "ReLU"]
    assert _names(mlp) == hidden * 2 + (["PointConv2d"] if last_norm_affine is None else ["PointConv2d", "BatchNorm2d"])
    convs = [layer for layer in mlp if isinstance(layer, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels, c.kernel_size) for c in convs] == [
        (3, 4, (1, 1)),
        (4, 5, (1, 1)),
        (5, 6, (1, 1)),
    ]
    assert [c.bias is not None for c in convs] == [False, False, bias_last]
    norms = [layer for layer in mlp if isinstance(layer, nn.BatchNorm2d)]
    learned = [all(p.requires_grad for p in n.parameters()) for n in norms]
    assert learned == [True, True] + ([] if last_norm_affine is None else [last_norm_affine])


def test_one_width_is_one_convolution():
    assert _names(conv_mlp(3, [6], norm=nn.BatchNorm2d, bias_last=True, last_norm_affine=None)) == ["PointConv2d"]


def test_hidden_layers_with_bias():
    """BYOL's heads: a bias before the batch norm and none after it."""
    mlp = conv_mlp(3, [4, 5, 6], norm=nn.BatchNorm2d, bias_last=False, last_norm_affine=None, bias_hidden=True)
    assert [layer.bias is not None for layer in mlp if isinstance(layer, nn.Conv2d)] == [True, True, False]


def test_another_activation():
    """SlotCon's heads."""
    mlp = conv_mlp(3, [4, 5], norm=nn.BatchNorm2d, bias_last=True, last_norm_affine=None, activation=nn.GELU)
    assert _names(mlp) == ["PointConv2d", "BatchNorm2d", "GELU", "PointConv2d"]


def test_norm_without_affine_gives_unit_variance():
    torch.manual_seed(0)
    mlp = conv_mlp(3, [8, 4], norm=nn.BatchNorm2d, bias_last=True, last_norm_affine=False)
    z = mlp(torch.randn(16, 3, 5, 5) * 100 + 7).transpose(0, 1).flatten(1)  # (4, points)
    assert torch.allclose(z.mean(dim=1), torch.zeros(4), atol=1e-4)
    assert torch.allclose(z.std(dim=1), torch.ones(4), atol=1e-2)


def test_parameters_without_affine_equal_those_of_a_norm_that_has_none():
    frozen = conv_mlp(3, [4], norm=nn.BatchNorm2d, bias_last=False, last_norm_affine=False)
    plain = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4, affine=False))
    plain[0].weight.data = frozen[0].weight.data
    x = torch.randn(2, 3, 5, 5)
    assert torch.allclose(frozen(x), plain(x), atol=1e-6)
    assert sum(p.numel() for p in frozen.parameters() if p.requires_grad) == 12  # 3 * 4 weights and nothing else


@pytest.mark.parametrize("points", [(7, 7), (10, 1), (1, 1)])
def test_projector_predictor_shapes(points):
    heads = ProjectorPredictor(3, [8, 8, 6], 4, nn.BatchNorm2d)
    z = heads.projector(torch.randn(2, 3, *points))
    p = heads.predictor(z)
    assert z.shape == p.shape == (2, 6, *points)


def test_projector_and_predictor_are_those_of_simsiam():
    heads = ProjectorPredictor(3, [8, 8, 6], 4, partial(nn.BatchNorm2d, momentum=0.2))
    hidden = ["PointConv2d", "BatchNorm2d", "ReLU"]
    assert _names(heads.projector) == [*hidden, *hidden, "PointConv2d", "BatchNorm2d"]
    assert _names(heads.predictor) == [*hidden, "PointConv2d"]
    assert [m.out_channels for m in heads.predictor if isinstance(m, nn.Conv2d)] == [4, 6]
    assert heads.predictor[-1].bias is not None
    assert not any(p.requires_grad for p in heads.projector[-1].parameters())  # the output norm has no affine part
    assert all(p.requires_grad for p in [*heads.projector[:-1].parameters(), *heads.predictor.parameters()])
    assert heads.projector[1].momentum == 0.2


def test_regions_and_rows_give_the_same():
    """(N, C, M, 1) maps go through 1x1 convolutions as N * M rows go through linear layers."""
    torch.manual_seed(0)
    mlp = conv_mlp(3, [4, 5], norm=nn.BatchNorm2d, bias_last=True, last_norm_affine=False)
    linear = nn.Sequential(
        nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 5), nn.BatchNorm1d(5, affine=False)
    )
    linear[0].weight.data = mlp[0].weight.data.flatten(1)
    linear[3].weight.data, linear[3].bias.data = mlp[3].weight.data.flatten(1), mlp[3].bias.data
    for points in (6, 1):
        x = torch.randn(8, 3, points, 1)
        rows = linear(x.squeeze(-1).transpose(1, 2).reshape(-1, 3)).reshape(8, points, 5)
        assert torch.allclose(mlp(x).squeeze(-1).transpose(1, 2), rows, atol=1e-5)

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone, SemanticSegmentor
from torch import nn

from densesiam_d2.modeling.meta_arch.sliding import SlidingSemanticSegmentor, window_starts
from densesiam_d2.modeling.sem_seg import PseudoLabelSemSegHead


class Identity(Backbone):
    """Stride 1: the features are the pixels."""

    def forward(self, x):
        return {"pixels": x}

    def output_shape(self):
        return {"pixels": ShapeSpec(channels=3, stride=1)}


class Position(nn.Module):
    """Logits: the pixel's red value, and its column in the window, which shows how windows are averaged."""

    ignore_value = 255

    def forward(self, features, targets=None):
        x = features["pixels"]
        column = torch.arange(x.shape[-1], dtype=x.dtype).expand(len(x), *x.shape[-2:])
        return torch.stack([x[:, 0], column], dim=1), {}


def model(window, stride, cls=SlidingSemanticSegmentor, **kwargs):
    parts = {"backbone": Identity(), "sem_seg_head": Position(), "pixel_mean": [0.0] * 3, "pixel_std": [1.0] * 3}
    slide = {"slide_window": window, "slide_stride": stride} if cls is SlidingSemanticSegmentor else {}
    return cls(**parts, **slide).eval()


@pytest.mark.parametrize(
    ("length", "window", "stride", "expected"),
    [
        (1024, 769, 513, [0, 255]),  # the published Cityscapes setting
        (2048, 769, 513, [0, 513, 1026, 1279]),
        (769, 769, 513, [0]),
        (10, 4, 3, [0, 3, 6]),  # fits exactly: no double window at the border
        (11, 4, 3, [0, 3, 6, 7]),
    ],
)
def test_window_starts(length, window, stride, expected):
    assert window_starts(length, window, stride) == expected


def test_two_overlapping_windows_by_hand():
    """6 columns, windows of 4 at columns 0 and 2: columns 2 and 3 are the mean of two windows."""
    image = torch.arange(24.0).reshape(1, 4, 6).repeat(3, 1, 1)
    red, column = model(4, 2)([{"image": image}])[0]["sem_seg"]
    assert torch.equal(red, image[0])
    assert column[0].tolist() == [0, 1, (2 + 0) / 2, (3 + 1) / 2, 2, 3]


def test_window_that_covers_the_image_equals_the_whole_image():
    x = [{"image": torch.rand(3, 8, 8), "height": 5, "width": 11}]
    whole = model(0, 0, cls=SemanticSegmentor)(x)[0]["sem_seg"]
    assert whole.shape == (2, 5, 11)
    assert torch.allclose(model(8, 3)(x)[0]["sem_seg"], whole, atol=1e-6)
    assert torch.allclose(model(0, 0)(x)[0]["sem_seg"], whole, atol=1e-6)


def test_image_smaller_than_the_window_is_padded_and_cut():
    image = torch.rand(3, 3, 9)
    red, column = model(6, 6)([{"image": image}])[0]["sem_seg"]
    assert torch.equal(red, image[0])
    assert column[0].tolist() == [0, 1, 2, (3 + 0) / 2, (4 + 1) / 2, (5 + 2) / 2, 3, 4, 5]


def test_head_that_rounds_up_is_cut_to_the_window():
    class Larger(Position):
        def forward(self, features, targets=None):
            logits, losses = super().forward(features)
            return nn.functional.pad(logits, (0, 3, 0, 3), value=float("nan")), losses

    segmentor = model(4, 2)
    segmentor.sem_seg_head = Larger()
    assert torch.isfinite(segmentor([{"image": torch.rand(3, 4, 6)}])[0]["sem_seg"]).all()


@pytest.mark.parametrize("window", [0, 4])
def test_backbone_that_wants_divisible_sizes_gets_them(window):
    class Divisible(Identity):
        size_divisibility = 8

        def forward(self, x):
            assert x.shape[-1] % 8 == x.shape[-2] % 8 == 0
            return super().forward(x)

    segmentor = model(window, 2)
    segmentor.backbone = Divisible()
    image = torch.rand(3, 4, 6)
    assert torch.equal(segmentor([{"image": image}])[0]["sem_seg"][0], image[0])


def test_from_config_and_training_is_stock():
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    from densesiam_d2.config import add_densesiam_config

    torch.set_num_threads(1)
    cfg = get_cfg()
    add_densesiam_config(cfg)
    cfg.merge_from_list(
        [
            *("MODEL.DEVICE", "cpu", "MODEL.META_ARCHITECTURE", "SlidingSemanticSegmentor"),
            *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.RESNETS.NORM", "BN"),
            *("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"]),
            *("MODEL.SEM_SEG_HEAD.NAME", "PseudoLabelSemSegHead", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 3),
            *("MODEL.SEM_SEG_HEAD.IN_FEATURES", ["res2", "res3", "res4", "res5"]),
            *("MODEL.SEM_SEG_HEAD.NORM", "BN", "TEST.SLIDE_WINDOW", 64, "TEST.SLIDE_STRIDE", 48),
        ]
    )
    segmentor = build_model(cfg)
    assert isinstance(segmentor.sem_seg_head, PseudoLabelSemSegHead)
    assert (segmentor.slide_window, segmentor.slide_stride) == (64, 48)
    image = torch.randint(0, 256, (3, 64, 112))
    losses = segmentor.train()([{"image": image, "sem_seg": torch.zeros(64, 112).long()}] * 2)
    assert losses.keys() == {"loss_sem_seg"}
    with torch.no_grad():
        assert segmentor.eval()([{"image": image}])[0]["sem_seg"].shape == (3, 64, 112)

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, SEM_SEG_HEADS_REGISTRY, build_model
from torch import nn

from densesiam_d2.config import add_densesiam_config
from densesiam_d2.modeling.sem_seg.fcn_head import FCNSemSegHead

RGB = ShapeSpec(channels=3)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def small_head(**kwargs):
    shapes = {"res4": ShapeSpec(channels=3, stride=8), "res5": ShapeSpec(channels=5, stride=8)}
    defaults = {"in_feature": "res5", "aux_feature": "res4", "num_classes": 4, "conv_dim": 6, "aux_conv_dim": 2}
    return FCNSemSegHead(shapes, **({"norm": "BN", "dropout": 0.0} | defaults | kwargs))


def cityscapes_cfg():
    """The dilated ResNet-50 of the published protocol."""
    cfg = get_cfg()
    add_densesiam_config(cfg)
    cfg.merge_from_list(
        [
            *("MODEL.DEVICE", "cpu", "MODEL.META_ARCHITECTURE", "SemanticSegmentor", "MODEL.WEIGHTS", ""),
            *("MODEL.BACKBONE.NAME", "build_resnet_deeplab_backbone", "MODEL.BACKBONE.FREEZE_AT", 0),
            *("MODEL.RESNETS.RES4_DILATION", 2, "MODEL.RESNETS.RES5_DILATION", 4, "MODEL.RESNETS.NORM", "BN"),
            *("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"], "MODEL.RESNETS.STRIDE_IN_1X1", False),
            *("MODEL.SEM_SEG_HEAD.NAME", "FCNSemSegHead", "MODEL.SEM_SEG_HEAD.IN_FEATURES", ["res5"]),
            *("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 19, "MODEL.SEM_SEG_HEAD.CONVS_DIM", 512),
            *("MODEL.SEM_SEG_HEAD.NORM", "BN", "MODEL.SEM_SEG_HEAD.COMMON_STRIDE", 8),
        ]
    )
    return cfg


def test_dilated_resnet_strides_and_plain_weights(tmp_path):
    """The d8 backbone has strides 4, 8, 8, 8 and takes a plain ResNet's weights, every one of them."""
    cfg = cityscapes_cfg()
    dilated = BACKBONE_REGISTRY.get("build_resnet_deeplab_backbone")(cfg, RGB)
    cfg.MODEL.RESNETS.RES5_DILATION = 1
    plain = BACKBONE_REGISTRY.get("build_resnet_backbone")(cfg, RGB)
    assert [dilated.output_shape()[f"res{i}"].stride for i in (2, 3, 4, 5)] == [4, 8, 8, 8]
    with torch.no_grad():
        sizes = {name: tuple(f.shape[-2:]) for name, f in dilated(torch.zeros(1, 3, 64, 96)).items()}
    assert sizes == {"res2": (16, 24), "res3": (8, 12), "res4": (8, 12), "res5": (8, 12)}

    torch.save({"model": plain.state_dict()}, tmp_path / "plain.pth")
    DetectionCheckpointer(dilated).load(str(tmp_path / "plain.pth"))
    expected, filled = plain.state_dict(), dilated.state_dict()
    assert expected.keys() == filled.keys()
    assert all(torch.equal(filled[name], expected[name]) for name in expected)


def test_parts_of_the_published_head():
    cfg = cityscapes_cfg()
    shapes = {f"res{i}": ShapeSpec(channels=2 ** (i + 6), stride=4 if i == 2 else 8) for i in (2, 3, 4, 5)}
    head = SEM_SEG_HEADS_REGISTRY.get("FCNSemSegHead")(cfg, shapes)
    convs = [
        (n, tuple(m.weight.shape), m.bias is not None) for n, m in head.named_modules() if isinstance(m, nn.Conv2d)
    ]
    assert convs == [
        ("main.convs.0", (512, 2048, 3, 3), False),
        ("main.convs.1", (512, 512, 3, 3), False),
        ("main.concat_conv", (512, 2048 + 512, 3, 3), False),
        ("main.predictor", (19, 512, 1, 1), True),
        ("aux.convs.0", (256, 1024, 3, 3), False),
        ("aux.predictor", (19, 256, 1, 1), True),
    ]
    assert head.main.dropout.p == head.aux.dropout.p == 0.1
    assert (head.loss_weight, head.aux_loss_weight, head.align_corners) == (1.0, 0.4, True)


def test_align_corners_puts_cell_i_at_pixel_i_times_stride():
    """Where stride-2 convolutions put it; between cells linear, beyond the last one constant."""
    logits = torch.tensor([[[[0.0, 8.0, 24.0]]]])  # (1, 1, 1, 3)
    row = small_head()._upsample(logits, "res5")[0, 0]
    assert row.shape == (8, 24)
    expected = [float(x) for x in range(8)] + [8 + 2.0 * x for x in range(8)] + [24.0] * 8
    assert row[0].tolist() == pytest.approx(expected)
    assert row[7].tolist() == pytest.approx(expected)


def test_published_crop_is_resized_as_published():
    """769 pixels have 97 cells of stride 8: the outer cells lie on the outer pixels, as in a resize to 769."""
    logits = torch.randn(1, 2, 97, 97)
    expected = nn.functional.interpolate(logits, size=(769, 769), mode="bilinear", align_corners=True)
    assert torch.allclose(small_head()._upsample(logits, "res5")[..., :769, :769], expected, atol=1e-4)


def test_half_pixel_resize_without_align_corners():
    row = small_head(align_corners=False)._upsample(torch.tensor([[[[0.0, 8.0]]]]), "res5")[0, 0, 0]
    # Cell centres at pixel 3.5 and 11.5 (pixel centres counted from 0): slope 1 in between, constant outside.
    assert row.tolist() == pytest.approx([0.0] * 4 + [x + 0.5 for x in range(8)] + [8.0] * 4)


def test_losses_by_hand():
    """Uniform logits give log 4 on the labelled pixels, whatever share is labelled; weights 2 and 0.4."""
    head = small_head(loss_weight=2.0)
    for branch in (head.main, head.aux):
        nn.init.zeros_(branch.predictor.weight)
    features = {"res4": torch.randn(2, 3, 4, 5), "res5": torch.randn(2, 5, 4, 5)}
    targets = torch.full((2, 30, 37), 255)
    targets[0, :9] = 3
    none, losses = head(features, targets)
    assert none is None
    log4 = 1.3862944
    assert {k: v.item() for k, v in losses.items()} == pytest.approx(
        {"loss_sem_seg": 2 * log4, "loss_sem_seg_aux": 0.4 * log4}
    )


def test_every_parameter_learns_and_inference_leaves_the_aux_branch_out():
    head = small_head()
    features = {"res4": torch.randn(2, 3, 4, 5), "res5": torch.randn(2, 5, 4, 5)}
    sum(head(features, torch.zeros(2, 32, 40, dtype=torch.long))[1].values()).backward()
    assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in head.parameters())
    head.eval()
    logits, losses = head({"res5": features["res5"]})
    assert logits.shape == (2, 4, 32, 40)
    assert losses == {}


def test_features_that_neither_branch_takes_are_in_the_graph():
    """DDP waits for the gradient of each parameter behind them: it is 0, and the loss stays as it is."""
    head = small_head(in_feature="res4", aux_feature="")
    res4, res5 = torch.randn(2, 3, 4, 5), torch.randn(2, 5, 4, 5, requires_grad=True)
    targets = torch.zeros(2, 32, 40, dtype=torch.long)
    losses = head({"res4": res4, "res5": res5}, targets)[1]
    assert losses["loss_sem_seg"].item() == head({"res4": res4}, targets)[1]["loss_sem_seg"].item()
    losses["loss_sem_seg"].backward()
    assert res5.grad is not None and (res5.grad == 0).all()


def test_training_without_labels_is_refused():
    features = {"res4": torch.randn(2, 3, 4, 5), "res5": torch.randn(2, 5, 4, 5)}
    with pytest.raises(ValueError, match="needs labels to train"):
        small_head()(features)


def test_plain_resnet18_at_stride_32():
    """The small transfer recipe: an undilated ResNet-18 under the stock meta-architecture, trained and applied."""
    cfg = cityscapes_cfg()
    cfg.merge_from_list(
        [
            *("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.DEPTH", 18),
            *("MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.RESNETS.RES4_DILATION", 1),
            *("MODEL.RESNETS.RES5_DILATION", 1, "MODEL.SEM_SEG_HEAD.COMMON_STRIDE", 32),
            *("MODEL.SEM_SEG_HEAD.CONVS_DIM", 16, "MODEL.SEM_SEG_HEAD.FCN.AUX_CONVS_DIM", 8),
        ]
    )
    model = build_model(cfg)
    images = [
        {"image": torch.randint(0, 256, (3, h, w)), "sem_seg": torch.zeros(h, w).long()} for h, w in ((70, 90),) * 2
    ]
    losses = model.train()(images)
    assert losses.keys() == {"loss_sem_seg", "loss_sem_seg_aux"}
    sum(losses.values()).backward()
    with torch.no_grad():
        outputs = model.eval()([{"image": images[0]["image"], "height": 35, "width": 45}])
    assert outputs[0]["sem_seg"].shape == (19, 35, 45)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.SEM_SEG_HEAD.IN_FEATURES", ["res4", "res5"]], r"IN_FEATURES is \['res4', 'res5'\]: .*exactly one"),
        (["MODEL.SEM_SEG_HEAD.IN_FEATURES", ["p2"]], r"IN_FEATURES names 'p2', but .*res2"),
        (["MODEL.SEM_SEG_HEAD.FCN.AUX_FEATURE", "p4"], r"FCN.AUX_FEATURE names 'p4'"),
        (["MODEL.SEM_SEG_HEAD.COMMON_STRIDE", 4], r"COMMON_STRIDE is 4, but the backbone gives 'res5' at stride 8"),
    ],
)
def test_config_mistakes_name_the_key(opts, message):
    cfg = cityscapes_cfg()
    cfg.merge_from_list(opts)
    shapes = {f"res{i}": ShapeSpec(channels=8, stride=4 if i == 2 else 8) for i in (2, 3, 4, 5)}
    with pytest.raises(ValueError, match=message):
        SEM_SEG_HEADS_REGISTRY.get("FCNSemSegHead")(cfg, shapes)

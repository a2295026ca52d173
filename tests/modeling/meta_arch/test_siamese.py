"""What every two-view method shares: views, time, metrics, initialisation, features."""

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from tests.modeling.meta_arch.tiny import fpn_cfg, tiny_batch, tiny_cfg, tiny_model


def test_views_are_normalised_by_hand_and_keep_their_boxes():
    cfg = tiny_cfg()
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [100.0, 50.0, 0.0], [10.0, 20.0, 1.0]
    batch = tiny_batch()
    batch["views"][:, 0] = 120
    batch["views"][:, 1] = 50
    x1, x2, boxes1, boxes2 = tiny_model(cfg).preprocess_views(batch)
    # (120 - mean) / std = 2, 3.5, 120; (50 - mean) / std = -5, 0, 50.
    assert x1[0, :, 0, 0].tolist() == [2, 3.5, 120]
    assert x2[1, :, 5, 7].tolist() == [-5, 0, 50]
    assert torch.equal(boxes1, batch["view_boxes"][:, 0])
    assert torch.equal(boxes2, batch["view_boxes"][:, 1])


def test_list_and_dict_are_the_same_batch():
    model, batch = tiny_model(tiny_cfg()), tiny_batch()
    as_list = [{key: values[i] for key, values in batch.items()} for i in range(2)]
    for from_dict, from_list in zip(model.preprocess_views(batch), model.preprocess_views(as_list), strict=True):
        assert torch.equal(from_dict, from_list)


def test_unknown_feature_is_named_with_the_choice():
    cfg = tiny_cfg()
    cfg.MODEL.SSL.IN_FEATURE = "res4"
    with pytest.raises(ValueError, match=r"IN_FEATURE 'res4'.*res5"):
        build_model(cfg)


@pytest.mark.parametrize(("depth", "last", "blocks"), [(18, "conv2", 8), (50, "conv3", 16)])
def test_zero_init_touches_exactly_the_last_norm_of_each_block(depth, last, blocks):
    cfg = tiny_cfg(depth)
    cfg.MODEL.SSL.ZERO_INIT_RESIDUAL = True
    norms = {name: param for name, param in tiny_model(cfg).backbone.named_parameters() if name.endswith("norm.weight")}
    zero = {name for name, param in norms.items() if (param == 0).all()}
    assert zero == {name for name in norms if name.endswith(f".{last}.norm.weight")}
    assert len(zero) == blocks
    assert all((param == 1).all() for name, param in norms.items() if name not in zero)


@pytest.mark.parametrize(("name", "last", "blocks"), [("resnet18", "bn2", 8), ("resnet50", "bn3", 16)])
def test_zero_init_touches_the_same_norms_of_torchvisions_resnets(name, last, blocks):
    cfg = tiny_cfg()
    cfg.MODEL.SSL.ZERO_INIT_RESIDUAL = True
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.TORCHVISION.NAME = "build_torchvision_backbone", name
    cfg.MODEL.TORCHVISION.NORM = "BN"
    weights = {n: p for n, p in tiny_model(cfg).backbone.named_parameters() if n.endswith("weight") and p.dim() == 1}
    zero = {n for n, param in weights.items() if (param == 0).all()}
    assert zero == {n for n in weights if n.endswith(f".{last}.weight")} and len(zero) == blocks


def test_zero_init_can_be_turned_off_and_spares_frozen_norms():
    assert all(p.abs().sum() > 0 for n, p in tiny_model(tiny_cfg()).backbone.named_parameters() if "norm.w" in n)
    cfg = tiny_cfg()
    cfg.MODEL.SSL.ZERO_INIT_RESIDUAL = True
    cfg.MODEL.RESNETS.NORM = "FrozenBN"
    frozen = [m for m in tiny_model(cfg).backbone.modules() if isinstance(m, FrozenBatchNorm2d)]
    assert frozen and all((m.weight == 1).all() for m in frozen)


def test_weight_from_by_hand():
    model = tiny_model(tiny_cfg())
    assert model.progress is None
    assert model.weight_from(0.0, 0.1) == 0.1  # needs no time
    for progress, expected in ((0.0, 0.0), (0.79, 0.0), (0.8, 0.1), (1.0, 0.1)):
        model.progress = progress
        assert model.weight_from(0.8, 0.1) == expected


def test_schedule_without_time_names_the_hook():
    with pytest.raises(RuntimeError, match="ProgressHook"):
        tiny_model(tiny_cfg()).weight_from(0.8, 0.1)


def test_metrics_by_hand():
    model = tiny_model(tiny_cfg())
    # Two images, one point: (3, 0) and (0, 5), normalised (1, 0) and (0, 1). Either channel holds 1 and 0, whose
    # standard deviation is sqrt(2 * 0.25 / (2 - 1)) = 0.7071. D = 2: ideal 1 / sqrt(2). Both differ along one line, and
    # their mean is (0.5, 0.5). One point has no spread within an image.
    z = torch.tensor([[3.0, 0.0], [0.0, 5.0]])[:, :, None, None]
    with EventStorage(0) as storage:
        model.log_metrics(z, torch.tensor([0.5, 0.0]), winners=torch.tensor(3))
        latest = {key: value for key, (value, _) in storage.latest().items()}
    assert latest == pytest.approx(
        {
            "ssl/z_std": 0.5**0.5,
            "ssl/z_std_ideal": 0.5**0.5,
            "ssl/between": 1,
            "ssl/effective_rank": 1,
            "ssl/mean_norm": 0.5**0.5,
            "ssl/overlap": 0.25,  # (0.5 + 0) / 2
            "ssl/no_overlap": 0.5,  # one image of two
            "ssl/winners": 3,
        }
    )


def test_z_std_ideal_is_that_of_random_directions():
    torch.manual_seed(0)
    with EventStorage(0) as storage:
        tiny_model(tiny_cfg()).log_metrics(torch.randn(64, 16, 7, 7), torch.ones(64))
        assert storage.latest()["ssl/z_std"][0] == pytest.approx(storage.latest()["ssl/z_std_ideal"][0], rel=0.02)


def test_metrics_are_due_when_detectron2_writes():
    model = tiny_model(tiny_cfg())
    due = []
    for iteration in range(61):
        with EventStorage(iteration):
            due += [iteration] if model.metrics_due() else []
    assert due == [0, 19, 39, 59]


def test_inference_returns_features_of_each_image():
    model = tiny_model(tiny_cfg()).eval()
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in ((64, 96), (32, 33))]
    with torch.no_grad():
        outputs = model([{"image": image} for image in images])
        expected = model.backbone((images[0][None] - model.pixel_mean) / model.pixel_std)["res5"][0]
    assert [tuple(output["features"].shape) for output in outputs] == [(128, 2, 3), (128, 1, 2)]
    assert torch.allclose(outputs[0]["features"], expected, rtol=1e-4, atol=1e-3)


def test_inference_with_a_pyramid_takes_any_size():
    """An FPN adds maps of neighbouring strides: sizes that its largest stride does not divide need padding."""
    model = tiny_model(fpn_cfg()).eval()
    with torch.no_grad():
        (output,) = model([{"image": torch.zeros(3, 70, 64, dtype=torch.uint8)}])
    assert output["features"].shape == (32, 3, 2)

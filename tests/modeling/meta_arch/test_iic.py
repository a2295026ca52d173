"""IIC: the loss of aligned maps, heads that take turns, maps that are smaller than their image."""

from types import SimpleNamespace

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn import functional as F

from densesiam_d2.config_checks import check_config
from densesiam_d2.data.order import EndlessBatches
from densesiam_d2.losses import mutual_information_loss
from densesiam_d2.modeling import model_output
from densesiam_d2.modeling.meta_arch import IIC, iic
from tests.modeling.meta_arch.tiny import freeze_statistics, gradients, method_cfg, tiny_batch, tiny_model


def published_cfg():
    """Return the config of IIC's own network, with few clusters."""
    cfg = method_cfg(IIC)
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.SSL.IN_FEATURE = "build_iic_backbone", "trunk"
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES, cfg.MODEL.IIC.HEAD_PADDING = ["trunk"], 1
    cfg.MODEL.SEM_SEG_HEAD.COMMON_STRIDE = 2
    return cfg


def losses_of(model, batch):
    with EventStorage(1):
        return model(batch)


def pair(model, flipped):
    """Return a batch whose views show the same crop, the second mirrored or not, and the expected loss."""
    batch = tiny_batch(2)
    box = torch.tensor([10.0, 20, 74, 84])
    batch["view_boxes"] = torch.stack([box, box[[2, 1, 0, 3]] if flipped else box]).expand(2, 2, 4).clone()
    x1, x2, *_ = model.preprocess_views(batch)
    maps = []
    for x in (x1, x2):
        p = model.sem_seg_head.layers(model.backbone(x)).softmax(dim=1)
        maps.append(F.interpolate(p, size=(64, 64), mode="bilinear", align_corners=False))
    second = maps[1].flip(3) if flipped else maps[1]
    return batch, mutual_information_loss(maps[0], second, torch.ones(2, 64, 64, dtype=torch.bool), 2)


@pytest.mark.parametrize("flipped", [False, True])
def test_view_2_is_brought_into_the_frame_of_view_1(flipped):
    model = tiny_model(method_cfg(IIC))
    freeze_statistics(model)
    batch, expected = pair(model, flipped)
    losses = losses_of(model, batch)
    assert list(losses) == ["loss_clusters"]
    assert losses["loss_clusters"].item() == pytest.approx(expected.item(), rel=1e-3)
    assert abs(expected.item()) > 1e-6


def test_only_what_both_views_show_counts():
    """View 2 shows the right half of view 1; what view 1 has on the left cannot change the loss."""
    model = tiny_model(method_cfg(IIC))
    freeze_statistics(model)
    model.encode = lambda x: F.avg_pool2d(x, 4).repeat(1, 3, 1, 1)[:, :8]  # a cell sees its own 4 x 4 pixels only
    batch = tiny_batch(2)
    batch["view_boxes"] = torch.tensor([[0.0, 0, 64, 64], [32, 0, 96, 64]]).expand(2, 2, 4).clone()
    before = losses_of(model, batch)["loss_clusters"].item()
    batch["views"][:, 0, :, :, :24] = 0  # up to 8 pixels before the half: the resize mixes neighbouring cells
    batch["views"][:, 1, :, :, 40:] = 0
    assert losses_of(model, batch)["loss_clusters"].item() == before
    batch["views"][:, 0, :, :, 24:] = 0
    assert losses_of(model, batch)["loss_clusters"].item() != before


def test_agreement_is_that_of_the_pixels_that_both_views_show():
    """View 2 shows the right half of view 1, as its left half; where they meet, both agree in the upper half only."""
    model = tiny_model(method_cfg(IIC))
    z1, z2 = torch.zeros(2, 4, 16, 16), torch.zeros(2, 4, 16, 16)
    z1[:, 0, :, :8] = z1[:, 1, :, 8:] = 20
    z2[:, 1, :8, :8] = z2[:, 2, 8:, :8] = z2[:, 3, :, 8:] = 20
    model.sem_seg_head.clustering, maps = nn.Identity(), iter([z1, z2])
    model.encode = lambda x: next(maps).requires_grad_()
    batch = tiny_batch(2)
    batch["view_boxes"] = torch.tensor([[0.0, 0, 64, 64], [32, 0, 96, 64]]).expand(2, 2, 4).clone()
    with EventStorage(0) as storage:
        model(batch)
        logged = {name: value for name, (value, _) in storage.latest().items()}
    # The common points of both views: 3 of 4 have cluster 1, the others cluster 2.
    assert logged["ssl/view_agreement"] == 1 / 2
    assert logged["ssl/used_clusters"] == 2 and logged["ssl/largest_cluster"] == 3 / 4


@pytest.mark.parametrize("overclustering", [True, False])
def test_the_head_whose_turn_it_is_learns(overclustering):
    model = tiny_model(method_cfg(IIC))
    model.overclustering = overclustering
    (name, loss), *rest = losses_of(model, tiny_batch(4)).items()
    assert name == ("loss_over" if overclustering else "loss_clusters") and not rest
    grads = gradients(model, loss)
    own, other = ("over", "") if overclustering else ("", "over")
    assert grads[f"sem_seg_head.{own}clustering.weight"].abs().max() > 0
    assert grads[f"sem_seg_head.{other}clustering.weight"].abs().max() == 0
    assert grads["backbone.stem.conv1.weight"].abs().max() > 0


def test_turns_change_with_each_pass_over_the_images():
    """10 images in batches of 4: batches start at images 0, 4, 8, 12, 16, 20, and passes at 0, 10, 20."""
    model = tiny_model(method_cfg(IIC))
    (hook,) = model.build_hooks(None)
    turns = []
    for iteration in range(6):
        loader = SimpleNamespace(batches=EndlessBatches(10, 4, 0, rank=iteration % 2, world_size=2))
        hook.trainer = SimpleNamespace(iter=iteration, data_loader=loader)
        hook.before_step()
        turns.append(model.overclustering)
    assert turns == [True, True, True, False, False, True]


@torch.no_grad()
def test_the_published_map_of_62_cells_covers_the_whole_image():
    model = tiny_model(published_cfg()).eval()
    image = torch.randint(0, 256, (3, 128, 128), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    z = model.sem_seg_head.layers(model.backbone(model.preprocess_image(image)))
    assert z.shape == (1, 4, 62, 62)
    assert (z[:, :, 0] == 0).all() and (z[:, :, :, -1] == 0).all() and (z[:, :, 1, 1] != 0).all()  # padding
    expected = F.interpolate(z.softmax(dim=1), size=(128, 128), mode="bilinear")[0]
    (output,) = model([{"image": image}])
    assert torch.allclose(output["sem_seg"].softmax(dim=0), expected, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("make_cfg", [lambda: method_cfg(IIC), published_cfg])
@pytest.mark.parametrize(("height", "width", "size"), [(64, 64, None), (71, 99, None), (71, 99, (140, 50))])
def test_labels_are_the_argmax_of_probabilities(make_cfg, height, width, size):
    image = torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    x = {"image": image, **(dict(zip(("height", "width"), size, strict=True)) if size else {})}
    outputs = []
    for kind in ("logits", "labels"):
        cfg = make_cfg()
        cfg.TEST.SEM_SEG_OUTPUT = kind
        outputs += tiny_model(cfg).eval()([x])
    p, labels = outputs[0]["sem_seg"].exp(), outputs[1]["sem_seg_labels"]
    assert p.shape == (4, *(size or (height, width))) and outputs[1]["num_classes"] == 4
    assert torch.allclose(p.sum(dim=0), torch.ones(()), atol=1e-5)
    assert len(labels.unique()) > 1 and (labels == p.argmax(dim=0)).float().mean() > 0.999


def test_the_head_is_iics():
    cfg = method_cfg(IIC, depth=18)
    cfg.INPUT.FORMAT, cfg.DATASETS.TRAIN = "RGB", ("imagenet_train",)
    assert model_output(cfg) == "semantic"
    check_config(cfg)
    cfg.MODEL.SEM_SEG_HEAD.NAME = "PseudoLabelSemSegHead"
    with pytest.raises(ValueError, match=r"MODEL\.SEM_SEG_HEAD\.NAME is 'PseudoLabelSemSegHead'; IIC needs 'IICHead'"):
        check_config(cfg)
    cfg.MODEL.SEM_SEG_HEAD.NAME, cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = "IICHead", ["res9"]
    with pytest.raises(ValueError, match=r"IN_FEATURES names \['res9'\], but the backbone only gives \['res2'"):
        tiny_model(cfg)


@pytest.mark.parametrize(("images", "batch", "turns"), [(60, 120, [0, 1, 0, 1]), (60, 30, [0, 0, 1, 1])])
def test_both_heads_have_their_turn_with_few_images(images, batch, turns, caplog):
    model = SimpleNamespace(overclustering=None)
    hook = iic._TurnsHook(model)
    loader = SimpleNamespace(batches=EndlessBatches(images, batch, 0))
    hook.trainer = SimpleNamespace(data_loader=loader, iter=0, max_iter=4)
    hook.before_train()
    assert "stays random" not in caplog.text
    seen = []
    for hook.trainer.iter in range(4):
        hook.before_step()
        seen.append(int(not model.overclustering))
    assert seen == turns
    hook.trainer.max_iter = 1
    hook.before_train()
    assert "1 iterations end within the first: the head that is scored stays random" in caplog.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["MODEL.BACKBONE.FREEZE_AT", 2], "FREEZE_AT is 2; this network has no stages: set 0"),
        (["MODEL.SEM_SEG_HEAD.COMMON_STRIDE", 4], "COMMON_STRIDE is 4.*'trunk': 2"),
    ],
)
def test_settings_that_this_network_cannot_have_are_named(words, message):
    cfg = published_cfg()
    cfg.merge_from_list(words)
    with pytest.raises(ValueError, match=message):
        tiny_model(cfg)


def test_the_network_without_norms_trains():
    cfg = published_cfg()
    cfg.MODEL.RESNETS.NORM = ""
    assert losses_of(tiny_model(cfg), tiny_batch(2))["loss_clusters"].isfinite()

import logging
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from densesiam_d2.checkpoint import (
    CheckedCheckpointer,
    backbone_metadata,
    backbone_state,
    expected_metadata,
    save_backbone,
)
from densesiam_d2.config import add_densesiam_config
from densesiam_d2.solver import build_lr_scheduler
from tests.checkpoint.networks import d2_resnet

CONFIGS = Path(__file__).parents[2] / "configs"
TRANSFER = sorted((CONFIGS / "transfer").glob("*.yaml"))


def load(path):
    cfg = get_cfg()
    add_densesiam_config(cfg)
    cfg.merge_from_file(str(path), allow_unsafe=False)  # refuses python tags
    return cfg


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    """Depth -> (file, network): backbones as pretraining under Base-R50.yaml exports them."""
    folder = tmp_path_factory.mktemp("backbones")
    exported = {}
    for depth in (18, 50):
        cfg = load(CONFIGS / "Base-R50.yaml")
        cfg.MODEL.RESNETS.DEPTH = depth
        path, source = folder / f"R{depth}.pkl", d2_resnet(depth, seed=5)
        save_backbone(path, backbone_state(source), backbone_metadata(cfg, 1))
        exported[depth] = path, source
    return exported


@pytest.mark.parametrize("path", TRANSFER, ids=lambda path: path.stem)
def test_header_and_schedule(path):
    comments = [line for line in path.read_text().splitlines() if line.startswith("#")]
    header = "\n".join(comments)
    gpus = "" if "R18" in path.stem else "--num-gpus 8 "  # an R18 is what one GPU or a laptop trains
    assert f"python train_net.py {gpus}--config-file configs/transfer/{path.name}" in header
    assert all(
        word in header for word in ("MODEL.WEIGHTS output/pretrain", "backbone.pkl", "Hardware:", "Time:", "Expected")
    )
    cfg = load(path)
    assert Path(cfg.OUTPUT_DIR) == Path("output", path.stem)
    assert list(cfg.SOLVER.STEPS) == sorted(cfg.SOLVER.STEPS)
    if cfg.SOLVER.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
        assert max(cfg.SOLVER.STEPS) < cfg.SOLVER.MAX_ITER
    assert cfg.MODEL.WEIGHTS == ""


def test_cityscapes_schedule_ends_at_the_published_rate():
    cfg = load(CONFIGS / "transfer" / "cityscapes_fcn_R50_d8.yaml")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=cfg.SOLVER.BASE_LR)
    scheduler = build_lr_scheduler(cfg, optimizer)
    optimizer.step()
    scheduler.last_epoch = cfg.SOLVER.MAX_ITER - 1
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-4)  # mmsegmentation's min_lr


@pytest.mark.parametrize("path", [p for p in TRANSFER if not p.stem.endswith("2x")], ids=lambda path: path.stem)
def test_an_exported_backbone_fills_the_model(path, backbones, caplog):
    cfg = load(path)
    file, source = backbones[cfg.MODEL.RESNETS.DEPTH]
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):  # no time for initial weights
        model = build_model(cfg)
    model.to_empty(device="cpu")
    checkpointer = CheckedCheckpointer(model, expect=expected_metadata(cfg))
    with caplog.at_level(logging.INFO, logger="densesiam_d2"):
        checkpointer.resume_or_load(str(file), resume=False)
    tensors = len(backbone_state(source))
    assert f"backbone: {tensors} of {tensors} tensors filled" in caplog.text
    res5 = getattr(model.backbone, "bottom_up", model.backbone)
    res5 = res5.res5 if hasattr(res5, "res5") else model.roi_heads.res5
    last = len(source.res5) - 1  # the C4 head has a norm behind it
    assert torch.equal(res5[last].conv2.norm.running_var, source.res5[last].conv2.norm.running_var)

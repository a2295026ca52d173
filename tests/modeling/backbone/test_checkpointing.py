"""Activation checkpointing: the same gradients and buffers as without, and fewer tensors kept for the backward."""

import copy

import pytest
import torch
from detectron2.modeling import build_backbone

from densesiam_d2.modeling.backbone import checkpoint_stages
from tests.evaluation.processes import in_two_processes
from tests.modeling.meta_arch.tiny import fpn_cfg, tiny_cfg


def torchvision_cfg():
    cfg = tiny_cfg()
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.TORCHVISION.NAME = "build_torchvision_backbone", "mobilenet_v3_small"
    cfg.MODEL.TORCHVISION.NORM = ""
    return cfg


def synced_cfg():
    cfg = tiny_cfg()
    cfg.MODEL.RESNETS.NORM = "SyncBN"  # in one process it computes on the CPU too
    return cfg


CASES = {
    "ResNet": (tiny_cfg, ["stem", "res2", "res3", "res4", "res5"]),
    "one stage": (tiny_cfg, ["res3"]),
    "SyncBN": (synced_cfg, ["stem", "res2", "res3", "res4", "res5"]),
    "pyramid": (fpn_cfg, ["res2", "res4"]),
    "torchvision": (torchvision_cfg, ["res2", "res3", "res4", "res5"]),
}


def pair_of(cfg, stages):
    """Return a backbone and its checkpointed copy, in training mode."""
    torch.manual_seed(0)
    plain = build_backbone(cfg).train()
    checkpointed = copy.deepcopy(plain)
    checkpoint_stages(checkpointed, stages)
    return plain, checkpointed


def step(backbone, images):
    """Return the gradients and buffers after a step, and the bytes that autograd kept for its backward."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(1)  # dropout
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        features = backbone(images)
    sum(f.square().mean() for f in features.values()).backward()
    gradients = {name: p.grad for name, p in backbone.named_parameters()}
    return gradients, dict(backbone.named_buffers()), sum(kept.values())


@pytest.mark.parametrize("case", CASES)
def test_gradients_and_buffers_are_the_same(case):
    make, stages = CASES[case]
    plain, checkpointed = pair_of(make(), stages)
    before = copy.deepcopy(dict(plain.named_buffers()))
    assert checkpointed.state_dict().keys() == plain.state_dict().keys()
    images = torch.randn(2, 3, 64, 64)
    for _ in range(2):  # the second step starts from moved statistics
        expected, buffers, much = step(plain, images)
        gradients, own_buffers, little = step(checkpointed, images)
    assert all(torch.equal(gradients[name], grad) for name, grad in expected.items())
    assert all(torch.equal(own_buffers[name], buffer) for name, buffer in buffers.items())
    changed = [name for name in before if not torch.equal(before[name], buffers[name])]
    assert len(changed) > 20 and all(n == 2 for name, n in buffers.items() if name.endswith("num_batches_tracked"))
    assert little < (0.7 if len(stages) > 3 else 0.95) * much


def test_statistics_over_processes_move_once():
    """detectron2's own batch norm over processes updates its statistics in another way than nn.BatchNorm2d."""
    cfg = tiny_cfg()
    cfg.MODEL.RESNETS.NORM = "naiveSyncBN_N"

    def both(rank):
        images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(rank))
        return [step(backbone, images)[1] for backbone in pair_of(cfg, ["res2", "res3", "res4", "res5"])]

    for plain, checkpointed in in_two_processes(both):
        assert all(torch.equal(checkpointed[name], buffer) for name, buffer in plain.items())
        assert (plain["res5.0.conv1.norm.running_mean"] != 0).any()


def test_a_copy_of_the_backbone_runs_its_own_blocks():
    """A teacher is a deep copy of the student: it must not compute with the student's weights."""
    _, student = pair_of(tiny_cfg(), ["res2"])
    teacher = copy.deepcopy(student)
    with torch.no_grad():
        for p in student.parameters():
            p.zero_()
        images = torch.randn(2, 3, 64, 64)
        assert student(images)["res5"].abs().sum() == 0
        assert teacher(images)["res5"].abs().sum() > 0


def test_an_unknown_stage_is_named_with_those_that_exist():
    with pytest.raises(
        ValueError, match=r"CHECKPOINT_STAGES has 'res6'; ResNet has stages of blocks: stem, res2, res3"
    ):
        pair_of(tiny_cfg(), ["res6"])


def test_stages_of_single_layers_cannot_be_checkpointed():
    cfg = torchvision_cfg()
    cfg.MODEL.TORCHVISION.NAME, cfg.MODEL.RESNETS.OUT_FEATURES = "vgg11", ["res4", "res5"]
    with pytest.raises(
        ValueError, match=r"CHECKPOINT_STAGES has 'res4'; TorchvisionBackbone has stages of blocks: none"
    ):
        pair_of(cfg, ["res4"])

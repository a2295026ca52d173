"""What every method promises: gradients, processes, dropped steps, export, descent, a monitor that can tell."""

import functools
import itertools
import logging

import pytest
import torch
from detectron2.engine import HookBase, SimpleTrainer
from detectron2.modeling import build_backbone, build_model
from detectron2.utils.events import EventStorage
from torch import nn

from densesiam_d2.checkpoint import CheckedCheckpointer, backbone_metadata, backbone_state, save_backbone
from densesiam_d2.engine.collapse import CollapseMonitor
from densesiam_d2.engine.step import StepTrainer
from densesiam_d2.engine.trainer import Trainer
from densesiam_d2.engine.watchdog import WatchdogHook
from densesiam_d2.layers import FeatureQueue
from densesiam_d2.modeling import METHODS
from densesiam_d2.modeling.meta_arch import MoCo, SimSiam
from densesiam_d2.solver import build_optimizer
from tests.checkpoint.networks import fpn_cfg
from tests.engine.test_collapse import smooth_batch
from tests.evaluation.processes import in_two_processes
from tests.modeling.meta_arch.tiny import (
    assert_close_gradients,
    freeze_statistics,
    method_cfg,
    tiny_batch,
    tiny_model,
)

methods = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
splitting = pytest.mark.parametrize("method", [m for m in METHODS if m.accumulates], ids=lambda m: m.__name__)
# The frequency of a pseudo label is that in the batch of one process, as released.
DEPENDS_ON_THE_SHARE = {"DenseSiamSegmentor"}
# Their labels are from a hook, which needs a loader. Without it they train on their own answers, and do collapse.
LABELLED_BY_A_HOOK = {"PiCIE", "ModifiedDeepCluster"}


def shallow_cfg(method, norm="BN"):
    """Return the config of a model with one residual stage and heads of 64 channels."""
    cfg = method_cfg(method, depth=18, norm=norm)
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2"]
    cfg.MODEL.SSL.IN_FEATURE = "res2"
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES, cfg.MODEL.DENSESIAM.GRID_SIZE = ["res2"], 4
    cfg.MODEL.SIMSIAM.PROJ_DIMS, cfg.MODEL.SIMSIAM.PRED_DIM = [64, 64, 64], 32
    cfg.MODEL.DENSESIAM.PROJ_DIMS, cfg.MODEL.DENSESIAM.PRED_DIM = [64, 64, 64], 32
    cfg.MODEL.BYOL.HIDDEN_DIM, cfg.MODEL.BYOL.OUT_DIM = 64, 64
    cfg.MODEL.PIXPRO.HIDDEN_DIM, cfg.MODEL.PIXPRO.OUT_DIM = 64, 64
    # With one layer the predictor is linear. Then a common offset dominates the embeddings of a network as small as
    # this for its first thousand steps, and the monitor reports that the images look alike.
    cfg.MODEL.PIXPRO.TRANSFORM_LAYERS = 2
    cfg.MODEL.SIMCLR.PROJ_DIMS = [64, 64, 64]
    cfg.MODEL.MOCO.PROJ_DIMS = [64, 64]
    cfg.MODEL.DETCO.IN_FEATURES, cfg.MODEL.DETCO.STAGE_WEIGHTS = ["res2"], [1.0]
    cfg.MODEL.SLOTCON.SLOTS, cfg.MODEL.SLOTCON.HIDDEN_DIM, cfg.MODEL.SLOTCON.OUT_DIM = 32, 64, 64
    if method.__name__ == "ReSim":  # a pyramid needs a second stage
        cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.RESIM.IN_FEATURES = ["res2", "res3"]
        cfg.MODEL.RESIM.WINDOW_SIZES, cfg.MODEL.RESIM.WINDOW_STRIDES, cfg.MODEL.RESIM.GATHER = [12], [8], [True]
        cfg.MODEL.RESIM.DIM = 64
    return cfg


def model_of(method, progress=0.5, **options):
    model = tiny_model(method_cfg(method, **options))
    model.progress = progress
    return model


def step(model, batch, iteration=1):
    with EventStorage(iteration):
        return model(batch)


@methods
def test_what_learns_gets_a_gradient_and_a_teacher_none(method):
    model = model_of(method)
    losses = step(model, tiny_batch(4))
    assert all(name.startswith("loss_") and loss.dim() == 0 and loss.isfinite() for name, loss in losses.items())
    sum(losses.values()).backward()
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert not [name for name, p in learning.items() if p.grad is None], "DDP would wait for these"
    assert all(p.grad.isfinite().all() for p in learning.values())
    assert any((p.grad != 0).any() for name, p in learning.items() if name.startswith("backbone.stem"))
    teacher = {name: p for name, p in model.named_parameters() if name.startswith("teacher.")}
    assert not teacher.keys() & learning.keys() and all(p.grad is None for p in teacher.values())
    taught = {id(p) for group in build_optimizer(method_cfg(method), model).param_groups for p in group["params"]}
    assert taught == {id(p) for p in learning.values()}


@methods
def test_backbone_outputs_that_a_method_does_not_use_get_a_gradient_too(method):
    cfg = method_cfg(method)
    cfg.MODEL.RESNETS.OUT_FEATURES, cfg.MODEL.SSL.IN_FEATURE = ["res2", "res3", "res4", "res5"], "res4"
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["res2", "res3"]
    cfg.MODEL.DETCO.IN_FEATURES, cfg.MODEL.DETCO.STAGE_WEIGHTS = ["res3", "res4"], [0.5, 1.0]
    cfg.MODEL.RESIM.IN_FEATURES = ["res2", "res3", "res4"]
    model = tiny_model(cfg)
    model.progress = 0.5
    sum(step(model, tiny_batch(4)).values()).backward()
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert not [name for name, p in learning.items() if p.grad is None], "DDP would wait for these"


@pytest.mark.parametrize("method", [m for m in METHODS if m.output == "semantic"], ids=lambda m: m.__name__)
def test_a_segmentor_logs_how_its_clusters_are_used_and_how_far_the_views_agree(method):
    batch = tiny_batch(4)
    batch["view_boxes"][:, 1] = batch["view_boxes"][:, 0]
    batch["views"][:, 1] = batch["views"][:, 0]  # both views are the same, and so are their clusters
    with EventStorage(0) as storage:
        model_of(method)(batch)
        logged = {name: value for name, (value, _) in storage.latest().items()}
    expected = {"used_clusters", "largest_cluster", "usage_entropy", "assignment_entropy", "pixel_entropy"}
    assert not {f"ssl/{name}" for name in expected} - logged.keys()
    assert logged["ssl/view_agreement"] == pytest.approx(1, abs=0.02)


@methods
def test_fixed_learning_rates_are_those_of_real_modules(method):
    model = model_of(method)
    groups = build_optimizer(method_cfg(method), model).param_groups
    fixed = {id(p) for group in groups if group.get("fix_lr") for p in group["params"]}
    expected = [p for n, p in model.named_parameters() if p.requires_grad and n.startswith(method.fixed_lr_modules)]
    assert fixed == ({id(p) for p in expected} if method.fixed_lr_modules else set())


def gradients_of_a_share(method, norm, rank, world_size):
    """Return the gradients of one process's share of 16 images, one of which has no overlap, averaged by DDP."""
    model = tiny_model(shallow_cfg(method, norm))
    model.progress = 0.5
    batch = smooth_batch(torch.Generator().manual_seed(0))
    batch["view_boxes"][0, 1] += 1000
    share = {key: values[rank::world_size] for key, values in batch.items()}
    if world_size > 1:
        model = nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
    sum(step(model, share).values()).backward()
    parameters = (model.module if world_size > 1 else model).named_parameters()
    return {name: p.grad for name, p in parameters if p.requires_grad}


@pytest.mark.parametrize(
    "method", [m for m in METHODS if m.__name__ not in DEPENDS_ON_THE_SHARE], ids=lambda method: method.__name__
)
def test_two_processes_equal_one_on_the_same_batch(method):
    one = gradients_of_a_share(method, "BN", 0, 1)
    two, other = in_two_processes(lambda rank: gradients_of_a_share(method, "naiveSyncBN_N", rank, 2))
    assert all(torch.equal(two[name], other[name]) for name in two)
    assert_close_gradients(two, one)


@methods
def test_own_hooks_come_before_the_watchdog(method, tmp_path, monkeypatch):
    """A hook may cluster for an hour at the start of an epoch; the watchdog would take that for a hang."""
    own = HookBase()
    monkeypatch.setattr(method, "build_hooks", lambda self, cfg: [own])
    monkeypatch.setattr(Trainer, "build_train_loader", classmethod(lambda cls, cfg: [tiny_batch(4)]))
    cfg = method_cfg(method)
    cfg.OUTPUT_DIR = str(tmp_path)
    hooks = Trainer(cfg)._hooks
    assert hooks.index(own) < next(i for i, hook in enumerate(hooks) if isinstance(hook, WatchdogHook))


class Spoilt(nn.Module):
    """A model whose losses are NaN in some of its forwards."""

    def __init__(self, model, bad):
        super().__init__()
        self.model, self.bad, self.calls = model, bad, 0

    def forward(self, batch):
        losses = self.model(batch)
        self.calls += 1
        return {name: loss * float("nan") for name, loss in losses.items()} if self.calls in self.bad else losses


def state_after(method, progress, batches, bad=(), accumulate=1):
    """Return all tensors of model and optimizer after one step per batch; steps with ``bad`` forwards are dropped."""
    model = model_of(method, progress=progress)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
    trainer = StepTrainer(Spoilt(model, bad), batches, optimizer, accumulate=accumulate)
    for trainer.iter in range(len(batches)):
        torch.manual_seed(0)  # for methods that shuffle; in a training each iteration has its own seed
        with EventStorage(trainer.iter):
            trainer.run_step()
    return all_tensors(model, optimizer)


def all_tensors(model, optimizer):
    """Return the weights and buffers of a model, and the momenta."""
    momenta = {f"momentum {i}": s["momentum_buffer"] for i, s in optimizer.state_dict()["state"].items()}
    return {**model.state_dict(), **momenta}


@methods
def test_accumulate_1_without_checkpoint_stages_is_a_plain_step(method, monkeypatch):
    """Bit for bit the state of steps written out here, of a model on which checkpoint_stages was never called."""
    assert method_cfg(method).SOLVER.ACCUMULATE == 1 and method_cfg(method).MODEL.SSL.CHECKPOINT_STAGES == []
    batches = [tiny_batch(4, seed=seed) for seed in range(2)]
    with monkeypatch.context() as patch:
        patch.setattr("densesiam_d2.modeling.meta_arch.siamese.checkpoint_stages", lambda *args: None)
        model = model_of(method)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
    for iteration, batch in enumerate(batches):
        torch.manual_seed(0)
        losses = step(model, batch, iteration)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    expected, actual = all_tensors(model, optimizer), state_after(method, 0.5, batches)
    assert actual.keys() == expected.keys()
    assert not [name for name in expected if not torch.equal(actual[name], expected[name])]


@methods
@pytest.mark.parametrize("progress", [0.0, 0.5])
def test_dropped_steps_leave_no_trace(method, progress):
    first, second, third = (tiny_batch(4, seed=seed) for seed in range(3))
    expected = state_after(method, progress, [first, second])
    actual = state_after(method, progress, [third, first, third, second], bad=(1, 3))
    assert actual.keys() == expected.keys()
    assert not [name for name in expected if not torch.equal(actual[name], expected[name])]
    assert any(not torch.equal(value, expected[name]) for name, value in state_after(method, progress, [first]).items())


@splitting
@pytest.mark.parametrize("progress", [0.0, 0.5])
def test_steps_in_parts_are_dropped_as_a_whole(method, progress):
    first, second, third = (tiny_batch(4, seed=seed) for seed in range(3))
    expected = state_after(method, progress, [first, second], accumulate=2)
    actual = state_after(method, progress, [third, first, third, second], bad=(1, 6), accumulate=2)
    assert not [name for name in expected if not torch.equal(actual[name], expected[name])]


def after_a_step(method, batch, accumulate, wrap=lambda model: model):
    """Return the gradients, the state and the losses of a step in which images do not see each other."""
    cfg = shallow_cfg(method)
    cfg.MODEL.SEM_SEG_HEAD.PSEUDO_LABEL.REBALANCE = False  # True weighs by frequencies in a part
    cfg.MODEL.SEM_SEG_HEAD.PSEUDO_LABEL.MERGE_FROM = 8
    model = tiny_model(cfg)
    model.progress = 0.5
    with torch.no_grad():
        for p in model.parameters():
            if not p.requires_grad:  # a teacher that is equal to the student would not move
                p.mul_(0.5)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    trainer = StepTrainer(wrap(model), [batch], optimizer, accumulate=accumulate)
    trainer.iter = 0
    freeze_statistics(model)
    with EventStorage() as storage:
        trainer.run_step()
    losses = {name: value for name, (value, _) in storage.latest().items() if name.startswith("loss_")}
    return {n: p.grad for n, p in model.named_parameters() if p.requires_grad}, model.state_dict(), losses


@splitting
def test_a_step_in_parts_equals_that_of_the_whole_batch(method):
    """Gradients, losses and what changes once per batch: teachers, queues, counts of clusters."""
    batch = smooth_batch(torch.Generator().manual_seed(0))
    gradients, state, losses = after_a_step(method, batch, 4)
    expected, state_of_whole, losses_of_whole = after_a_step(method, batch, 1)
    assert losses == pytest.approx(losses_of_whole, rel=1e-4)
    assert_close_gradients(gradients, expected)
    assert all(torch.allclose(state[name], value, rtol=1e-3, atol=1e-6) for name, value in state_of_whole.items())


@pytest.mark.parametrize("method", [SimSiam, MoCo], ids=lambda method: method.__name__)
def test_parts_in_two_processes_equal_the_whole_batch_in_one(method):
    batch = smooth_batch(torch.Generator().manual_seed(0))

    def share(rank):
        ddp = functools.partial(nn.parallel.DistributedDataParallel, broadcast_buffers=False)
        return after_a_step(method, {key: values[rank::2] for key, values in batch.items()}, 4, ddp)[:2]

    (one, state), (other, other_state) = in_two_processes(share)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert all(torch.equal(state[name], other_state[name]) for name in state)
    assert_close_gradients(one, after_a_step(method, batch, 1)[0])


@methods
def test_the_kept_encoder_fills_mask_rcnn(method, tmp_path):
    cfg = method_cfg(method, depth=18)
    model = tiny_model(cfg)
    model.progress = 0.5
    step(model, tiny_batch(2))  # teacher and student differ
    save_backbone(tmp_path / "backbone.pkl", backbone_state(model), backbone_metadata(cfg, 1))
    detector = build_model(fpn_cfg(18)).eval()
    CheckedCheckpointer(detector).resume_or_load(str(tmp_path / "backbone.pkl"), resume=False)  # raises if not all are
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        kept = model.get_submodule(method.exports).eval()(images)["res5"]
        assert torch.allclose(detector.backbone.bottom_up(images)["res5"], kept, atol=1e-5)


@methods
def test_a_bare_backbone_starts_student_and_teacher(method, tmp_path):
    cfg = method_cfg(method, depth=18)
    start = build_backbone(cfg)
    state = {f"backbone.{name}": value for name, value in start.state_dict().items()}
    holder = nn.ModuleDict({"backbone": start})
    save_backbone(tmp_path / "start.pkl", backbone_state(holder), backbone_metadata(cfg, 1))
    model = tiny_model(cfg, seed=5)
    CheckedCheckpointer(model).resume_or_load(str(tmp_path / "start.pkl"), resume=False)
    filled = model.state_dict()
    for name, value in state.items():
        assert torch.equal(filled[name], value), name
        if hasattr(model, "teacher"):
            assert torch.equal(filled[f"teacher.{name}"], value), f"teacher.{name}"


@methods
def test_thirty_steps_lower_the_loss(method):
    model, batch = model_of(method), tiny_batch(8)
    lr = 0.2 if method.__name__ == "IIC" else 0.02  # with 0.02, rounding decides where IIC's loss is after 30 steps
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr, momentum=0.9)
    totals = []
    for iteration in range(30):
        total = sum(step(model, batch, iteration + 1).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
        for queue in (module for module in model.modules() if isinstance(module, FeatureQueue)):
            queue.undo()  # else the negatives change: the queue fills with keys of the images in this batch
    assert sum(totals[-5:]) < sum(totals[:5])


def warnings_of_training(method, batches, iterations, caplog):
    model = tiny_model(shallow_cfg(method))
    model.progress = 0.5
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-4)
    trainer = SimpleTrainer(model, itertools.cycle(batches), optimizer)
    trainer.register_hooks([CollapseMonitor()])
    caplog.set_level(logging.WARNING)
    trainer.train(0, iterations)
    return [record.message for record in caplog.records if "have collapsed" in record.message]


@pytest.mark.parametrize(
    "method", [m for m in METHODS if m.__name__ not in LABELLED_BY_A_HOOK], ids=lambda method: method.__name__
)
def test_the_monitor_is_silent_in_a_healthy_training(method, caplog):
    generator = torch.Generator().manual_seed(0)
    batches = [smooth_batch(generator) for _ in range(25)]
    assert not warnings_of_training(method, batches, 160, caplog)  # 8 looks; a warning needs 5


@methods
def test_the_monitor_tells_of_constant_embeddings(method, caplog):
    generator = torch.Generator().manual_seed(0)
    batch = smooth_batch(generator)
    batch["views"][:], batch["view_boxes"][:] = 100, batch["view_boxes"][:1]  # all images are alike
    assert warnings_of_training(method, [batch], 100, caplog)


@methods
def test_a_batch_without_overlap_is_finite(method):
    model, batch = model_of(method), tiny_batch(4)
    batch["view_boxes"][:, 1] += 1000
    losses = step(model, batch)
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)

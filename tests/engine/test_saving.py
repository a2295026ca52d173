"""Which checkpoints are written and kept, and what happens when that fails."""

import errno
import shutil
from types import SimpleNamespace

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from densesiam_d2.checkpoint import CheckedCheckpointer
from densesiam_d2.engine.saving import BestCheckpointHook, CheckpointHook, best_period
from tests.modeling.meta_arch.tiny import tiny_cfg


def run(folder, iterations, *, first=0, max_iter=100, model=None, before=None, **options):
    """Call the hook for some iterations; ``before`` is called with each."""
    model = nn.Linear(2, 2) if model is None else model
    hook = CheckpointHook(CheckedCheckpointer(model, str(folder)), options.pop("period", 10), **options)
    hook.trainer = SimpleNamespace(iter=0, max_iter=max_iter, _trainer=SimpleNamespace(stop_agreed=False))
    for hook.trainer.iter in range(first, iterations):
        if before:
            before(hook.trainer)
        hook.after_step()


def saved(folder):
    return sorted(path.stem for path in folder.glob("model_*.pth"))


def test_every_period_and_at_the_end(tmp_path):
    run(tmp_path, 25, max_iter=25)
    assert saved(tmp_path) == ["model_0000009", "model_0000019", "model_final"]
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


def test_the_newest_and_every_so_many_are_kept(tmp_path):
    run(tmp_path, 70, keep_last=2, keep_every=30)
    assert saved(tmp_path) == ["model_0000029", "model_0000059", "model_0000069"]
    run(tmp_path, 100, first=70, max_iter=100, keep_last=2, keep_every=30)  # resumed: files of before count
    assert saved(tmp_path) == ["model_0000029", "model_0000059", "model_0000079", "model_0000089", "model_final"]


def test_files_of_later_iterations_do_not_take_the_place_of_new_ones(tmp_path):
    """A run that was resumed from iteration 50, because the files after it are damaged, keeps what it saves."""
    for iteration in (89, 99):
        (tmp_path / f"model_{iteration:07d}.pth").write_bytes(b"damaged")
    run(tmp_path, 70, first=50, keep_last=1)
    assert saved(tmp_path) == ["model_0000069", "model_0000089", "model_0000099"]
    run(tmp_path, 100, first=70, max_iter=200, keep_last=1)  # past them
    assert saved(tmp_path) == ["model_0000099"]


def fill_disk(folder, iteration):
    """Let the save of this iteration find a full disk."""
    (folder / f".model_{iteration:07d}.pth.partial").symlink_to("/dev/full")


def test_a_failed_save_is_tried_again_at_the_next_period(tmp_path, caplog):
    fill_disk(tmp_path, 19)
    run(tmp_path, 30)
    assert saved(tmp_path) == ["model_0000009", "model_0000029"]
    assert "could not save model_0000019, no. 1 in a row: [Errno 28] No space left on device" in caplog.text
    assert not list(tmp_path.glob(".*"))  # nothing half is left


def test_three_failures_in_a_row_end_the_run(tmp_path):
    for iteration in (9, 29, 39, 49):
        fill_disk(tmp_path, iteration)
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path, 60)
    assert saved(tmp_path) == ["model_0000019"]


def test_space_is_looked_at_before(tmp_path, monkeypatch, caplog):
    run(tmp_path, 10)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    run(tmp_path, 20, first=10)
    assert saved(tmp_path) == ["model_0000009"]
    assert f"[Errno {errno.ENOSPC}] a checkpoint needs 0 MiB, 0 are free" in caplog.text


def test_weights_that_are_not_finite_are_not_saved(tmp_path, caplog):
    model = nn.BatchNorm1d(2)

    def spoil(trainer):
        model.running_mean[0] = float("nan") if trainer.iter == 19 else 0.0

    run(tmp_path, 30, model=model, before=spoil)
    assert saved(tmp_path) == ["model_0000009", "model_0000029"]
    assert "weights that are not finite" in caplog.text


def test_asked_to_stop_it_saves_and_leaves_with_75(tmp_path):
    def ask(trainer):
        trainer._trainer.stop_agreed = trainer.iter == 13

    with pytest.raises(SystemExit) as left:
        run(tmp_path, 30, before=ask)
    assert left.value.code == 75
    assert saved(tmp_path) == ["model_0000009", "model_0000013"]


def test_the_best_score_is_remembered(tmp_path):
    """70 before the interruption stays the best; 60 after it does not take its place."""
    model = nn.Linear(1, 1)
    checkpointer = CheckedCheckpointer(model, str(tmp_path))
    checkpointer.save("model_0000009", iteration=9)

    def evaluate(hook, iteration, score):
        torch.nn.init.constant_(model.weight, score)
        with EventStorage(iteration) as storage:
            storage.put_scalar("segm/AP", score, smoothing_hint=False)
            hook.trainer = SimpleNamespace(iter=iteration, max_iter=100, storage=storage)
            hook.after_step()

    first = BestCheckpointHook(10, checkpointer, "segm/AP")
    evaluate(first, 9, 70.0)
    resumed = BestCheckpointHook(10, checkpointer, "segm/AP")
    resumed.load_state_dict(first.state_dict())
    evaluate(resumed, 19, 60.0)
    assert torch.load(tmp_path / "model_best.pth", weights_only=True)["model"]["weight"].item() == 70
    evaluate(resumed, 29, 80.0)
    assert torch.load(tmp_path / "model_best.pth", weights_only=True)["model"]["weight"].item() == 80
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000009.pth"  # resuming is not from the best


def test_the_best_score_after_the_end_is_remembered_when_the_run_is_made_longer(tmp_path):
    """60 comes after the last checkpoint, which knows 55; 57 in the longer run is not the best."""

    def hook_of(iteration, start_iter=0):
        hook = BestCheckpointHook(2, CheckedCheckpointer(nn.Linear(1, 1), str(tmp_path)), "segm/AP")
        hook.trainer = SimpleNamespace(iter=iteration, start_iter=start_iter, max_iter=8 if start_iter else 4)
        state = {"hooks": {"BestCheckpointHook": None}}
        checkpointable = SimpleNamespace(
            state_dict=lambda: {"hooks": {"BestCheckpointHook": hook.state_dict()}}, load_state_dict=state.update
        )
        hook._checkpointer.add_checkpointable("trainer", checkpointable)
        return hook

    def compare(hook, iteration, score, end=False):
        with EventStorage(iteration) as hook.trainer.storage:
            hook.trainer.iter = iteration
            hook.trainer.storage.put_scalar("segm/AP", score, smoothing_hint=False)
            hook.after_train() if end else hook.after_step()

    first = hook_of(0)
    compare(first, 1, 55.0)
    in_the_final_checkpoint = first.state_dict()
    compare(first, 4, 60.0, end=True)
    longer = hook_of(4, start_iter=4)
    longer.load_state_dict(in_the_final_checkpoint)
    longer.before_train()
    assert (longer.best_metric, longer.best_iter, longer.waited) == (60, 4, 0)
    compare(longer, 5, 57.0)
    assert (longer.best_metric, longer.waited) == (60, 1)

    earlier = hook_of(2, start_iter=2)  # a run that goes on from before that value finds it again
    earlier.load_state_dict(in_the_final_checkpoint)
    earlier.before_train()
    assert earlier.best_metric == 55
    (tmp_path / "model_best.pth").write_bytes(b"damaged")
    earlier.before_train()
    assert earlier.best_metric == 55


def test_the_best_model_knows_that_nothing_was_waited_for(tmp_path):
    """The file's own count is that of a new best value, so a run that goes on from it does not end."""
    hook = BestCheckpointHook(1, CheckedCheckpointer(nn.Linear(1, 1), str(tmp_path)), "segm/AP")
    in_the_file = []
    hook._on_best = lambda _: in_the_file.append(hook.state_dict()["waited"])
    with EventStorage() as storage:
        for storage.iter, score in enumerate([5.0, 4.0, 6.0]):
            hook.trainer = SimpleNamespace(iter=storage.iter, max_iter=100, storage=storage)
            storage.put_scalar("segm/AP", score, smoothing_hint=False)
            hook.after_step()
    assert in_the_file == [0, 0]


def best_of(folder, metric, logged, *, period=10, max_iter=30):
    """Run the hook over iterations that log a number, {iteration: value}; the weight is the iteration."""
    folder.mkdir(exist_ok=True)
    model = nn.Linear(1, 1)
    hook = BestCheckpointHook(period, CheckedCheckpointer(model, str(folder)), metric)
    with EventStorage() as storage:
        for storage.iter in range(max_iter):
            hook.trainer = SimpleNamespace(iter=storage.iter, max_iter=max_iter, storage=storage)
            if storage.iter in logged:
                storage.put_scalar(metric.removeprefix("-"), logged[storage.iter], smoothing_hint=False)
            nn.init.constant_(model.weight, storage.iter)
            hook.after_step()
        storage.iter = hook.trainer.iter = max_iter
        hook.after_train()
    path = folder / "model_best.pth"
    return hook.best_metric, torch.load(path, weights_only=True)["model"]["weight"].item() if path.exists() else None


def test_numbers_of_training_are_averaged_over_the_period(tmp_path):
    """Means 0.5 (iterations 0 to 9), 0.6 and 0.4; the highest single values are in the first and last period."""
    logged = {3: 0.9, 9: 0.1, 12: 0.6, 15: 0.5, 19: 0.7, 25: 0.95, 27: 0.0, 29: 0.25}
    assert best_of(tmp_path / "a", "ssl/view_agreement", logged) == (pytest.approx(0.6), 19)
    assert best_of(tmp_path / "b", "-ssl/view_agreement", logged) == (pytest.approx(0.4), 29)


def test_every_number_of_a_long_period_counts(tmp_path):
    """3,000 values from 2,999 down to 0 have the mean 1,499.5, also in a run that was resumed in between."""
    name, period = "total_loss", 3000
    assert (
        best_of(tmp_path / "a", name, {i: 2999.0 - i for i in range(3000)}, period=period, max_iter=3001)[0] == 1499.5
    )
    hook = None
    for part in (range(1200), range(1200, 3000)):
        state = hook and hook.state_dict()
        hook = BestCheckpointHook(period, CheckedCheckpointer(nn.Linear(1, 1), str(tmp_path)), name)
        if state:
            hook.load_state_dict(state)
        with EventStorage() as storage:
            for storage.iter in part:
                hook.trainer = SimpleNamespace(iter=storage.iter, max_iter=3001, storage=storage)
                storage.put_scalar(name, 2999.0 - storage.iter)
                hook.after_step()
    assert hook.best_metric == 1499.5


def test_a_best_model_that_cannot_be_saved_is_tried_again(tmp_path, caplog):
    """The disk is full for the best score, 30; the second best, after it, takes the place."""
    tmp_path.joinpath(".model_best.pth.partial").symlink_to("/dev/full")
    assert best_of(tmp_path, "monitor/mIoU", {9: 30.0, 19: 20.0, 29: 10.0}) == (20, 19)
    assert "could not save model_best, no. 1 in a row: [Errno 28]" in caplog.text


def test_scores_are_compared_as_they_are(tmp_path):
    """One value per period, the last of them after training; it is not averaged with the one before."""
    assert best_of(tmp_path / "a", "monitor/mIoU", {9: 20.0, 19: 30.0, 29: 40.0}) == (40, 29)
    assert best_of(tmp_path / "b", "monitor/mIoU", {9: 20.0, 19: 30.0, 29: float("nan")}) == (30, 19)


def test_a_metric_that_nothing_logs_is_named(tmp_path, caplog):
    assert best_of(tmp_path, "ssl/none", {}) == (None, None)
    assert "TEST.BEST_METRIC ssl/none was not logged since the last comparison" in caplog.text


@pytest.mark.parametrize(
    ("metric", "evaluation", "expected"),
    [
        ("sem_seg/mIoU", 7, 7),
        ("sem_seg/mIoU", 0, 0),
        ("-ssl/pixel_entropy", 7, 7),
        ("ssl/view_agreement", 0, 11),
        ("monitor/mIoU", 7, 5),
    ],
)
def test_when_the_best_is_compared(metric, evaluation, expected):
    cfg = tiny_cfg()
    cfg.SOLVER.CHECKPOINT_PERIOD, cfg.TEST.MONITOR.PERIOD = 11, 5
    cfg.TEST.EVAL_PERIOD, cfg.TEST.BEST_METRIC = evaluation, metric
    assert best_period(cfg) == expected


def test_another_metric_has_its_own_best(tmp_path, caplog):
    checkpointer = CheckedCheckpointer(nn.Linear(1, 1), str(tmp_path))
    first = BestCheckpointHook(10, checkpointer, "segm/AP")
    first.best_metric, first.best_iter = 32.5, 9
    other = BestCheckpointHook(10, checkpointer, "ssl/view_agreement")
    other.load_state_dict(first.state_dict())
    assert other.best_metric is None and "TEST.BEST_METRIC was segm/AP and is ssl/view_agreement" in caplog.text
    same = BestCheckpointHook(10, checkpointer, "segm/AP")
    same.load_state_dict(first.state_dict())
    assert same.best_metric == 32.5

"""Which checkpoints are written and kept, and what happens when that fails."""

import errno
import shutil
from types import SimpleNamespace

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from densesiam_d2.checkpoint import CheckedCheckpointer
from densesiam_d2.engine.saving import BestCheckpointHook, CheckpointHook


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

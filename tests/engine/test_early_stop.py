"""Training ends when the best value is old: after the same step whether it was interrupted or not."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

import train_net
from densesiam_d2.checkpoint import CheckedCheckpointer
from densesiam_d2.checkpoint.files import read_checkpoint
from densesiam_d2.engine import argument_parser, checked_config
from densesiam_d2.engine.early_stop import EarlyStopHook
from densesiam_d2.engine.saving import BestCheckpointHook
from tests.faults.runs import options, write_images


def last_iteration(folder, scores, patience):
    """Return the iteration that the hooks make the last one; a score is logged in each."""
    best = BestCheckpointHook(1, CheckedCheckpointer(nn.Linear(1, 1), str(folder)), "probe/mIoU")
    hook = EarlyStopHook(best, 1, patience)
    hook.trainer = best.trainer = trainer = SimpleNamespace(max_iter=100)
    with EventStorage() as trainer.storage:
        for trainer.iter, score in enumerate(scores):
            trainer.storage.iter = trainer.iter
            trainer.storage.put_scalar("probe/mIoU", score, smoothing_hint=False)
            best.after_step()
            hook.after_step()
            if hook.stopped:
                assert trainer.max_iter == trainer.iter + 1
                return trainer.iter
    return None


@pytest.mark.parametrize(
    ("scores", "patience", "expected"),
    [
        ([10, 20, 15, 19], 2, 3),  # the best is 20, and two others follow
        ([10, 20, 15, 21, 1, 2, 3], 3, 6),  # 21 starts the count anew
        ([10, 20, 20, 20], 2, 3),  # an equal value is not a new best
        ([10, 20, 15, 21], 2, None),
        ([5, float("nan"), float("nan")], 2, 2),
    ],
)
def test_patience_by_hand(tmp_path, scores, patience, expected):
    assert last_iteration(tmp_path, scores, patience) == expected


def test_patience_needs_scores_in_training():
    with pytest.raises(ValueError, match=r"TEST\.PATIENCE is 3; nothing is scored during training"):
        EarlyStopHook(None, 0, 3)


def train(images, folder, *more, flags=()):
    """Train up to 12 iterations; the compared learning rate falls, so that the first of six comparisons is the best."""
    words = options(images, folder, "TEST.BEST_METRIC", "lr", "TEST.EVAL_PERIOD", 2, "TEST.PATIENCE", 2)
    words += ["SOLVER.CHECKPOINT_PERIOD", "3", "SOLVER.WARMUP_ITERS", "0", "DATASETS.TEST", "()", *map(str, more)]
    args = argument_parser().parse_args([*flags, *words])
    train_net.main(checked_config(args), args)
    return torch.load(Path(folder) / "model_final.pth", weights_only=True)


def test_a_resumed_run_ends_like_an_uninterrupted_one(tmp_path):
    """Comparisons after iterations 1 (the best), 3 and 5; iteration 5 is the last."""
    images = write_images(tmp_path / "scenes")
    straight, half = tmp_path / "straight", tmp_path / "half"
    expected = train(images, straight)
    assert expected["iteration"] == 5
    assert read_checkpoint(straight / "backbone.pkl")["metadata"]["iteration"] == 6
    assert read_checkpoint(straight / "backbone_best.pkl")["metadata"]["iteration"] == 2
    best = torch.load(straight / "model_best.pth", weights_only=True)
    assert best["iteration"] == 1
    exported = read_checkpoint(straight / "backbone_best.pkl")["model"]
    saved = best["model"]["backbone.stem.conv1.weight"]
    assert torch.equal(torch.as_tensor(exported["stem.conv1.weight"]), saved)
    assert not torch.equal(saved, expected["model"]["backbone.stem.conv1.weight"])

    half.mkdir()
    shutil.copy(straight / "model_0000002.pth", half)
    (half / "last_checkpoint").write_text("model_0000002.pth")
    actual = train(images, half, flags=["--resume"])
    assert actual["iteration"] == 5
    assert all(torch.equal(value, expected["model"][name]) for name, value in actual["model"].items())
    assert actual["trainer"]["hooks"]["BestCheckpointHook"] == expected["trainer"]["hooks"]["BestCheckpointHook"]

    again = train(images, half, flags=["--resume"])  # nothing is left to train
    assert again["iteration"] == 5
    assert train(images, half, "TEST.PATIENCE", 4, flags=["--resume"])["iteration"] == 9  # two comparisons more


def test_expected_results_are_checked_after_the_last_comparison(tmp_path):
    """The probe's scores are results too; here there are none, so the expected ones are missed."""
    images = write_images(tmp_path / "scenes")
    with pytest.raises(SystemExit, match="1"):
        train(images, tmp_path / "run", "TEST.EXPECTED_RESULTS", "[['sem_seg','mIoU',99.0,0.1]]")


def test_values_since_the_last_comparison_survive_an_interruption(tmp_path):
    """0.9 before and 0.3 after the interruption, compared at iteration 9: the mean is 0.6."""
    checkpointer = CheckedCheckpointer(nn.Linear(1, 1), str(tmp_path))

    def log(hook, iteration, value):
        hook.trainer = SimpleNamespace(iter=iteration, max_iter=100, storage=EventStorage(iteration))
        hook.trainer.storage.put_scalar("ssl/z_std", value)
        hook.after_step()

    first, resumed = (BestCheckpointHook(10, checkpointer, "ssl/z_std") for _ in range(2))
    log(first, 5, 0.9)
    resumed.load_state_dict(first.state_dict())
    log(resumed, 9, 0.3)
    assert resumed.best_metric == pytest.approx(0.6)

"""The runner of stages, with a stand-in for train_net.py that ends at once; tests/demo runs the real one."""

import json

import pytest

from densesiam_d2.reporting import stages
from densesiam_d2.reporting.stages import Stage, StageError, run_stage

STAND_IN = """
import pathlib, sys
words = sys.argv[1:]
output = pathlib.Path(words[words.index("OUTPUT_DIR") + 1])
print("[11/21 05:02:13 d2.utils.events]:  eta: 0:00:03  iter: 39  total_loss: 2.217  loss_cls: 0.6576")
with open("calls", "a") as file:
    print(*words, file=file)
if "configs/demo/mask_rcnn.yaml" in words:
    sys.exit("something is wrong with the masks")
if "configs/quick/unsup_seg_instant_test.yaml" not in words:
    (output / "results.json").write_text("{}")
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    (tmp_path / "configs").symlink_to(stages.ROOT / "configs")
    (tmp_path / "train_net.py").write_text(STAND_IN)
    monkeypatch.setattr(stages, "ROOT", tmp_path)
    return tmp_path


def make_stage(root, **changes):
    values = {
        "name": "pre",
        "title": "training",
        "config": "configs/demo/pretrain.yaml",
        "output": root / "out" / "pre",
    }
    return Stage(**{**values, **changes})


def num_calls(root):
    return len((root / "calls").read_text().splitlines())


def test_command_is_what_a_shell_needs(root):
    stage = make_stage(root, weights="")
    assert stage.command == (
        "python train_net.py --config-file configs/demo/pretrain.yaml MODEL.WEIGHTS '' OUTPUT_DIR out/pre"
    )


def test_runs_once_then_reuses(root, capsys):
    record = run_stage(make_stage(root), position="[2/9]")
    again = run_stage(make_stage(root), position="[2/9]")
    assert again == record and record["seconds"] > 0
    assert record["command"] == "python train_net.py --config-file configs/demo/pretrain.yaml OUTPUT_DIR out/pre"
    assert num_calls(root) == 1
    printed = capsys.readouterr().out
    assert "[2/9] training\n      $ python train_net.py" in printed and "already done" in printed
    assert "eta: 0:00:03" in (root / "out" / "pre" / "stage.log").read_text()


@pytest.mark.parametrize("change", ["overwrite", "command", "product", "config", "weights"])
def test_runs_again_when_something_changed(root, change):
    weights = root / "backbone.pkl"
    weights.write_bytes(b"one")
    run_stage(make_stage(root, weights=weights), position="")
    (root / "out" / "pre" / "metrics.json").write_text("of the first run")
    changes = {}
    if change == "command":
        changes = {"opts": ("SEED", "3")}
    elif change == "product":
        (root / "out" / "pre" / "results.json").unlink()
    elif change == "weights":
        weights.write_bytes(b"two")
    elif change == "config":
        (root / "configs").unlink()
        (root / "configs" / "demo").mkdir(parents=True)
        (root / "configs" / "demo" / "pretrain.yaml").write_text("SEED: 3\nVERSION: 2\n")
    run_stage(make_stage(root, weights=weights, **changes), position="", overwrite=change == "overwrite")
    assert num_calls(root) == 2
    assert not (root / "out" / "pre" / "metrics.json").exists()  # detectron2 would append to it


def test_failure_shows_the_end_of_the_log_and_is_not_reused(root):
    stage = make_stage(root, config="configs/demo/mask_rcnn.yaml")
    for _ in range(2):
        with pytest.raises(StageError, match=r"(?s).* status 1. The end of .*stage.log.*wrong with the masks"):
            run_stage(stage, position="")
    assert num_calls(root) == 2


def test_missing_product_is_a_failure(root):
    with pytest.raises(StageError, match=r"ended well but left no .*results\.json"):
        run_stage(make_stage(root, config="configs/quick/unsup_seg_instant_test.yaml"), position="")


def test_missing_weights_are_named(root):
    with pytest.raises(StageError, match=r"backbone\.pkl is missing"):
        run_stage(make_stage(root, weights=root / "backbone.pkl"), position="")


def test_folders_of_others_are_left_alone(root):
    precious = root / "out" / "pre" / "model_final.pth"
    precious.parent.mkdir(parents=True)
    precious.write_text("weeks of training")
    with pytest.raises(StageError, match="holds files that are not of this stage"):
        run_stage(make_stage(root), position="", overwrite=True)
    assert precious.read_text() == "weeks of training"


def test_progress_lines(root, monkeypatch, capsys):
    monkeypatch.setattr(stages, "_SECONDS_BETWEEN_LINES", 0.0)
    run_stage(make_stage(root), position="")
    assert f"iteration 40 of {make_stage(root).max_iter}, loss 2.217, 0:00:03 left" in capsys.readouterr().out


def test_progress_of_evaluation():
    line = "[11/21 05:02:13 d2.evaluation.evaluator]: Inference done 11/150. Dataloading: 0.0012 s/iter. ETA=0:00:09"
    assert stages._progress(line, 0) == "evaluated 11 of 150 images, 0:00:09 left"
    assert stages._progress("[11/21 05:02:13 d2.data.build]: Making batched data loader", 0) is None


def test_record_is_written_last(root):
    """A run that is killed leaves a record without "seconds", so it is neither reused nor taken for someone else's."""
    stage = make_stage(root)
    run_stage(stage, position="")
    path = stage.output / "stage.json"
    record = json.loads(path.read_text())
    del record["seconds"]
    path.write_text(json.dumps(record))
    run_stage(stage, position="")
    assert num_calls(root) == 2


def test_other_keys_are_another_run(root):
    for seed, calls in ((1, 1), (1, 1), (2, 2)):
        run_stage(make_stage(root, opts=("SEED", str(seed))), position="")
        assert num_calls(root) == calls
    assert (root / "calls").read_text().split()[-4:-2] == ["SEED", "2"]

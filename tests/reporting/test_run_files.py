import os
import shlex

import pytest

from densesiam_d2.engine.setup import load_config
from densesiam_d2.reporting.run_files import RunFiles, config_differences

STARTED = "[01/02 03:04:05] detectron2 INFO: Command line arguments: Namespace(config_file='{}', {} opts={})\n"


def write_log(folder, *starts):
    (folder / "log.txt").write_text("".join(["some line\n", *starts]))


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        RunFiles(tmp_path)


def test_the_command_is_the_last_training(tmp_path):
    opts = ["DATASETS.TRAIN", "folder:/my photos", "OUTPUT_DIR", str(tmp_path), "SEED", "3"]
    write_log(
        tmp_path,
        STARTED.format("old.yaml", "eval_only=False, num_gpus=1, num_machines=1,", []),
        STARTED.format("new.yaml", "eval_only=False, num_gpus=4, num_machines=1,", opts),
        STARTED.format("new.yaml", "eval_only=True, num_gpus=1, num_machines=1,", []),
        STARTED.format("cut.yaml", "eval_only=False,", [])[:-9],
    )
    words = shlex.split(RunFiles(tmp_path).command())
    assert words == [
        *("python", "train_net.py", "--config-file", "new.yaml", "--num-gpus", "4"),
        *("DATASETS.TRAIN", "folder:/my photos", "SEED", "3", "OUTPUT_DIR", f"{tmp_path}_again"),
    ]


def test_a_run_that_goes_on_after_its_end_is_not_finished(tmp_path):
    write_log(tmp_path)
    (tmp_path / "model_final.pth").touch()
    assert RunFiles(tmp_path).finished
    for newest, finished in (("model_final.pth", True), ("model_0000049.pth", False)):
        (tmp_path / "last_checkpoint").write_text(newest)
        assert RunFiles(tmp_path).finished == finished


def test_code_in_a_log_is_not_run(tmp_path):
    made = tmp_path / "made"
    write_log(tmp_path, STARTED.format("a.yaml", "eval_only=False,", f"open('{made}', 'w')"))
    assert RunFiles(tmp_path).command() is None and not made.exists()


def test_files_that_are_half_written(tmp_path):
    (tmp_path / "config.yaml").write_text("MODEL:\n  META_ARCHITECTURE: [DenseS")
    (tmp_path / "results.json").write_text('{"set": {"segm": {"AP": 1')
    (tmp_path / "quarantine.jsonl").write_text('{"file_name": "a.jpg", "reason": "torn"}\n{"file_na')
    (tmp_path / "metrics.json").write_text('{"iteration": 1}\n{"iterat')
    run = RunFiles(tmp_path)
    assert run.cfg is None and run.results == {} and run.metrics == {} and run.iterations == 0
    assert [entry["file_name"] for entry in run.set_aside] == ["a.jpg"]
    assert len(run.problems) == 2 and not run.finished


@pytest.mark.parametrize(
    "content", ["[]", "3", '{"sem_seg": 3}', '{"set": {"protocol": 3}}', '{"seeds": [0, 1]}', "\x80"]
)
def test_results_that_are_no_scores_are_told(tmp_path, content):
    (tmp_path / "results.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(FileNotFoundError, match=r"holds no run: .*results\.json"):
        RunFiles(tmp_path)  # such as the folder of a grid, whose report.html would be lost
    write_log(tmp_path)
    run = RunFiles(tmp_path)
    assert run.results == {}
    (told,) = run.problems
    assert told.startswith(f"{tmp_path}/results.json ")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"\x80\xff\n\x80\n", "2 lines or values in it; the first: line 1 is no JSON object"),
        ('{"iteration": 1}\n'.encode("utf-16"), "the first: line 1 is no"),
        (b'[{"iteration": 1, "x": 2}]', "1 lines or values in it; the first: line 1 is no"),
        (
            b'{"iteration": 1, "x": 2}\n}{garbage\n{"iteration": 2, "x": 3}\n',
            "1 lines or values in it; the first: line 2",
        ),
        (b'{"iteration": 1, "x": [1, 2]}', r"the first: iteration 1 has x [1, 2]"),
        (b'{"iteration": "a", "x": 2}', "the first: iteration a has x 2"),
        (b'{"iteration": 1, "x": 1' + b"0" * 400 + b"}", "the first: iteration 1 has x 10000000000000000000"),
    ],
)
def test_numbers_that_cannot_be_read_are_told(tmp_path, content, problem):
    (tmp_path / "metrics.json").write_bytes(content)
    run = RunFiles(tmp_path)
    assert list(run.metrics) == (["x"] if b"garbage" in content else [])
    (told,) = run.problems
    assert told.startswith(f"{tmp_path}/metrics.json, ") and problem in told


def test_weights_by_date(tmp_path):
    (tmp_path / "log.txt").touch()
    for seconds, name in enumerate(("model_0000009.pth", "backbone_best.pkl", "model_best.pth", "other.pth")):
        (tmp_path / name).write_bytes(bytes(2**19))
        os.utime(tmp_path / name, (seconds, seconds))
    (tmp_path / "last_checkpoint").write_text("model_best.pth\n")
    run = RunFiles(tmp_path)
    assert [path.name for path, _, _ in run.weights] == ["model_0000009.pth", "backbone_best.pkl", "model_best.pth"]
    assert [size for _, size, _ in run.weights] == [0.5] * 3 and run.newest == "model_best.pth"


def test_differences_see_through_a_file(tmp_path):
    """A config that was written and read again differs only where a value was changed, also in lists of lists."""
    (tmp_path / "base.yaml").write_text("VERSION: 2\n")
    base = load_config(str(tmp_path / "base.yaml"))
    (tmp_path / "config.yaml").write_text(base.dump())
    again = load_config(str(tmp_path / "config.yaml"), ["SOLVER.BASE_LR", "0.5", "DATASETS.TRAIN", "('a',)"])
    assert config_differences(again, base) == [
        ("DATASETS.TRAIN", "[]", "['a']"),
        ("SOLVER.BASE_LR", str(base.SOLVER.BASE_LR), "0.5"),
    ]
    names = [name for name, _, _ in config_differences(again)]
    assert set(names) - {"MODEL.DEVICE"} == {"DATASETS.TRAIN", "SOLVER.BASE_LR"}  # no GPU here: the device differs too


def test_an_evaluation_without_training(tmp_path):
    write_log(tmp_path, STARTED.format("a.yaml", "eval_only=True,", ["MODEL.WEIGHTS", "w.pth"]))
    run = RunFiles(tmp_path)
    assert run.evaluated_only
    assert "a.yaml --eval-only MODEL.WEIGHTS w.pth OUTPUT_DIR" in run.command()

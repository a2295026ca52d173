"""``train_net.py --seeds N``: seeds in their own processes and folders, skipped when done, summed up in one file."""

import json
import statistics
from pathlib import Path

import pytest

import train_net
from densesiam_d2.engine import argument_parser, load_config
from densesiam_d2.grid import seeds as module
from densesiam_d2.grid.seeds import run_seeds
from densesiam_d2.samples.scenes import write_scenes

ROOT = Path(__file__).parents[2]
CONFIG = "configs/quick/unsup_seg_instant_test.yaml"
# A script that fails for the seed in $BROKEN, and otherwise writes scores that depend on the seed.
SCRIPT = """
import json, os, pathlib, sys
words = dict(zip(sys.argv[1::2], sys.argv[2::2]))
folder, seed = pathlib.Path(words["OUTPUT_DIR"]), int(words["SEED"])
with (folder.parent / "calls.txt").open("a") as file:
    print(*sys.argv[1:], file=file)
if str(seed) == os.environ.get("BROKEN"):
    sys.exit("out of luck")
scores = {"mIoU": 10.0 + 2 * seed, "IoU-a": None}
result = {"set": {"sem_seg": scores, "absent_classes": ["a"], "protocol": {"num_images": 3}}}
(folder / "results.json").write_text(json.dumps(result))
"""


def call(tmp_path, *flags, seed=4):
    (tmp_path / "script.py").write_text(SCRIPT)
    words = [*flags, "--config-file", str(ROOT / CONFIG), "SEED", str(seed), "OUTPUT_DIR", str(tmp_path / "out")]
    args = argument_parser().parse_args(words)
    return run_seeds(tmp_path / "script.py", load_config(args.config_file, args.opts), args)


def results(tmp_path):
    return json.loads((tmp_path / "out" / "results.json").read_text())


def test_three_seeds_by_hand(tmp_path, capsys):
    """Seeds 4, 5, 6 score 18, 20, 22: mean 20, sample standard deviation 2."""
    assert call(tmp_path, "--seeds", "3") == 0
    content = results(tmp_path)
    assert content["seeds"] == [4, 5, 6] and content["not_done"] == {}
    assert content["scores"] == {
        "set": {
            "sem_seg": {
                "mIoU": {"mean": 20, "std": 2, "values": [18, 20, 22]},
                "IoU-a": {"mean": None, "std": None, "values": [None, None, None]},
            }
        }
    }
    lines = capsys.readouterr().out.splitlines()
    (row,) = [line for line in lines if line.startswith("set sem_seg mIoU")]
    assert row.split() == ["set", "sem_seg", "mIoU", "20.00", "±", "2.00", "18.00", "20.00", "22.00"]
    calls = (tmp_path / "out" / "calls.txt").read_text().splitlines()
    assert len(calls) == 3 and all("--resume auto" in words for words in calls)


def test_a_failed_seed_is_named_and_tried_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BROKEN", "5")
    assert call(tmp_path, "--seeds", "2") == 1
    output = capsys.readouterr()
    assert "train_net.py: seed_5 is not done: failed, exit code 1: out of luck" in output.err
    content = results(tmp_path)
    assert list(content["not_done"]) == ["seed_5"]
    assert content["scores"]["set"]["sem_seg"]["mIoU"] == {"mean": 18, "std": None, "values": [18, None]}
    monkeypatch.delenv("BROKEN")
    assert call(tmp_path, "--seeds", "3") == 0  # one more seed; seed 4 is not run again
    calls = (tmp_path / "out" / "calls.txt").read_text().splitlines()
    assert [words.split("SEED ")[1].split()[0] for words in calls] == ["4", "5", "5", "6"]
    assert results(tmp_path)["scores"]["set"]["sem_seg"]["mIoU"]["values"] == [18, 20, 22]


@pytest.mark.parametrize("content", ['{"set": {"sem', "[1]"])
def test_damaged_results_of_a_seed_are_named(tmp_path, content):
    call(tmp_path, "--seeds", "2")
    folder = tmp_path / "out" / "seed_5"
    (folder / "results.json").write_text(content)
    with pytest.raises(ValueError, match=r"seed_5/results\.json cannot be read \(.*\): delete cell\.json beside it"):
        call(tmp_path, "--seeds", "2")
    (folder / "cell.json").unlink()
    assert call(tmp_path, "--seeds", "2") == 0
    assert results(tmp_path)["scores"]["set"]["sem_seg"]["mIoU"]["values"] == [18, 20]


def test_an_infinite_score_is_not_defined(tmp_path):
    call(tmp_path, "--seeds", "2")
    (tmp_path / "out" / "seed_5" / "results.json").write_text('{"set": {"sem_seg": {"mIoU": Infinity}}}')
    assert call(tmp_path, "--seeds", "2") == 0
    assert results(tmp_path)["scores"]["set"]["sem_seg"]["mIoU"]["values"] == [18, None]


def test_a_random_seed_starts_at_0(tmp_path):
    call(tmp_path, "--seeds", "2", seed=-1)
    assert results(tmp_path)["seeds"] == [0, 1]


def test_what_does_not_fit_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="--seeds trains; to evaluate a seed again, name its folder"):
        call(tmp_path, "--seeds", "2", "--eval-only")
    with pytest.raises(ValueError, match="on one machine"):
        call(tmp_path, "--seeds", "2", "--num-machines", "2")
    monkeypatch.setattr(module, "under_torchrun", lambda: True)
    with pytest.raises(ValueError, match="without torchrun"):
        call(tmp_path, "--seeds", "2")
    for word in ("0", "-1", "two"):
        with pytest.raises(SystemExit):
            argument_parser().parse_args(["--seeds", word])


def test_seeds_of_another_command_are_kept(tmp_path):
    assert call(tmp_path, "--seeds", "1") == 0
    with pytest.raises(ValueError, match=r"seed_4 is of another command: name another OUTPUT_DIR\. It was: python"):
        call(tmp_path, "--seeds", "1", "--num-gpus", "2")


def test_train_net_with_two_seeds(tmp_path, capsys):
    """Two tiny trainings; the same command again runs nothing, and a dry run leaves nothing."""
    write_scenes(tmp_path / "scenes", num=4, seed=0, size=64)
    (tmp_path / "scenes" / "sem_seg" / "classes.txt").write_text("\n".join("abcdefghij"))
    data = f"masks:{tmp_path}/scenes/images,labels={tmp_path}/scenes/sem_seg"
    options = ["DATASETS.TRAIN", data, "DATASETS.TEST", data, "MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu"]
    options += ["SOLVER.MAX_ITER", "1", "SEED", "7"]

    def train(*flags):
        words = ["--config-file", str(ROOT / CONFIG), "--seeds", "2", *flags, *options]
        train_net.run(words=[*words, "OUTPUT_DIR", str(tmp_path / "out")])

    train("--dry-run")
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit) as done:
        train()
    log = tmp_path / "out" / "seed_7" / "log.txt"
    assert done.value.code == 0, log.read_text()[-2000:]
    own = [json.loads((tmp_path / "out" / f"seed_{s}" / "results.json").read_text())[data] for s in (7, 8)]
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    values = [result["sem_seg"]["mIoU"] for result in own]
    assert content["scores"][data]["sem_seg"]["mIoU"] == {
        "mean": pytest.approx(statistics.mean(values)),
        "std": pytest.approx(abs(values[0] - values[1]) / 2**0.5),
        "values": values,
    }
    assert (tmp_path / "out" / "seed_8" / "model_final.pth").is_file()
    capsys.readouterr()
    with pytest.raises(SystemExit) as again:
        train()
    assert again.value.code == 0 and "0 to run" in capsys.readouterr().out
    with pytest.raises(SystemExit) as refused:
        train("--eval-only", "--resume")
    assert refused.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("train_net.py: --")

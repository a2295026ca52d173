"""The command, its page from records written by hand, and one real curve of two tiny trainings."""

import json
import re
from pathlib import Path

import pytest

from densesiam_d2.grid import Cell, Score
from densesiam_d2.grid.records import write_record
from densesiam_d2.samples.scenes import CLASSES, write_scenes
from densesiam_d2.tools.low_shot import main, write_low_shot_page

CONFIG = str(Path(__file__).parents[2] / "configs" / "quick" / "fcn_instant_test.yaml")
PRETRAIN = CONFIG.replace("fcn", "pretrain")
HARDWARE = {"cpu": "Some CPU", "cores": 2, "gpus": [], "torch": "2.6"}


@pytest.fixture
def words(tmp_path, catalog):
    write_scenes(tmp_path / "scenes", num=4, seed=0, size=64)
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    data = f"masks:{tmp_path}/scenes/images,labels={tmp_path}/scenes/sem_seg,classes={tmp_path}/classes.txt"

    def make(*more, labels=("2", "all"), starts=("scratch",), config=CONFIG):
        ret = ["--config-file", config, "--train", data, "--test", data, "--labels", *labels, "--starts", *starts]
        # 0.00005 * 57,600 * sqrt(4 / 1,183) images: one iteration
        return [*ret, "--length", "0.00005", "--seeds", "1", "--output", str(tmp_path / "out"), *more]

    return make


def test_page_from_records(tmp_path):
    """Two seeds of two starts; with 10 labels, ours has 20 and 24, scratch 10 and 12; with all, one failed."""
    scores = {
        ("scratch", 10): (10.0, 12.0),
        ("ours", 10): (20.0, 24.0),
        ("scratch", 40): (30.0, None),
        ("ours", 40): (33.0, 35.0),
    }
    cells = []
    for (start, count), values in scores.items():
        for seed, value in enumerate(values):
            name = f"{start}/labels_{count}/seed_{seed}"
            axes = {"start": start, "labels": count, "seed": seed}
            score = (Score("mask AP", "r.json", "AP"),)
            cell = Cell(name, "low_shot", ("x", name), tmp_path, axes, scores=score, work=5 * count)
            record = {"state": "done", "words": cell.fixed_words, "command": "", "needs": {}, "date": "today"}
            record |= {"hardware": HARDWARE, "code": "abc", "seconds": 9.0, "scores": {"mask AP": value}}
            write_record(cell, record if value else {**record, "state": "failed", "error": "no memory"})
            cells.append(cell)
    path = write_low_shot_page(tmp_path, cells, {10: 10, "all": 40}, "python -m low_shot")
    page = path.read_text()
    assert re.findall(r"<th>(.*?)</th>", page)[:5] == [
        "labels",
        "start",
        "iterations",
        "mask AP",
        "mask AP minus scratch",
    ]
    assert re.findall(r"<td>(.*?)</td>", page)[:20] == [
        *("10", "scratch", "50", "11.0 ± 1.4", ""),
        *("10", "ours", "50", "22.0 ± 2.8", "+11.0 (clear)"),
        *("40 (all)", "scratch", "200", "30.0 (1 failed)", ""),
        *("40 (all)", "ours", "200", "34.0 ± 1.4", "+4.0 (one seed)"),
    ]
    assert "<td>scratch/labels_40/seed_1</td><td>failed: no memory</td>" in page and "7 of 8 runs are done" in page
    assert page.count("data:image/png;base64,") == 1 and "$ python -m low_shot" in page
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["iterations"] == {"10": 50, "40": 200} and content["command"] == "python -m low_shot"
    rows = {(row["start"], row["labels"]): row["scores"]["mask AP"] for row in content["rows"]}
    assert rows["ours", 10]["values"] == [20, 24] and rows["ours", 10]["mean"] == 22
    assert list(content["missing"]) == ["scratch/labels_40/seed_1"]


def test_what_cannot_work_stops_before_the_grid(words, tmp_path, capsys):
    (tmp_path / "text.pkl").write_text("no weights")
    for line, says in [
        (
            words(starts=["scratch", "no.pkl", f"bad={tmp_path}/text.pkl"]),
            "no: MODEL.WEIGHTS: file no.pkl does not exist",
        ),
        (words(labels=["5"]), "--labels 5: masks:"),
        (words("SOLVER.MAX_ITER", "3"), "SOLVER.MAX_ITER is set by this tool: leave it out"),
        (words("SOLVER.BASE_RL", "3"), f"{CONFIG} or the command line: no config key SOLVER.BASE_RL; did you"),
        ([*words()[:-2], "--output", str(tmp_path / "out"), "--jobs", "0"], "--jobs 0: at least 1"),
        ([*words()[:-2], "--output", str(tmp_path / "out"), "--length", "inf"], "--length inf: a number above 0"),
        ([*words()[:-2], "--output", str(tmp_path / "out"), "--length", "nan"], "--length nan: a number above 0"),
        (words(config=PRETRAIN), f"{PRETRAIN}: DenseSiam does not learn from labels"),
    ]:
        assert main(line) == 2
        assert f"low_shot: {says}" in capsys.readouterr().err.replace(
            "these starts cannot be used (scratch is random weights):\n  ", ""
        )
        assert not (tmp_path / "out").exists()


def test_dry_run_prints_the_commands(words, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    line = words()
    del line[-2:]  # --output has a default
    assert main(["--dry-run", *line]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "2 labels (2 images): 1 iterations of 4" in lines and "all labels (4 images): 1 iterations of 4" in lines
    commands = [line for line in lines if line.startswith("python ")]
    assert len(commands) == 2 and not Path("output/low_shot").exists()
    for command, labels in zip(commands, ("2", "all"), strict=True):
        assert f"OUTPUT_DIR {Path('output/low_shot').resolve()}/scratch/labels_{labels}/seed_0" in command


@pytest.mark.slow
def test_a_real_curve(words, tmp_path, capsys):
    assert main(words()) == 0, capsys.readouterr().out
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert content["missing"] == {} and [row["labels"] for row in content["rows"]] == [2, 4]
    for row, word in zip(content["rows"], ("2", "all"), strict=True):
        (own,) = json.loads(
            (tmp_path / "out" / "scratch" / f"labels_{word}" / "seed_0" / "results.json").read_text()
        ).values()
        assert row["scores"]["mIoU"]["values"] == [own["sem_seg"]["mIoU"]]
    assert "2 of 2 runs are done" in (tmp_path / "out" / "report.html").read_text()
    capsys.readouterr()
    assert main(words()) == 0
    assert "0 to run" in capsys.readouterr().out

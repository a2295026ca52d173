"""The command, and one grid with a real training that is interrupted."""

import json
import math
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from densesiam_d2.reporting.curves import draw_scores
from densesiam_d2.tools import grid
from densesiam_d2.tools.grid import main

ROOT = Path(__file__).parents[2]
YAML = """
axes: {method: [a, b], seed: [0, 1]}
words: {number: 0}
values: {method: {b: {number: 10}}}
stages:
  count:
    over: [method, seed]
    command: python -c "open('{folder}/r.json', 'w').write(str({number} + 4 * {seed}).join(['{{\\"AP\\":', '}}']))"
    scores: {AP: [r.json, AP]}
"""


@pytest.fixture
def words(tmp_path):
    (tmp_path / "grid.yaml").write_text(YAML)
    return [str(tmp_path / "grid.yaml"), "--output", str(tmp_path / "out")]


def test_run_and_table(words, tmp_path, capsys):
    assert main(["run", *words, "--dry-run", "--set", "seed=1"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2 and not (tmp_path / "out").exists()
    assert main(["run", *words, "--set", "method=b"]) == 0
    capsys.readouterr()
    files = ["--markdown", str(tmp_path / "new" / "t.md"), "--json", str(tmp_path / "new" / "t.json")]
    assert main(["table", *words, *files]) == 1
    text = capsys.readouterr().out
    # b: 10 and 14, mean 12, squared distances 4 + 4 over n - 1 = 1
    assert "| b | 12.0 ± 2.8 |" in text and "| a |" not in text and "Not done (2):" in text
    assert (tmp_path / "new" / "t.md").read_text() == f"<!-- begin grid -->\n{text}<!-- end grid -->\n"
    assert main(["table", *words, *files]) == 1 and (tmp_path / "new" / "t.md").read_text().count("| b | 12.0") == 1
    assert json.loads((tmp_path / "new" / "t.json").read_text())["rows"][1]["scores"]["AP"]["values"] == [10, 14]
    moved = [words[0], "--output", str(tmp_path / "moved"), "--json", str(tmp_path / "new" / "t.json")]
    assert main(["restore", *moved]) == 0 and main(["table", *moved[:3]]) == 1
    assert "| b | 12.0 ± 2.8 |" in capsys.readouterr().out
    assert main(["restore", *moved, "--set", "number=1"]) == 0  # nothing is left to restore
    assert main(["restore", moved[0], "--output", str(tmp_path / "third"), *moved[3:], "--set", "seed=0"]) == 0
    assert "1 of 2 cells are taken from" in capsys.readouterr().out
    (tmp_path / "new" / "t.json").write_text("{")
    assert main(["restore", *moved]) == 2 and f"{tmp_path}/new/t.json" in capsys.readouterr().err
    assert main(["run", *words]) == 0
    assert main(["table", *words]) == 0


PLOTTED = """
axes: {labels: [25, 10, 50], start: [a, b], seed: [0, 1]}
words: {value: "{labels}"}
values: {start: {b: {value: "2 * {labels}"}}}
stages:
  other: {over: [start], command: "true", scores: {AP: [r.json, AP], n: [r.json, n]}}
  count:
    over: [labels, start, seed]
    command: python -c "open('{folder}/r.json', 'w').write(str({value} + 4 * {seed}).join(['{{\\"AP\\":', '}}']))"
    scores: {AP: [r.json, AP]}
"""


def test_a_plot_has_a_line_for_each_other_value(tmp_path, monkeypatch, capsys):
    """Of two seeds, a has the labels and 4 more: mean + 2, deviation sqrt(8); b the same with twice the labels."""
    (tmp_path / "grid.yaml").write_text(PLOTTED)
    words = [str(tmp_path / "grid.yaml"), "--output", str(tmp_path / "out")]
    assert main(["run", *words, "--only", "count", "--set", "labels=10,25"]) == 0
    drawn = {}

    def draw(lines, **more):
        drawn.update(more, lines=lines)
        return draw_scores(lines, **more)

    monkeypatch.setattr(grid, "draw_scores", draw)
    file = tmp_path / "new" / "curve.png"
    assert main(["table", *words, "--plot", str(file), "labels", "AP"]) == 1
    std = pytest.approx(math.sqrt(8))
    assert drawn["lines"] == {"a": [(25, 27, std), (10, 12, std)], "b": [(25, 52, std), (10, 22, std)]}
    assert drawn["ticks"] == {25: "25", 10: "10", 50: "50"} and (drawn["x"], drawn["y"]) == ("labels", "AP")
    assert Image.open(file).size[0] > 600
    capsys.readouterr()
    for plot, says in (
        (["c.png", "label", "AP"], "there is no axis label; did you mean labels?"),
        (["c.png", "labels", "mAP"], "there is no score mAP; did you mean AP?"),
        (["c.png", "start", "AP"], "the axis start has the value a, which is not a number"),
        (["c.png", "labels", "n"], "no cell with the score n has the axis labels"),
        (["c.pn", "labels", "AP"], "unknown file extension: .pn"),
    ):
        assert main(["table", *words, "--plot", *plot]) == 2
        assert says in capsys.readouterr().err


def test_the_table_goes_between_its_lines_of_a_document(words, tmp_path, capsys):
    document = tmp_path / "results.md"
    document.write_text("# Results\n<!-- begin grid -->\nold\n<!-- end grid -->\nWhat it shows.\n")
    main(["run", *words, "--set", "method=b"])
    for _ in range(2):
        main(["table", *words, "--set", "method=b", "--markdown", str(document)])
    first = document.read_text()
    document.write_text(f"<!-- begin more -->\n<!-- end more -->\n{first}")
    main(["table", *words, "--set", "method=b", "--markdown", str(document), "--name", "more"])
    more, _, rest = document.read_text().partition("<!-- end more -->\n")
    assert "| b | 12.0 ± 2.8 |" in more and rest == first
    lines = first.splitlines()
    assert lines[:2] == ["# Results", "<!-- begin grid -->"] and lines[-2:] == ["<!-- end grid -->", "What it shows."]
    assert lines.count("| b | 12.0 ± 2.8 |") == 1 and "old" not in lines


@pytest.mark.parametrize(
    "lines",
    [
        "",
        "<!-- begin grid -->\n",
        "<!-- end grid -->\n<!-- begin grid -->\n",
        "<!-- begin grid-->\n<!-- end grid -->\n",
    ],
)
def test_a_document_without_both_lines_is_kept(words, tmp_path, capsys, lines):
    document = tmp_path / "results.md"
    document.write_text(f"# Results\n{lines}What it shows.\n")
    assert main(["table", *words, "--markdown", str(document)]) == 2
    assert "results.md: write the lines <!-- begin grid --> and <!-- end grid -->" in capsys.readouterr().err
    assert document.read_text() == f"# Results\n{lines}What it shows.\n"
    document.write_bytes(b"\xff")
    assert main(["table", *words, "--markdown", str(document)]) == 2
    assert f"--markdown {document}: 'utf-8' codec" in capsys.readouterr().err


def test_a_failed_cell_is_listed(words, capsys):
    assert main(["run", *words, "--set", "number=1/0", "method=a", "seed=0"]) == 1
    assert "not done (1):\n  count/a/seed_0: failed, exit code 1: ZeroDivisionError" in capsys.readouterr().out
    assert main(["table", *words, "--set", "number=1/0", "method=a", "seed=0"]) == 1
    assert "- count/a/seed_0: failed: exit code 1: ZeroDivisionError" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--only", "cont"], "--only cont: no such stage in"),
        (["--set", "method=c"], "method has no value c"),
        (["--jobs", "0"], "--jobs 0: at least 1"),
    ],
)
def test_wrong_usage_is_one_line(words, more, says, capsys):
    assert main(["run", *words, *more]) == 2
    assert says in capsys.readouterr().err


def test_another_command_is_refused(words, capsys):
    assert main(["run", *words]) == 0
    assert main(["run", *words, "--set", "number=5"]) == 2
    assert "count/a/seed_0 was done with another command" in capsys.readouterr().err


TRAINING = """
axes: {seed: [0]}
stages:
  pretrain:
    over: [seed]
    command: >
      python train_net.py --config-file configs/quick/pretrain_instant_test.yaml --resume auto SOLVER.MAX_ITER 40
      SOLVER.CHECKPOINT_PERIOD 1000 SEED {seed} OUTPUT_DIR {folder}
"""


@pytest.mark.slow
def test_an_interrupted_training_goes_on(tmp_path):
    (tmp_path / "grid.yaml").write_text(TRAINING)
    folder = tmp_path / "out" / "pretrain" / "seed_0"
    command = [sys.executable, "-m", "densesiam_d2.tools.grid", "run", str(tmp_path / "grid.yaml")]
    command += ["--output", str(tmp_path / "out")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    end = time.monotonic() + 400
    while not ((folder / "log.txt").is_file() and "Starting training from" in (folder / "log.txt").read_text()):
        assert process.poll() is None and time.monotonic() < end, process.communicate(timeout=10)[0]
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=200)[0]
    assert process.returncode == 75 and said.endswith("grid: stopped; run the same command again\n"), said
    record = json.loads((folder / "cell.json").read_text())
    assert record["state"] == "stopped" and list(folder.glob("model_*.pth")) and not (folder / "backbone.pkl").exists()

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
    finished = json.loads((folder / "cell.json").read_text())
    assert finished["state"] == "done" and finished["seconds"] > record["seconds"]
    starts = re.findall(r"Starting training from iteration (\d+)", (folder / "log.txt").read_text())
    assert starts[0] == "0" and int(starts[-1]) > 0
    assert (folder / "backbone.pkl").exists()

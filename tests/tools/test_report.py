"""The report of real, tiny runs, at their end and while they write."""

import json
import re
import shutil

import cv2
import numpy as np
import pytest

from densesiam_d2.tools.report import main
from tests.reporting.test_page import References

METRICS = {"total_loss": -0.5, "loss_pixel": -0.5, "lr": 0.1, "eta_seconds": 90.0, "ssl/z_std_ideal": 0.25}


@pytest.fixture
def pretraining(tmp_path):
    """The folder of a pretraining as it is in the middle: two lines of numbers and a third that is cut."""
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(3):
        cv2.imwrite(
            str(tmp_path / "photos" / f"{i}.png"), cv2.resize(rng.integers(0, 256, (6, 8, 3), np.uint8), (80, 60))
        )
    run = tmp_path / "run"
    run.mkdir()
    (tmp_path / "base.yaml").write_text("VERSION: 2\nMODEL: {META_ARCHITECTURE: DenseSiam}\nSOLVER: {MAX_ITER: 80}\n")
    more = f"INPUT: {{FORMAT: RGB, SSL: {{VIEW_SIZE: 32}}}}\nDATASETS: {{TRAIN: ['folder:{tmp_path}/photos']}}\n"
    (run / "config.yaml").write_text((tmp_path / "base.yaml").read_text() + more)
    values = {"ssl/between": (0.9, 0.2), "ssl/effective_rank": (9.0, 8.0), "probe/ridge/mIoU": (40.0, 30.0)}
    lines = [{"iteration": 20 * i - 1, **METRICS, **{k: v[i - 1] for k, v in values.items()}} for i in (1, 2)]
    (run / "metrics.json").write_text("\n".join([*map(json.dumps, lines), '{"iteration": 59, "total']))
    start = f"Namespace(config_file='{tmp_path}/base.yaml', eval_only=False, opts=['OUTPUT_DIR', '{run}'])"
    (run / "log.txt").write_text(f"[...] INFO: Command line arguments: {start}\n")
    (run / "quarantine.jsonl").write_text('{"file_name": "/torn <1>.jpg", "reason": "cut off", "rank": 0}\n')
    (run / "model_0000019.pth").write_bytes(bytes(10))
    (run / "last_checkpoint").write_text("model_0000019.pth")
    return run


def report(run, capsys):
    """Write the report; return it after checking that it is well-formed and needs nothing else."""
    assert main([str(run)]) == 0
    path = capsys.readouterr().out.strip()
    assert path == str(run / "report.html")
    text = (run / "report.html").read_text()
    references = References()
    references.feed(text)
    assert references.open == []
    assert all(address.startswith(("data:image/", "#")) for address in references.addresses)
    return text


def section(text, title):
    return re.search(rf"<h2>{title}</h2>(.*?)</section>", text, re.DOTALL)[1]


def test_while_it_trains(pretraining, capsys):
    text = report(pretraining, capsys)
    assert "40 of 80 (50%)" in section(text, "State") and "not at its end" in section(text, "State")
    collapse = section(text, "Collapse numbers")
    assert "show a collapse: between below 0.5: all images look alike" in collapse
    assert "Healthy from 0.5. Last: 0.2." in collapse and collapse.count("<img") == 2
    curves = section(text, "Curves")
    assert "mIoU: last 30.0, highest 40.0 at 20." in curves
    assert curves.count("<img") == 4  # two losses, the rate, the probe
    assert section(text, "Views").count("<img") == 1
    assert "/torn &lt;1&gt;.jpg" in section(text, "Files set aside")
    assert "--resume starts here" in section(text, "Checkpoints")
    cells = re.findall(r"<td>(.*?)</td>", section(text, "Config").partition("<details>")[0])
    assert [cells[i] for i in range(0, len(cells), 3)] == ["DATASETS.TRAIN", "INPUT.FORMAT", "INPUT.SSL.VIEW_SIZE"]
    assert f"base.yaml OUTPUT_DIR {pretraining}_again" in section(text, "Commands")
    assert "<h2>Scores</h2>" not in text


def test_at_its_end_without_its_images(pretraining, capsys):
    """A healthy run whose images have gone: the page says so and has everything else."""
    shutil.rmtree(pretraining.parent / "photos")
    (pretraining / "model_final.pth").touch()
    (pretraining / "last_checkpoint").write_text("model_final.pth")
    healthy = (pretraining / "metrics.json").read_text().replace("0.2,", "0.8,").rpartition("\n")[0]
    at_the_end = [{"iteration": 79, **METRICS}, {"iteration": 80, "segm/AP": 12.34}]
    (pretraining / "metrics.json").write_text("\n".join([healthy, *map(json.dumps, at_the_end)]))
    results = {"set": {"segm": {"AP": 12.34, "AP-cat": None}, "bbox": {"AP": 23.5}, "absent_classes": ["dog"]}}
    (pretraining / "results.json").write_text(json.dumps(results))
    text = report(pretraining, capsys)
    assert "80 of 80 (100%)" in text and "AP: last 12.3, highest 12.3 at 80." in text
    assert "training has ended" in text and "The last values show no collapse." in text
    assert "photos does not exist" in section(text, "Views")
    scores = section(text, "Scores")
    assert re.findall(r"<td>(.*?)</td>", scores) == ["cat", "n/a", "masks", "12.3", "boxes", "23.5"]
    assert "dog" in scores


def test_commands_have_the_number_of_processes(pretraining, capsys):
    log = pretraining / "log.txt"
    log.write_text(log.read_text().replace("eval_only=False", "eval_only=False, num_gpus=8"))
    commands = re.findall(r"train_net\.py .*?(?=<)", section(report(pretraining, capsys), "Commands"))
    assert len(commands) == 3 and all("--num-gpus 8" in command for command in commands)


def test_seeds_and_half_written_files(tmp_path, capsys):
    scores = {"set": {"segm": {"AP": {"mean": 10.0, "std": 1.25, "values": [9, 11]}}}}
    (tmp_path / "results.json").write_text(
        json.dumps({"seeds": [0, 1], "not_done": {"seed_2": "no"}, "scores": scores})
    )
    (tmp_path / "config.yaml").write_text("MODEL: {META")
    text = report(tmp_path, capsys)
    assert "10.0 ± 1.2" in text and "seed_2 is not done: no" in text
    assert "2 seeds, 1 not done" in section(text, "State") and "In the folders of the seeds." in text
    assert "Could not be read" in text and "config.yaml" in text


def test_odd_scores_and_numbers_leave_a_page(tmp_path, capsys):
    scores = {"set": {"segm": {"AP": {"mean": "high"}, "AP50": {"mean": 20.0, "std": "small"}, "AP75": [1, 2]}}}
    (tmp_path / "results.json").write_text(json.dumps(scores))
    (tmp_path / "metrics.json").write_text(
        '{"iteration": 1, "total_loss": [1]}\n[]\n{"iteration": 2, "total_loss": 3}\n'
    )
    text = report(tmp_path, capsys)
    assert re.findall(r"<td>(.*?)</td>", section(text, "Scores")) == ["masks", "n/a", "20.0", "[1, 2]"]
    assert "metrics.json, 2 lines or values in it; the first: line 2 is no JSON object" in text


def test_a_yaml_that_has_become_wrong_is_told(pretraining, capsys):
    (pretraining.parent / "base.yaml").write_text("SOLVER: {NO_KEY: 1}\n")
    text = section(report(pretraining, capsys), "Config")
    assert "base.yaml, cannot be read any more: " in text and "no config key SOLVER.NO_KEY" in text
    assert "keys differ" in text


def test_a_relative_folder_has_its_name(pretraining, capsys, monkeypatch):
    monkeypatch.chdir(pretraining)
    assert main(["."]) == 0
    text = (pretraining / "report.html").read_text()
    assert f"<title>DenseSiam: {pretraining.name}</title>" in text and f"OUTPUT_DIR {pretraining}_again" in text


def test_no_run_is_one_line(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert re.fullmatch(r"report: .* holds no run.*\n", capsys.readouterr().err)


def test_a_folder_as_the_page_is_one_line(tmp_path, capsys):
    assert main([str(tmp_path), "--output", str(tmp_path)]) == 2
    assert re.fullmatch(r"report: --output .* cannot be written: name a file .*\n", capsys.readouterr().err)

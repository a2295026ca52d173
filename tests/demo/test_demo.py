"""The whole demo through the real entrypoint, two iterations a stage."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from densesiam_d2.demo import __main__ as demo
from densesiam_d2.engine.run_lock import lock_file
from densesiam_d2.reporting.stages import ROOT


def run_demo(folder):
    command = [sys.executable, "-m", "densesiam_d2.demo", "--quick", "--output", str(folder / "demo")]
    environment = {**os.environ, "DETECTRON2_DATASETS": str(folder / "datasets")}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_quick_demo(tmp_path):
    pytest.importorskip("skimage")
    pytest.importorskip("imgviz")
    first = run_demo(tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    report = tmp_path / "demo" / "report.html"
    assert first.stdout.rstrip().endswith(f"The report: {report}")
    assert "[10/10]" in first.stdout

    text = report.read_text()
    results = json.loads((tmp_path / "demo" / "results.json").read_text())
    assert "its numbers and pictures mean nothing" in text
    assert "http:" not in text and "https:" not in text
    for scores in results["unsupervised_segmentation"].values():
        assert f"<td>{scores['mIoU']:.1f}</td>" in text
    assert set(results["mask_rcnn"]) == {"ImageNet, then DenseSiam", "ImageNet", "random weights"}
    # One picture of all. Pretraining: views, three losses, six collapse numbers; segmentation: legend, scenes,
    # photographs; Mask R-CNN: three losses, predictions.
    assert len(results["stages"]) == 8 and text.count("<img ") == 1 + 10 + 3 + 4
    assert (tmp_path / "demo" / "overview.jpg").is_file()
    for name in results["stages"]:
        assert f'href="{name}/report.html"' in text and (tmp_path / "demo" / name / "report.html").is_file()

    second = run_demo(tmp_path)
    assert second.stdout.count("already done") == 8


def test_ctrl_c_is_one_line(monkeypatch, capsys, tmp_path):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run", interrupted)
    with pytest.raises(SystemExit) as error:
        demo.main(["--output", str(tmp_path)])
    assert error.value.code == 130 and "demo: interrupted" in capsys.readouterr().err


def test_a_stage_ends_with_the_demo(tmp_path):
    """A killed demo must leave no training that goes on in its folder."""
    code = (
        "import sys; from pathlib import Path; from densesiam_d2.reporting import stages\n"
        "stage = stages.Stage('s', 's', sys.argv[2], Path(sys.argv[1]), opts=('SOLVER.MAX_ITER', '100000'))\n"
        "stages.run_stage(stage, position='[1/1]')"
    )
    config = ROOT / "configs" / "quick" / "pretrain_instant_test.yaml"
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "stage"), str(config)], cwd=ROOT)
    log = tmp_path / "stage" / "log.txt"
    try:
        wait_for(lambda: log.is_file() and "Starting training" in log.read_text())
        words = f"OUTPUT_DIR\0{tmp_path / 'stage'}".encode()
        (child,) = (p for p in Path("/proc").glob("[0-9]*") if p.name != str(parent.pid) and words in cmdline(p))
    finally:
        parent.kill()
    parent.wait()
    wait_for(lambda: words not in cmdline(child))


def cmdline(process):
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


def wait_for(condition):
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)


def test_mistakes_are_one_line(tmp_path):
    (tmp_path / "demo" / "pretrain").mkdir(parents=True)
    (tmp_path / "demo" / "pretrain" / "model_final.pth").touch()
    done = run_demo(tmp_path)
    assert done.returncode == 1
    assert "demo: " in done.stderr and "choose another output folder" in done.stderr and "Traceback" not in done.stderr


def test_a_folder_serves_one_demo_at_a_time(tmp_path):
    with lock_file(tmp_path / "demo" / ".demo.lock"):
        done = run_demo(tmp_path)
    assert done.returncode == 1
    assert re.fullmatch(
        r"demo: --output .*demo is in use by pid \d+ .*: wait for it, or name another folder\n", done.stderr
    )

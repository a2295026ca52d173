"""The whole demo through the real entrypoint, two iterations a stage."""

import json
import os
import subprocess
import sys

import pytest

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


def test_mistakes_are_one_line(tmp_path):
    (tmp_path / "demo" / "pretrain").mkdir(parents=True)
    (tmp_path / "demo" / "pretrain" / "model_final.pth").touch()
    done = run_demo(tmp_path)
    assert done.returncode == 1
    assert "demo: " in done.stderr and "choose another output folder" in done.stderr and "Traceback" not in done.stderr

import json
import shutil

import numpy as np
import pytest
import torch

from densesiam_d2.evaluation.confusion import confusion_matrix, scores
from densesiam_d2.evaluation.sem_seg import read_labels
from densesiam_d2.probe.features import build_features
from densesiam_d2.samples.scenes import CLASSES, write_scenes
from densesiam_d2.tools.probe import main
from tests.data_trees import real_data

YAML = """
MODEL:
  DEVICE: cpu
  PIXEL_MEAN: [123.675, 116.28, 103.53]
  PIXEL_STD: [58.395, 57.12, 57.375]
  RESNETS: {DEPTH: 18, RES2_OUT_CHANNELS: 64, NORM: SyncBN, OUT_FEATURES: [res5]}
  BACKBONE: {FREEZE_AT: 0}
INPUT: {FORMAT: RGB}
"""


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Two drawn sets of scenes, with label maps and instances."""
    root = tmp_path_factory.mktemp("scenes")
    for name, num, seed in (("train", 10, 0), ("test", 4, 1)):
        write_scenes(root / name, num, seed, size=96)
    (root / "classes.txt").write_text("\n".join(CLASSES))
    return root


@pytest.fixture
def run(catalog, scenes, tmp_path):
    """The command; returns exit status and JSON."""
    torch.set_num_threads(1)
    (tmp_path / "probe.yaml").write_text(YAML)
    number = iter(range(99))

    def command(*more, kind="semantic", train="train", test="test", weights=("random",), output=None):
        sets = {
            "semantic": "masks:{0}/images,labels={0}/sem_seg,classes=" + str(scenes / "classes.txt"),
            "instances": "coco:{0}/instances.json,images={0}/images",
        }
        train, test = (sets[kind].format(scenes / n) if n in ("train", "test") else n for n in (train, test))
        output = output or tmp_path / f"{next(number)}.json"
        args = ["--config-file", tmp_path / "probe.yaml", "--weights", *weights, "--train", train, "--test", test]
        status = main([str(word) for word in (*args, "--size", "96", "--output", output, *more)])
        return status, json.loads(output.read_text()) if output.is_file() else None

    return command


def test_semantic_set(run, scenes, capsys):
    status, report = run("SEED", "3")
    assert status == 0
    assert report["command"].startswith("python -m densesiam_d2.tools.probe --config-file ")
    assert (report["seed"], report["size"], report["features"]) == (3, 96, ["res3", "res4", "res5"])
    assert (report["train"]["images"], report["test"]["images"]) == (10, 4)
    assert report["classes"] == list(CLASSES)
    result = report["results"]["random"]
    assert (result["channels"], result["stride"], result["cells"]) == (128 + 256 + 512, 8, 10 * 12 * 12)
    assert result["knn_cells"] == 1440
    assert list(result["knn"]) == ["1", "10", "30"]
    assert result["ridge"]["lambda"] in (0.01, 0.1, 1, 10, 100, 1000, 10000)
    # Better than the most frequent class everywhere.
    truth = [read_labels(path) for path in sorted((scenes / "test" / "sem_seg").glob("*.png"))]
    common = np.bincount(np.concatenate(truth).ravel(), minlength=len(CLASSES)).argmax().astype(np.uint8)
    constant = sum(confusion_matrix(t, np.full_like(t, common), len(CLASSES), len(CLASSES), 255) for t in truth)
    for found in (result["ridge"], *result["knn"].values()):
        assert found["mIoU"] > 2 * scores(constant)["mIoU"]
        known = [iou for iou in found["IoU"].values() if iou is not None]
        assert found["mIoU"] == pytest.approx(np.mean(known))
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["mIoU", "in", "percent", "images", "ridge", "1-NN", "10-NN", "30-NN"]
    assert table[1].split()[:3] == ["random", "10", f"{result['ridge']['mIoU']:.1f}"]


def test_two_runs_give_equal_numbers(run):
    first, again, other = (run("--knn", "3", "--knn-cells", "500", "SEED", seed)[1] for seed in "001")
    for report in (first, again, other):
        del report["results"]["random"]["seconds"], report["command"]
    assert first == again
    assert first["results"] != other["results"]


def test_all_probes_with_fewer_labels(run, capsys):
    """Four of the ten images twice, and all of them; the table has mean and deviation of the four."""
    small = ("--knn", "1", "--epochs", "2", "--memory-cells", "500", "--labels", "4", "--seeds", "2")
    status, report = run("--probes", "ridge", "linear", "retrieval", *small)
    assert status == 0
    result = report["results"]["random"]
    assert (result["linear"]["steps"], result["retrieval"]["cells"]) == (2 * 10, 2 * 10 * (500 // 20))
    first, second = (result["low_data"]["4"][seed] for seed in "01")
    assert (first["cells"], first["linear"]["steps"]) == (4 * 12 * 12, 2 * 4)
    assert first["retrieval"]["mIoU"] != second["retrieval"]["mIoU"]
    assert all(name in r for r in (result, first) for name in ("ridge", "knn", "linear", "retrieval"))
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["mIoU", "in", "percent", "images", "ridge", "1-NN", "linear", "retrieval"]
    scores = [r["linear"]["mIoU"] for r in (first, second)]
    low = table[2].split()
    assert low[:2] == ["random", "4"]
    assert low[8:11] == [f"{np.mean(scores):.1f}", "±", f"{np.std(scores, ddof=1):.1f}"]


def test_one_probe_alone(run):
    status, report = run("--probes", "retrieval", "--memory-cells", "100")
    assert status == 0
    assert set(report["results"]["random"]) == {"channels", "stride", "retrieval"}


def test_instances_are_foreground(run, scenes):
    status, report = run("--features", "res2", "--knn", "1", "--knn-cells", "6000", kind="instances")
    assert status == 0
    assert report["classes"] == ["background", "foreground"]
    # Who guesses at the foreground's share p of the pixels has an IoU of p^2 / (2 p - p^2).
    areas = [a["area"] for a in json.loads((scenes / "test" / "instances.json").read_text())["annotations"]]
    share = sum(areas) / (4 * 96 * 96)
    assert report["results"]["random"]["knn"]["1"]["IoU"]["foreground"] > 2 * 100 * share / (2 - share)


def test_several_weights_in_one_table(run, tmp_path, capsys):
    from densesiam_d2.engine.setup import load_config

    cfg = load_config(str(tmp_path / "probe.yaml"))
    model = build_features(cfg, ["res3", "res4", "res5"], weights="", size=96, seed=0)
    torch.save({"model": model.state_dict()}, tmp_path / "saved.pth")
    weights = ["random", str(tmp_path / "saved.pth")]
    status, report = run("--knn", "1", "--knn-cells", "100", weights=weights)
    assert status == 0
    first, second = (report["results"][name] for name in weights)
    assert first["ridge"] == second["ridge"]  # the file holds the random network of seed 0
    assert len(capsys.readouterr().out.splitlines()) == 4


def error_of(run, capsys, *more, **kwargs):
    status, report = run(*more, **kwargs)
    assert (status, report) == (2, None)
    return capsys.readouterr().err


def test_wrong_usage_is_one_line(run, capsys, tmp_path):
    assert "saved.pth does not exist" in error_of(run, capsys, weights=["random", str(tmp_path / "saved.pth")])
    assert "--weights '' is empty: name a file, or random" in error_of(run, capsys, weights=[""])
    assert "names random twice" in error_of(run, capsys, weights=["random", "random"])
    assert "features res7: the backbone" in error_of(run, capsys, "--features", "res7")
    assert "--knn [0] must be positive" in error_of(run, capsys, "--knn", "0")
    assert "--knn names 1 twice" in error_of(run, capsys, "--knn", "1", "10", "1")
    assert "not above --knn-cells 20" in error_of(run, capsys, "--knn-cells", "20")
    assert "size 0 must be positive" in error_of(run, capsys, "--size", "0")
    assert "--labels 10: it must be 2 or more, and less than the 10" in error_of(run, capsys, "--labels", "10")
    assert "--seeds 0 must be positive" in error_of(run, capsys, "--seeds", "0")
    assert "cannot be written" in error_of(run, capsys, output=tmp_path / "no" / "probe.json")
    assert "no config key SEEED; did you mean SEED?" in error_of(run, capsys, "SEEED", "1")
    coco = f"coco:{tmp_path / 'no.json'}"
    assert "no.json does not exist" in error_of(run, capsys, kind="instances", train=coco)


def test_sets_must_fit_each_other(run, scenes, capsys):
    instances = f"coco:{scenes}/test/instances.json,images={scenes}/test/images"
    assert "they must be equal" in error_of(run, capsys, test=instances)


def test_labels_without_names(run, scenes, tmp_path, capsys):
    for folder in ("images", "sem_seg"):
        shutil.copytree(scenes / "test" / folder, tmp_path / "nameless" / folder)
    nameless = f"masks:{tmp_path}/nameless/images,labels={tmp_path}/nameless/sem_seg"
    assert "add ,classes=FILE" in error_of(run, capsys, train=nameless)


def test_real_images(run, tmp_path):
    camvid = real_data("camvid")
    names = "sky building pole road pavement tree sign fence car pedestrian bicyclist"
    (tmp_path / "classes.txt").write_text(names.replace(" ", "\n"))
    train, test = (
        f"masks:{camvid}/images/{split},labels={camvid}/labels/{split},classes={tmp_path}/classes.txt,subset={number}"
        for split, number in (("train", 8), ("test", 3))
    )
    status, report = run("--knn", "10", "--knn-cells", "1000", train=train, test=test)
    assert status == 0
    ious = report["results"]["random"]["ridge"]["IoU"]
    assert ious["sky"] > 50  # bright and on top: colour tells
    assert ious["road"] > 50

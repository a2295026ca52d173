"""The probe during pretraining: its numbers are those of the tool, and the training does not notice it."""

import json
import logging
import re
from pathlib import Path

import pytest
import torch
from detectron2.engine import hooks

import train_net
from densesiam_d2.checkpoint.files import read_checkpoint
from densesiam_d2.engine import Trainer, argument_parser, checked_config
from densesiam_d2.engine.early_stop import EarlyStopHook, LeaveLoopHook
from densesiam_d2.engine.probe import ProbeHook
from densesiam_d2.engine.saving import BestCheckpointHook, CheckpointHook
from densesiam_d2.engine.watchdog import WatchdogHook
from densesiam_d2.modeling import METHODS
from densesiam_d2.probe.features import build_random_features
from densesiam_d2.probe.run import probe
from densesiam_d2.samples.scenes import CLASSES, write_scenes
from densesiam_d2.tools.probe import main as probe_main
from tests.faults import runs
from tests.modeling.meta_arch.tiny import method_cfg, tiny_model

ROOT = Path(__file__).parents[2]
LOSSES = ("total_loss", "loss_pixel", "loss_region")
CONFIG = ROOT / "configs/quick/pretrain_instant_test.yaml"

pytestmark = pytest.mark.usefixtures("catalog")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Folders of labelled scenes: a train set of eight, a test set of three."""
    root = tmp_path_factory.mktemp("scenes")
    for name, num, seed in (("train", 8, 0), ("test", 3, 1)):
        write_scenes(root / name, num, seed, size=64)
    (root / "classes.txt").write_text("\n".join(CLASSES))
    return root


def probe_options(scenes, kind="semantic"):
    form = {
        "semantic": "masks:{0}/images,labels={0}/sem_seg,classes=" + str(scenes / "classes.txt"),
        "instances": "coco:{0}/instances.json,images={0}/images",
    }[kind]
    train, test = (form.format(scenes / name) for name in ("train", "test"))
    return ["TEST.PROBE.TRAIN", train, "TEST.PROBE.TEST", test, "TEST.PROBE.SIZE", "64"]


def words_of(scenes, folder, *more):
    words = ["MODEL.DEVICE", "cpu", "SEED", "3", "MODEL.WEIGHTS", "", "SOLVER.MAX_ITER", 5, "OUTPUT_DIR", folder]
    words += ["DATASETS.TRAIN", f"folder:{scenes}/train/images", "DATASETS.TEST", "()"]
    return ["--config-file", str(CONFIG), *map(str, words), *map(str, more)]


def run(scenes, folder, *more):
    args = argument_parser().parse_args(words_of(scenes, folder, *more))
    train_net.main(checked_config(args), args)
    return torch.load(folder / "model_final.pth", weights_only=True)


def rows_of(folder):
    rows = {}
    for line in (folder / "metrics.json").read_text().splitlines():
        row = json.loads(line)
        rows[row["iteration"]] = rows.get(row["iteration"], {}) | row
    return rows


def test_the_training_does_not_notice_the_probe(scenes, tmp_path):
    """Losses and weights are equal bit by bit; a probe that takes longer than five percent is named."""
    states = [run(scenes, tmp_path / "without", "SOLVER.MAX_ITER", 3)]
    states.append(run(scenes, tmp_path / "with", "SOLVER.MAX_ITER", 3, *probe_options(scenes), "TEST.PROBE.PERIOD", 1))
    names = states[0]["model"].keys()
    assert all(torch.equal(states[0]["model"][name], states[1]["model"][name]) for name in names)
    rows = [rows_of(tmp_path / folder)[2] for folder in ("with", "without")]
    assert [rows[0][name] for name in LOSSES] == [rows[1][name] for name in LOSSES]
    log = (tmp_path / "with" / "log.txt").read_text()
    found = re.findall(r"The probe took .* the 1 iterations .* set TEST.PROBE.PERIOD (\d+)", log)
    assert len(found) == 2 and all(int(period) > 1 for period in found)  # at the end there is no period before it


@pytest.mark.parametrize("kind", ["semantic", "instances"])
def test_the_numbers_are_those_of_the_tool(kind, scenes, tmp_path, catalog):
    """Five iterations, scored before them, after the second and the fourth, and at the end.

    detectron2 writes the metrics every 20 iterations and at the end, and only the last value of each: not the second's.
    """
    best = ("TEST.BEST_METRIC", "probe/mIoU")
    run(scenes, tmp_path / "out", *probe_options(scenes, kind), "TEST.PROBE.PERIOD", 2, *best)
    rows = {i: {n: v for n, v in row.items() if n.startswith("probe/")} for i, row in rows_of(tmp_path / "out").items()}
    scored = {i: row for i, row in rows.items() if row}
    names = {"probe/mIoU", "probe/pACC"}
    start = {"probe/start_mIoU", "probe/start_pACC"}
    assert {i: set(row) for i, row in scored.items()} == {0: start, 3: names, 5: names}

    sets = probe_options(scenes, kind)
    weights = [tmp_path / "out" / f"{name}.pkl" for name in ("backbone", "backbone_best")]
    args = ["--weights", *weights, "--knn", "--train", sets[1], "--test", sets[3], "--config-file", CONFIG]
    args += ["--output", tmp_path / "probe.json", "--size", "64"]
    assert probe_main([*map(str, args), "MODEL.DEVICE", "cpu", "SEED", "3"]) == 0
    last, at_best = json.loads((tmp_path / "probe.json").read_text())["results"].values()
    assert last["ridge"]["mIoU"] == pytest.approx(scored[5]["probe/mIoU"], abs=1e-9)
    assert last["ridge"]["pACC"] == pytest.approx(scored[5]["probe/pACC"], abs=1e-9)
    log = (tmp_path / "out" / "log.txt").read_text()
    values = [float(value) for value in re.findall(r"Probe on .*: mIoU ([\d.]+), pACC", log)[1:]]
    assert len(values) == 3
    assert at_best["ridge"]["mIoU"] == pytest.approx(max(values), abs=0.006)
    iteration = read_checkpoint(tmp_path / "out" / "backbone_best.pkl")["metadata"]["iteration"]
    assert iteration == (2, 4, 5)[values.index(max(values))]


def test_order_of_the_hooks(scenes, tmp_path):
    """The watchdog's clock is stopped before the probe, and a checkpoint knows the comparison of its iteration."""
    more = ["TEST.BEST_METRIC", "probe/mIoU", "TEST.PATIENCE", 2]
    cfg = checked_config(argument_parser().parse_args(words_of(scenes, tmp_path, *probe_options(scenes), *more)))
    found = [type(hook) for hook in Trainer(cfg)._hooks]
    order = [WatchdogHook, hooks.EvalHook, ProbeHook, BestCheckpointHook, EarlyStopHook, CheckpointHook, LeaveLoopHook]
    places = [found.index(kind) for kind in order]
    assert places == sorted(places) and places[-1] == len(found) - 1


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_the_probe_sees_the_exported_backbone_of_every_method(method):
    cfg = method_cfg(method)
    backbone = tiny_model(cfg).get_submodule(method.exports).eval()
    features = build_random_features(cfg, list(backbone.output_shape()), size=64, seed=1)
    frozen = features.backbone
    frozen.load_state_dict({name: backbone.state_dict()[name] for name in frozen.state_dict()})
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first, second = frozen(x), backbone(x)
    assert all(torch.equal(first[name], second[name]) for name in second)


def test_a_probe_that_fails_does_not_end_the_training(scenes, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("densesiam_d2"), "propagate", True)  # a run before may have changed it

    def fail_in_training(*args, **kwargs):
        if calls:
            raise OSError("the disk is gone")
        calls.append(1)
        return probe(*args, **kwargs)

    calls = []
    monkeypatch.setattr("densesiam_d2.engine.probe.probe", fail_in_training)
    assert run(scenes, tmp_path, "SOLVER.MAX_ITER", 2, *probe_options(scenes))["iteration"] == 1
    assert "The probe failed, and training goes on: the disk is gone" in caplog.text
    assert "probe/start_mIoU" in rows_of(tmp_path)[0]


def test_two_processes(scenes, tmp_path):
    """Only the main process probes; both stop after iteration 1, because the learning rate falls."""
    more = ["TEST.BEST_METRIC", "lr", "TEST.EVAL_PERIOD", 1, "TEST.PATIENCE", 1, "SOLVER.WARMUP_ITERS", 0]
    words = words_of(scenes, tmp_path, *more, *probe_options(scenes), "TEST.PROBE.PERIOD", 1)
    done = runs.train(words, "--num-gpus", "2")
    assert done.returncode == 0, done.stderr[-2000:]
    logs = [(tmp_path / name).read_text() for name in ("log.txt", "log.txt.rank1")]
    assert all("training ends after iteration 1" in log for log in logs)
    assert ["Probe on" in log for log in logs] == [True, False]
    assert torch.load(tmp_path / "model_final.pth", weights_only=True)["iteration"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["TEST.PROBE.TEST", ""], "set both, or neither"),
        (["TEST.PROBE.TEST", "no_such_set"], "TEST.PROBE.TEST 'no_such_set' is not a dataset"),
        (["TEST.BEST_METRIC", "probe/mIoU", "TEST.PROBE.TRAIN", "", "TEST.PROBE.TEST", ""], "set TEST.PROBE.TRAIN and"),
        (["TEST.PATIENCE", "3"], "name the value to wait for by TEST.BEST_METRIC"),
        (["MODEL.META_ARCHITECTURE", "GeneralizedRCNN"], "the probe is for pretraining"),
    ],
)
def test_mistakes_stop_at_start_up(options, message, scenes, tmp_path):
    args = argument_parser().parse_args(words_of(scenes, tmp_path, *probe_options(scenes), *options))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        checked_config(args)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["TEST.PROBE.FEATURES", "['res9']"], "TEST.PROBE.FEATURES: features res9: the backbone"),
        (["TEST.PROBE.TEST", "instances"], "they must be equal"),
    ],
)
def test_mistakes_in_the_sets_stop_before_training(options, message, scenes, tmp_path):
    if options[1] == "instances":
        options = ["TEST.PROBE.TEST", probe_options(scenes, "instances")[3]]
    with pytest.raises(ValueError, match=message):
        run(scenes, tmp_path, *probe_options(scenes), *options)

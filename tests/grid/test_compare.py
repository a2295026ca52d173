import json
from pathlib import Path

import pytest

from densesiam_d2.engine import load_config
from densesiam_d2.grid.compare import Budget, Comparison, Cost, Method, Transfer, check_backbones, cost_of
from densesiam_d2.grid.records import write_record
from densesiam_d2.grid.starts import Start

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = ["MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"]


def method(name, *opts):
    file = str(CONFIGS / f"pretrain_{name}.yaml")
    return Method(name, file, load_config(file, [*SMALL, *opts]))


def comparison(tmp_path, budget, **more):
    settings = {
        "root": tmp_path,
        "script": Path("/x/train_net.py"),
        "methods": [method("simsiam"), method("mocov2")],
        "starts": [Start("scratch", "")],
        "seeds": 2,
        "data": ["folder:/a"],
        "probe": ("train", "test"),
        "transfer": None,
        "budget": Budget.parse(budget),
        "batch": 16,
        "opts": SMALL,
    }
    return Comparison(**{**settings, **more})


def option(cell, key):
    return cell.words[cell.words.index(key) + 1]


def finish(cell, times=(0.5, 0.2, 0.3), log="", peak=700):
    """Write what a finished training leaves: it has logged its time after 20, 40 and 60 iterations."""
    cell.folder.mkdir(parents=True)
    lines = [json.dumps({"iteration": 20 * (i + 1) - 1, "time": time}) for i, time in enumerate(times)]
    (cell.folder / "metrics.json").write_text("\n".join(lines))
    (cell.folder / "log.txt").write_text(log)
    record = {"state": "done", "words": cell.fixed_words, "command": "", "needs": {}, "date": "today", "code": "abc"}
    hardware = {"cpu": "Some CPU", "cores": 2, "gpus": [], "torch": "2.6"}
    write_record(cell, {**record, "hardware": hardware, "seconds": 60.0, "peak_mib": peak, "scores": {}})


def test_budgets():
    assert Budget.parse("pairs=2000,10000") == Budget("pairs", (2000, 10000))
    assert Budget.parse("minutes=1.5") == Budget("minutes", (1.5,))
    for word in ("2000", "pairs=", "pairs=0", "pairs=-3", "hours=3", "minutes=1,", "pairs=1e3"):
        with pytest.raises(ValueError, match=f"--budget {word}: write pairs=N or minutes=M"):
            Budget.parse(word)
    assert Budget.parse("pairs=1000").iterations(1000, 64, None) == 16  # 15.6
    assert Budget.parse("minutes=2").iterations(2, 64, 0.5) == 240


def test_cells_at_equal_pairs(tmp_path):
    cells = comparison(tmp_path, "pairs=160,320").cells()
    of_seed = ["probe/scratch"]
    of_seed += [
        f"{stage}/{name}/pairs_{pairs}"
        for pairs in (160, 320)
        for name in ("simsiam", "mocov2")
        for stage in ("pretrain", "probe")
    ]
    assert [cell.name for cell in cells] == [f"{name}/seed_{seed}" for seed in (0, 1) for name in of_seed]
    scratch, pretrain, probe = cells[:3]
    assert option(scratch, "--weights") == "random" and scratch.needs == () and scratch.axes["method"] == "scratch"
    assert option(pretrain, "SOLVER.MAX_ITER") == "10" and option(pretrain, "SOLVER.IMS_PER_BATCH") == "16"
    assert option(pretrain, "SOLVER.BASE_LR") == "0.003125"  # 0.1 * 16 / 512
    assert option(cells[3], "SOLVER.BASE_LR") == "0.001875"  # 0.03 * 16 / 256
    assert option(pretrain, "DATASETS.TRAIN") == "folder:/a" and option(pretrain, "OUTPUT_DIR") == str(pretrain.folder)
    assert option(probe, "--weights") == str(pretrain.folder / "backbone.pkl") and probe.needs == (pretrain.name,)
    assert option(probe, "--config-file") == option(pretrain, "--config-file")
    assert [score.name for score in probe.scores] == ["ridge probe mIoU", "10-NN probe mIoU"] and not pretrain.scores
    assert option(cells[-1], "SEED") == option(cells[-2], "SEED") == "1"
    assert {cell.work for cell in cells if cell.stage == "pretrain"} == {160, 320}


def test_a_yaml_keeps_its_batch_and_rate(tmp_path):
    several = comparison(tmp_path, "pairs=5120", batch=None, data=["folder:/a", "folder:/b"]).cells()
    assert option(several[1], "SOLVER.IMS_PER_BATCH") == "512" and option(several[1], "SOLVER.BASE_LR") == "0.1"
    assert option(several[3], "SOLVER.IMS_PER_BATCH") == "256" and option(several[3], "SOLVER.MAX_ITER") == "20"
    assert option(several[1], "DATASETS.TRAIN") == "('folder:/a', 'folder:/b')"


def test_minutes_wait_for_the_timing(tmp_path):
    """A method has its trainings only when its seconds per step are known: the median of 0.5, 0.2 and 0.3."""
    compared = comparison(tmp_path, "minutes=2", seeds=1)
    simsiam, mocov2 = compared.timing_cells()
    assert (simsiam.name, mocov2.name) == ("time/simsiam", "time/mocov2")
    assert [cell.name for cell in compared.cells()] == ["time/simsiam", "time/mocov2", "probe/scratch/seed_0"]
    finish(mocov2)
    pretrain = compared.cells()[3]
    assert pretrain.name == "pretrain/mocov2/minutes_2/seed_0" and pretrain.needs == ("time/mocov2",)
    assert option(pretrain, "SOLVER.MAX_ITER") == "400"  # 120 s / 0.3
    assert not any("pretrain/simsiam" in cell.name for cell in compared.cells())
    assert comparison(tmp_path, "pairs=2").timing_cells() == []


def test_transfer_follows_each_backbone(tmp_path):
    cfg = load_config(str(CONFIGS / "own" / "mask_rcnn_R18_FPN.yaml"), ["MODEL.DEVICE", "cpu"])
    command = {"labels": 5, "count": 5, "length": 0.1, "num_gpus": 1, "opts": [], "script": Path("t.py")}
    transfer = Transfer(cfg, "coco:t.json", {**command, "config_file": "m.yaml", "train": "coco:a.json"})
    cells = comparison(tmp_path, "pairs=16", seeds=1, transfer=transfer).cells()
    stages = ["probe", "transfer", "pretrain", "probe", "transfer", "pretrain", "probe", "transfer"]
    assert [cell.stage for cell in cells] == stages
    assert (
        option(cells[1], "MODEL.WEIGHTS") == "" and option(cells[4], "DATASETS.TRAIN") == "coco:a.json,subset=5,seed=0"
    )
    assert option(cells[4], "MODEL.WEIGHTS") == option(cells[3], "--weights") and cells[4].needs == (cells[2].name,)
    assert [score.name for score in cells[4].scores] == ["mask AP", "box AP"]


def test_cost_of_a_training(tmp_path):
    on_cpu, on_gpu, short = (comparison(tmp_path / name, "pairs=16").cells()[1] for name in "abc")
    finish(on_cpu)
    assert cost_of(on_cpu) == Cost(seconds_per_step=0.3, minutes=0.3, mib=700)  # 60 steps of 0.3 s
    finish(on_gpu, log="iter: 19 max_mem: 900M\niter: 39 max_mem: 2100M\niter: 59 max_mem: 2000M\n")
    assert cost_of(on_gpu).mib == 2100
    finish(short, times=())
    assert cost_of(short) == Cost(None, None, 700)


def test_backbones_that_the_transfer_cannot_load_are_all_named(tmp_path):
    cfg = load_config(str(CONFIGS / "own" / "mask_rcnn_R18_FPN.yaml"), ["MODEL.DEVICE", "cpu"])
    fits, deep = method("simsiam"), method("mocov2", "MODEL.RESNETS.DEPTH", "34")
    check_backbones([fits], cfg)
    with pytest.raises(ValueError, match="cannot be used") as error:
        check_backbones([fits, deep], cfg)
    (line,) = str(error.value).splitlines()[1:]
    assert "pretrain_mocov2.yaml: " in line and "depth is 34 in the file but MODEL.RESNETS.DEPTH is 18" in line


def test_a_baseline_is_no_pretraining():
    file = str(CONFIGS / "unsup_seg" / "kmeans_features.yaml")
    baseline = Method("kmeans", file, load_config(file, ["MODEL.DEVICE", "cpu"]))
    with pytest.raises(ValueError, match=r"kmeans_features.yaml: \w+ trains no backbone"):
        check_backbones([baseline], baseline.cfg)

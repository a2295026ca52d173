from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog

from densesiam_d2.data.datasets import check_datasets
from densesiam_d2.data.path_datasets import register_path_datasets
from densesiam_d2.engine import load_config
from densesiam_d2.grid.low_shot import count_labels, label_counts, low_shot_cells, subset_name, transfer_scores
from densesiam_d2.grid.starts import Start
from densesiam_d2.labels.findings import LabelsError
from densesiam_d2.samples.scenes import CLASSES, write_scenes

CONFIGS = Path(__file__).parents[2] / "configs"
OPTS = ["MODEL.DEVICE", "cpu"]


@pytest.fixture
def sets(tmp_path, catalog):
    """The same six scenes as label maps and as instances."""
    write_scenes(tmp_path / "scenes", num=6, seed=0, size=64)
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    root = tmp_path / "scenes"
    return {
        "masks": f"masks:{root}/images,labels={root}/sem_seg,classes={tmp_path}/classes.txt",
        "coco": f"coco:{root}/instances.json,images={root}/images",
    }


def config(name, train, *opts):
    cfg = load_config(str(CONFIGS / f"{name}.yaml"), [*OPTS, *opts, "DATASETS.TRAIN", train, "DATASETS.TEST", train])
    check_datasets(cfg)
    return cfg


def make(cfg, tmp_path, train, **more):
    settings = {
        "root": tmp_path,
        "counts": {2: 2, "all": 6},
        "starts": [Start("scratch", ""), Start("ours", "b.pkl")],
        "seeds": 2,
        "script": Path("/x/train_net.py"),
        "config_file": "c.yaml",
        "train": train,
        "test": train,
        "length": 1.0,
        "num_gpus": 3,
        "opts": ["INPUT.MIN_SIZE_TEST", "64"],
    }
    return low_shot_cells(cfg, **{**settings, **more})


def option(cell, key):
    return cell.words[cell.words.index(key) + 1]


@pytest.mark.parametrize("kind", ["coco", "masks"])
def test_subsets_are_nested_and_differ_by_seed(sets, kind):
    def files(labels, seed):
        name = subset_name(sets[kind], labels, seed)
        register_path_datasets([name])
        return {record["file_name"] for record in DatasetCatalog.get(name)}

    for seed in (0, 1):
        assert files(2, seed) < files(4, seed) < files("all", seed)
    assert len(files(2, 0)) == 2 and len(files("all", 0)) == 6
    assert len({frozenset(files(2, seed)) for seed in range(6)}) > 1


def test_cells_of_a_curve(sets, tmp_path):
    cfg = config("own/mask_rcnn_R18_FPN", sets["coco"])
    cells = make(cfg, tmp_path, sets["coco"])
    names = ["scratch/labels_2", "ours/labels_2", "scratch/labels_all", "ours/labels_all"]
    assert [cell.name for cell in cells] == [f"{name}/seed_{seed}" for seed in (0, 1) for name in names]
    cell = cells[5]
    assert cell.axes == {"start": "ours", "labels": 2, "seed": 1} and cell.stage == "low_shot"
    assert cell.words[:8] == (
        *("python", "/x/train_net.py", "--config-file", "c.yaml", "--num-gpus", "3", "--resume", "auto"),
    )
    assert option(cell, "DATASETS.TRAIN") == sets["coco"] + ",subset=2,seed=1"
    assert option(cell, "DATASETS.TEST") == sets["coco"] and option(cell, "MODEL.WEIGHTS") == "b.pkl"
    assert option(cell, "SEED") == "1" and option(cell, "OUTPUT_DIR") == str(cell.folder)
    assert option(cell, "SOLVER.LAST_LAYERS_LR_FACTOR") == "4" and option(cell, "INPUT.MIN_SIZE_TEST") == "64"
    # 57,600 * sqrt(2 / 1,182.87) images in batches of 4
    assert option(cell, "SOLVER.MAX_ITER") == "592" and cell.work == 592
    assert option(cells[7], "DATASETS.TRAIN") == sets["coco"] and cells[7].axes["labels"] == 6
    assert cells[7].work > cell.work
    # The weights are the only difference between two starts.
    assert [w for w in cells[4].words if w != ""] == [
        w.replace("ours/", "scratch/") for w in cell.words if w != "b.pkl"
    ]


def test_a_cell_is_a_config_that_train_net_takes(sets, tmp_path):
    cfg = config("own/fcn_mobilenet_v2", sets["masks"])
    cell = make(cfg, tmp_path, sets["masks"])[0]
    read = load_config(str(CONFIGS / "own" / "fcn_mobilenet_v2.yaml"), list(cell.words[8:]))
    assert cell.work == read.SOLVER.MAX_ITER and read.SOLVER.LAST_LAYERS_LR_FACTOR == 4 and read.MODEL.WEIGHTS == ""
    check_datasets(read)


@pytest.mark.parametrize(
    ("name", "kind", "opts", "scores"),
    [
        ("own/mask_rcnn_R18_FPN", "coco", [], ["mask AP", "box AP"]),
        ("own/mask_rcnn_R18_FPN", "coco", ["MODEL.MASK_ON", "False"], ["box AP"]),
        ("own/fcn_mobilenet_v2", "masks", [], ["mIoU"]),
    ],
)
def test_scores_of_each_kind(sets, name, kind, opts, scores):
    cfg = config(name, sets[kind], *opts)
    assert [score.name for score in transfer_scores(cfg, sets[kind])] == scores
    assert count_labels(cfg, sets[kind], sets[kind]) == 6


@pytest.mark.parametrize(
    ("name", "method"), [("pretrain_simsiam", "SimSiam"), ("quick/unsup_seg_instant_test", "DenseSiamSegmentor")]
)
def test_training_without_labels_is_refused(name, method):
    with pytest.raises(ValueError, match=f"{method} does not learn from labels"):
        transfer_scores(load_config(str(CONFIGS / f"{name}.yaml"), OPTS), "any")


def test_several_sets_are_refused(sets):
    cfg = config("own/fcn_mobilenet_v2", sets["masks"])
    with pytest.raises(ValueError, match=r"\('masks:.* must be the name of one data set"):
        count_labels(cfg, repr((sets["masks"], sets["masks"])), sets["masks"])


def test_wrong_labels_stop_before_any_training(sets, tmp_path):
    cfg = config("own/fcn_mobilenet_v2", sets["masks"])
    for path in (tmp_path / "scenes" / "sem_seg").glob("*.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(LabelsError, match="label maps that cannot be read"):
        count_labels(cfg, sets["masks"], sets["masks"])


def test_numbers_of_labels():
    assert label_counts(["2", "all", "2"], "coco:x.json", 6) == {2: 2, "all": 6}
    assert label_counts(["all"], "camvid_train", 6) == {"all": 6}
    for word, train, says in [
        ("0", "coco:x.json", "--labels 0: a number above 0, or all"),
        ("1.5", "coco:x.json", "a number above 0"),
        ("6", "coco:x.json", "coco:x.json has 6 annotated images; write all"),
        ("2", "camvid_train", "random subsets are drawn from coco:"),
        ("2", "coco:x.json,subset=5,seed=1", "without subset="),
    ]:
        with pytest.raises(ValueError, match=says):
            label_counts([word], train, 6)


def test_crowds_alone_are_no_labels(sets, monkeypatch):
    """``subset=`` draws images with an instance that is no crowd; the count is of the same images."""
    cfg = config("own/mask_rcnn_R18_FPN", sets["coco"])
    records = DatasetCatalog.get(sets["coco"])
    records[0]["annotations"] = [{"iscrowd": 1}]
    records[1]["annotations"] = []
    monkeypatch.setattr("densesiam_d2.grid.low_shot.DatasetCatalog", {sets["coco"]: records})
    assert count_labels(cfg, sets["coco"], sets["coco"]) == 4

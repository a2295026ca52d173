"""Label-free segmentation by the entry point: the monitor, matchings fitted on another set, pictures, best models."""

import json
from pathlib import Path

import cv2
import pytest
from detectron2.data import MetadataCatalog

import train_net
from densesiam_d2.data.sample_sets import register_scenes
from densesiam_d2.engine import argument_parser, checked_config

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs/quick/unsup_seg_instant_test.yaml"

pytestmark = pytest.mark.usefixtures("catalog")


@pytest.fixture
def sets(tmp_path):
    """Four and six scenes of 96 pixels under the returned names."""
    names = ("label_free_small", "label_free_large")
    for seed, name in enumerate(names):
        register_scenes(name, tmp_path / name, num=4 + 2 * seed, seed=seed, size=96)
    return names


def run(*options, flags=()):
    options = ["MODEL.DEVICE", "cpu", "SEED", "3", "MODEL.WEIGHTS", "", *options]
    args = argument_parser().parse_args([*flags, "--config-file", str(CONFIG), *map(str, options)])
    return train_net.main(checked_config(args), args)


def rows_of(folder):
    rows = {}
    for line in (folder / "metrics.json").read_text().splitlines():
        row = json.loads(line)
        rows[row["iteration"]] = rows.get(row["iteration"], {}) | row
    return rows


def test_the_monitor_scores_in_training(sets, tmp_path):
    """Four iterations, scored after the second and fourth; the metrics without labels are there from the first on."""
    small, large = sets
    options = ["DATASETS.TRAIN", large, "DATASETS.TEST", "()", "SOLVER.MAX_ITER", 4, "OUTPUT_DIR", tmp_path / "out"]
    options += ["TEST.MONITOR.DATASET", small, "TEST.MONITOR.PERIOD", 2, "TEST.BEST_METRIC", "monitor/mIoU"]
    run(*options)
    lines = (tmp_path / "out" / "log.txt").read_text().splitlines()
    monitored = [line for line in lines if f"{small}, 4 images: " in line]
    assert len(monitored) == 2
    rows = rows_of(tmp_path / "out")
    last = rows[4]  # what is logged after training
    assert last["monitor/mIoU"] == pytest.approx(json.loads(monitored[-1].split("images: ")[1])["mIoU"], abs=0.01)
    assert not [name for name in last if name.startswith("monitor/IoU-")]
    for name in ("used_clusters", "largest_cluster", "assignment_entropy", "pixel_entropy", "view_agreement"):
        assert f"ssl/{name}" in rows[0]
    assert (tmp_path / "out" / "model_best.pth").is_file()
    assert not (tmp_path / "out" / "inference").exists()


def test_the_monitor_does_not_change_the_training(sets, tmp_path):
    options = ["DATASETS.TRAIN", sets[1], "DATASETS.TEST", "()", "SOLVER.MAX_ITER", 3]
    losses = []
    for name, more in (("with", ["TEST.MONITOR.DATASET", sets[0], "TEST.MONITOR.PERIOD", 1]), ("without", [])):
        run(*options, *more, "OUTPUT_DIR", tmp_path / name)
        losses.append(rows_of(tmp_path / name)[2]["total_loss"])
    assert losses[0] == losses[1]


def test_fitted_on_one_set_and_scored_on_two(sets, tmp_path):
    small, large = sets
    options = ["DATASETS.TRAIN", large, "SOLVER.MAX_ITER", 1, "TEST.SEM_SEG_MATCHING", "majority"]
    options += ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", 16, "OUTPUT_DIR", tmp_path]
    run(*options, "DATASETS.TEST", f"('{small}', '{large}')", "TEST.SEM_SEG_MATCHING_FIT", small)
    fitted = json.loads((tmp_path / "results.json").read_text())
    run(*options, "DATASETS.TEST", large, "MODEL.WEIGHTS", tmp_path / "model_final.pth", flags=("--eval-only",))
    own = json.loads((tmp_path / "results.json").read_text())
    assert fitted[large]["protocol"] == {**own[large]["protocol"], "matching_fitted_on": small}
    assert own[large]["protocol"] == {
        "matching": "majority",
        "matching_fitted_on": large,
        "num_clusters": 16,
        "num_classes": 10,
        "resolution": "centre crop of 96 x 96 after resizing the short side to 96",
        "num_images": 6,
        "num_pixels": 6 * 96 * 96,
        "num_pixels_ignored": 0,  # scenes label every pixel
    }
    files = {name: tmp_path / "inference" / name / "sem_seg_evaluation.json" for name in sets}
    records = {name: json.loads(path.read_text()) for name, path in files.items()}
    alone = json.loads((tmp_path / "inference" / "sem_seg_evaluation.json").read_text())
    assert records[small]["cluster_to_class"] == records[large]["cluster_to_class"]
    assert records[large]["confusion"] == alone["confusion"] != records[small]["confusion"]
    # By majority the own matching has the most right pixels of all matchings.
    assert fitted[large]["sem_seg"]["pACC"] <= own[large]["sem_seg"]["pACC"]


def test_pictures_beside_the_scores(sets, tmp_path):
    """Six images in rows of two: 128 pixels each with a border of 6, a bar of 26; below it a legend."""
    run("DATASETS.TRAIN", sets[1], "DATASETS.TEST", sets[1], "SOLVER.MAX_ITER", 1, "OUTPUT_DIR", tmp_path)
    sheet = cv2.imread(str(tmp_path / "inference" / "contact_sheet.png"))[..., ::-1]
    assert sheet.shape[1] == 6 * (128 + 6) and sheet.shape[0] > 26 + 3 * (128 + 6)
    labels = sheet[26 : 26 + 128, 134 : 134 + 128].reshape(-1, 3)
    known = {(0, 0, 0), *map(tuple, MetadataCatalog.get(sets[1]).stuff_colors)}
    assert set(map(tuple, labels.tolist())) <= known
    assert (tmp_path / "inference" / "confusion.png").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("TEST.MONITOR.DATASET no_such_set", "TEST.MONITOR.DATASET 'no_such_set' is not a dataset"),
        ("TEST.SEM_SEG_MATCHING_FIT masks:/no,labels=/such", "TEST.SEM_SEG_MATCHING_FIT 'masks:/no,labels=/such'"),
        ("TEST.SEM_SEG_MATCHING none TEST.SEM_SEG_MATCHING_FIT scenes_tiny", "TEST.SEM_SEG_MATCHING is 'none'"),
        ("MODEL.META_ARCHITECTURE SimSiam TEST.MONITOR.DATASET scenes_tiny", "SimSiam predicts no label maps"),
    ],
)
def test_mistakes_stop_at_start_up(options, message):
    args = argument_parser().parse_args(["--config-file", str(CONFIG), *options.split()])
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        checked_config(args)

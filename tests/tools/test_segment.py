import json
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from densesiam_d2.config import add_densesiam_config
from densesiam_d2.modeling.sem_seg import PseudoLabelSemSegHead  # noqa: F401  registers the head
from densesiam_d2.reporting.label_colors import palette
from densesiam_d2.reporting.text import text_width
from densesiam_d2.tools import segment
from densesiam_d2.tools.segment import draw_legend, main

YAML = """
MODEL:
  DEVICE: cpu
  META_ARCHITECTURE: SemanticSegmentor
  PIXEL_MEAN: [123.675, 116.28, 103.53]
  PIXEL_STD: [58.395, 57.12, 57.375]
  RESNETS: {DEPTH: 18, RES2_OUT_CHANNELS: 64, NORM: SyncBN, OUT_FEATURES: [res2, res3, res4, res5]}
  BACKBONE: {FREEZE_AT: 0}
  SEM_SEG_HEAD:
    NAME: PseudoLabelSemSegHead
    IN_FEATURES: [res2, res3, res4, res5]
    NUM_CLASSES: 5
    CONVS_DIM: 16
    NORM: SyncBN
    PSEUDO_LABEL: {AUX_CLASSES: 0}
INPUT: {FORMAT: RGB, MIN_SIZE_TEST: 64}
TEST: {SEM_SEG_MATCHING: hungarian}
"""


@pytest.fixture
def run(tmp_path):
    """An untrained model's yaml and checkpoint, three images, and the command on them."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    (tmp_path / "seg.yaml").write_text(YAML)
    cfg = get_cfg()
    add_densesiam_config(cfg)
    cfg.merge_from_file(str(tmp_path / "seg.yaml"))
    model = build_model(cfg)
    state = {**model.state_dict(), "region.projector.0.weight": torch.zeros(1)}  # a training checkpoint has more
    torch.save({"model": state, "iteration": 9}, tmp_path / "model.pth")
    rng = np.random.default_rng(0)
    for name, size in {"a.jpg": (70, 90), "town/b.png": (128, 100), "a.png": (40, 60)}.items():
        path = tmp_path / "images" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        cv2.imwrite(str(path), cv2.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), size[::-1]))

    def command(*more, weights="model.pth", output="out", source="images", config="seg.yaml", status=0):
        paths = {"--config-file": config, "--weights": weights, "--input": source, "--output": output}
        words = [word for key, name in paths.items() for word in (key, str(tmp_path / name))]
        assert main([*words, *map(str, more)]) == status

    return command


def test_files_for_a_folder(run, tmp_path, capsys):
    (tmp_path / "images" / "notes.txt").write_text("no image")
    (tmp_path / "images" / "torn.jpg").write_bytes((tmp_path / "images" / "a.jpg").read_bytes()[:150])
    run()
    out = tmp_path / "out"
    sizes = {"a": (70, 90), "a.png": (40, 60), "town/b": (128, 100)}  # a.png must not overwrite a.jpg's results
    total = np.zeros(5)
    for name, size in sizes.items():
        labels = cv2.imread(str(out / "labels" / f"{name}.png"), cv2.IMREAD_UNCHANGED)
        assert labels.dtype == np.uint8
        assert labels.shape == size
        assert cv2.imread(str(out / "overlays" / f"{name}.jpg")).shape == (*size, 3)
        total += np.bincount(labels.ravel(), minlength=5)
    others = {path.name for path in out.iterdir()} - {"labels", "overlays"}
    assert others == {".segment", "legend.png", "classes.json", "classes.txt", "counts.csv", "gallery.html"}
    assert len(list((out / "labels").rglob("*.*"))) == len(list((out / "overlays").rglob("*.*"))) == 3

    classes = json.loads((out / "classes.json").read_text())
    assert [c["name"] for c in classes] == [f"cluster {i}" for i in range(5)]
    assert [c["color"] for c in classes] == palette(5).tolist()
    assert [c["share"] for c in classes] == pytest.approx(total / total.sum())

    printed = capsys.readouterr().out
    assert "3 images" in printed
    assert "skipped: 1 .txt" in printed
    assert "torn.jpg" in printed


def test_each_image_has_results_of_its_own():
    written = set()
    names = ["a.png.tif", "a.jpg", "a.png", "a.png", "town/a.png"]
    stems = [str(segment.output_stem(Path(name), written)) for name in names]
    assert stems == ["a.png", "a", "a.png_", "a.png__", "town/a"]


def test_a_folder_whose_name_is_not_utf8(run, capsys):
    """Its name is printed, which standard output refuses as it is."""
    run(source="images/a.jpg", output=os.fsdecode(b"caf\xe9"))
    assert r"caf\udce9" in capsys.readouterr().out


def test_images_are_listed_as_in_training(run, tmp_path, capsys):
    """Links are followed, once; hidden files and folders are left out; endings have any case."""
    images = tmp_path / "images"
    (tmp_path / "elsewhere").mkdir()
    (images / "town" / "b.png").rename(tmp_path / "elsewhere" / "c.PNG")
    (images / "linked").symlink_to(tmp_path / "elsewhere")
    (images / "circle").symlink_to(images)
    for hidden in (".thumbnails/a.jpg", ".hidden.jpg"):
        (images / hidden).parent.mkdir(exist_ok=True)
        (images / hidden).write_bytes((images / "a.jpg").read_bytes())
    run()
    labels = tmp_path / "out" / "labels"
    assert sorted(str(path.relative_to(labels)) for path in labels.rglob("*.png")) == [
        *("a.png", "a.png.png", "linked/c.png")
    ]
    assert "skipped: 1 hidden, 1 folders linked again" in capsys.readouterr().out


def test_the_white_level_counts(run, tmp_path):
    """A 12-bit picture in a 16-bit file is segmented as the 8-bit picture of the same grey values, 4095 being 255."""
    grey = np.random.default_rng(1).integers(0, 256, (6, 8), dtype=np.uint8)
    grey = cv2.resize(grey, (80, 64), interpolation=cv2.INTER_NEAREST)
    for name, image in (("eight", grey), ("twelve", np.rint(grey * (4095 / 255)).astype(np.uint16))):
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / "x.png"), image)
        run("INPUT.WHITE_LEVEL", 4095, source=name, output=f"out_{name}")
    eight, twelve = (cv2.imread(str(tmp_path / f"out_{name}/labels/x.png"), -1) for name in ("eight", "twelve"))
    assert np.array_equal(eight, twelve) and len(np.unique(eight)) > 1


def test_maps_of_an_earlier_run_do_not_stay(run, tmp_path):
    (tmp_path / "out" / "images").mkdir(parents=True)
    (tmp_path / "out" / "images" / "mine.jpg").write_bytes(b"not ours")
    run()
    assert (tmp_path / "out" / "labels" / "town" / "b.png").is_file()
    run(source="images/a.jpg")
    left = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {name for name in left if "/" in name} == {"labels/a.png", "overlays/a.jpg", "images/mine.jpg"}


def test_images_among_results_that_are_replaced_stay(run, tmp_path, capsys):
    run()
    before = sorted((tmp_path / "out").rglob("*"))
    run(source="out/overlays", status=2)
    run(source="out/overlays/a.jpg", status=2)
    assert capsys.readouterr().err.count("lies in results of an earlier run") == 2
    assert sorted((tmp_path / "out").rglob("*")) == before


def test_a_jpeg_is_made_smaller_if_the_format_requires_it(tmp_path):
    segment.write_image(tmp_path / "wide.jpg", np.zeros((3, 66_000, 3), np.uint8))
    assert cv2.imread(str(tmp_path / "wide.jpg")).shape == (3, 65_500, 3)


def test_label_maps_of_others_are_not_overwritten(run, tmp_path, capsys):
    (tmp_path / "out" / "labels").mkdir(parents=True)
    (tmp_path / "out" / "labels" / "a.png").write_bytes(b"by hand")
    run(status=2)
    assert "has labels, not written by this tool: name another folder" in capsys.readouterr().err
    assert (tmp_path / "out" / "labels" / "a.png").read_bytes() == b"by hand"


def test_other_files_beside_the_images_are_not_removed(run, tmp_path, capsys):
    """With the folder above the images as --output, where annotations and class names of the user lie."""
    mine = {tmp_path / name: b"mine" for name in ("annotations.json", "classes.txt", "overlays/a.jpg")}
    (tmp_path / "overlays").mkdir()
    for path, content in mine.items():
        path.write_bytes(content)
    run(output=".", status=2)
    assert "has classes.txt, annotations.json, overlays, not written by this tool" in capsys.readouterr().err
    assert all(path.read_bytes() == content for path, content in mine.items())


def test_tables_and_pages_of_others_are_not_overwritten(run, tmp_path, capsys):
    for name in ("counts.csv", "gallery.html", "legend.png"):
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / name).write_bytes(b"mine")
        run(status=2)
        assert f"has {name}, not written by this tool: name another folder" in capsys.readouterr().err
        assert (tmp_path / "out" / name).read_bytes() == b"mine"
        (tmp_path / "out" / name).unlink()


def test_a_folder_that_another_process_writes_is_refused(run, tmp_path, capsys):
    code = "import sys, pathlib; from densesiam_d2.engine.run_lock import lock_file\n"
    code += "lock = lock_file(pathlib.Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "out" / ".segment")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout.readline() == "held\n"
        run(status=2)
        assert f"out is in use by pid {other.pid} on" in capsys.readouterr().err
        other.stdin.close()
    run()


def test_labels_are_the_models_argmax(run, tmp_path):
    """Against detectron2's own predictor, which takes BGR."""
    run("SOLVER.IMS_PER_BATCH", 1)
    from detectron2.engine import DefaultPredictor

    from densesiam_d2.engine.setup import load_config

    cfg = load_config(str(tmp_path / "seg.yaml"), ["MODEL.WEIGHTS", str(tmp_path / "model.pth")])
    image = cv2.imread(str(tmp_path / "images" / "town" / "b.png"))
    with torch.no_grad():
        expected = DefaultPredictor(cfg)(image)["sem_seg"].argmax(dim=0).numpy()
    labels = cv2.imread(str(tmp_path / "out" / "labels" / "town" / "b.png"), cv2.IMREAD_UNCHANGED)
    assert (labels == expected).mean() > 0.999
    assert len(np.unique(labels)) > 1


def test_matching_names_the_clusters(run, tmp_path):
    (tmp_path / "evaluation.json").write_text(json.dumps({"cluster_to_class": ["sky", None, "road", "car", "tree"]}))
    run("--matching", tmp_path / "evaluation.json")
    names = [c["name"] for c in json.loads((tmp_path / "out" / "classes.json").read_text())]
    assert names[:3] == ["cluster 0 = sky", "cluster 1 = no class", "cluster 2 = road"]


@pytest.mark.parametrize(
    "content",
    ["", "\x80", "[]", "null", "3", "{}", '{"cluster_to_class": {"0": "sky", "1": "a", "2": "b", "3": "c", "4": "d"}}']
    + [json.dumps({"cluster_to_class": names}) for names in ([0, 1, 2, 3, 4], ["sky"])],
)
def test_a_matching_that_is_none(run, tmp_path, content, capsys):
    (tmp_path / "evaluation.json").write_bytes(content.encode("latin-1"))
    run("--matching", tmp_path / "evaluation.json", status=2)
    said = r"segment: --matching .*evaluation\.json: no list 'cluster_to_class' of 5 names"
    assert re.search(said, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("kwargs", "opts", "message"),
    [
        ({"weights": "none.pth"}, (), r"segment: weight file .*none\.pth does not exist"),
        ({"source": "nowhere"}, (), r"segment: --input .*nowhere: no such folder"),
        ({"output": "images/out"}, (), r"segment: --output .* lies in --input"),
        ({"source": "images/a.jpg", "output": "images"}, (), r"segment: --output .* lies in --input"),
        ({"output": "seg.yaml"}, (), r"segment: --output .*seg\.yaml is a file: name a folder"),
        ({}, ("--matching", "gone.json"), r"segment: --matching gone\.json cannot be read: No such file"),
        ({}, ("--matching", "m.json", "--names", "n.json"), r"--names n\.json and --matching m\.json both name"),
        (
            {},
            ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", "6"),
            r"model\.pth: sem_seg_head\.\S+ is \(.*5.*\), but \(.*6.*\) by the config",
        ),
        (
            {},
            ("MODEL.SEM_SEG_HEAD.PSEUDO_LABEL.AUX_CLASSES", "4"),
            r"leaves \d+ tensors .* unfilled, sem_seg_head\.aux",
        ),
        ({}, ("MODEL.SEM_SEG_HEAD.NUM_CLASES", "6"), r"no config key .*did you mean MODEL\.SEM_SEG_HEAD\.NUM_CLASSES"),
    ],
)
def test_mistakes_end_in_one_line(run, kwargs, opts, message, capsys):
    run(*opts, **kwargs, status=2)
    assert re.search(message, capsys.readouterr().err)


def test_folder_without_images(run, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "x.txt").write_text("")
    run()
    before = sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file())
    run(source="empty", status=2)
    assert sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file()) == before
    assert re.search(r"no readable image in it \(endings \.jpg .*\); 1 other files", capsys.readouterr().err)


def test_legend_has_one_row_per_id_that_occurs():
    legend = draw_legend(["a", "b", "c"], palette(3), np.array([0.25, 0.0, 0.75]))
    assert legend.shape == (2 * 28 + 8, 420, 3)
    assert legend[17, 20].tolist() == palette(3)[2].tolist()  # the most frequent first
    assert legend[45, 20].tolist() == palette(3)[0].tolist()


def test_the_shares_in_the_legend_stand_beside_long_names():
    name = "chest of drawers, chest, bureau, dresser and more"
    wide = draw_legend([name], palette(1), np.array([1.0]))
    end = 50 + text_width(f"0  {name}")
    assert wide.shape[1] > end + 75
    assert (wide[:, end + 2 : end + 8] == 255).all()  # nothing is drawn between the two
    assert (wide[:, end + 8 :] < 100).any()


def test_real_photos(run, tmp_path):
    root = Path(os.environ.get("DENSESIAM_D2_TEST_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
    photos = sorted((root / "coco128" / "images").glob("*.jpg"))[:2]
    if not photos:
        pytest.skip(f"no photographs in {root}/coco128 (set DENSESIAM_D2_TEST_DATA)")
    (tmp_path / "photos").mkdir()
    for photo in photos:
        (tmp_path / "photos" / photo.name).write_bytes(photo.read_bytes())
    run(source="photos")
    for photo in photos:
        labels = cv2.imread(str(tmp_path / "out" / "labels" / f"{photo.stem}.png"), cv2.IMREAD_UNCHANGED)
        assert labels.shape == cv2.imread(str(photo)).shape[:2]


def test_weights_of_other_images_are_refused(run, tmp_path, capsys):
    content = torch.load(tmp_path / "model.pth", weights_only=True)
    facts = {"pixel_format": "BGR" if "RGB" in (tmp_path / "seg.yaml").read_text() else "RGB"}
    torch.save({**content, "metadata": facts}, tmp_path / "model.pth")
    run(status=2)
    assert "model.pth contradicts the config: pixel_format is" in capsys.readouterr().err


def test_a_stopped_run_can_be_repeated_and_a_folder_of_others_cannot(run, tmp_path, monkeypatch, capsys):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(segment, "draw_legend", stop)
        run(status=75)
    run()
    labels = tmp_path / "mine" / "labels"
    labels.mkdir(parents=True)
    for path in (labels / "a.png", tmp_path / "mine" / "classes.json", tmp_path / "mine" / "counts.csv"):
        path.write_text("mine")
    capsys.readouterr()
    run(output="mine", status=2)
    assert "has classes.json, counts.csv, labels, not written by this tool" in capsys.readouterr().err
    assert (labels / "a.png").read_text() == "mine"

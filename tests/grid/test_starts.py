from pathlib import Path

import pytest
from detectron2.modeling import build_backbone

from densesiam_d2.checkpoint import backbone_metadata, backbone_state, save_backbone
from densesiam_d2.engine import load_config
from densesiam_d2.grid.starts import Start, check_starts, on_cpu, parse_starts, split_name

CONFIG = str(Path(__file__).parents[2] / "configs" / "quick" / "mask_rcnn_instant_test.yaml")


def save(path: Path, opts=()) -> str:
    cfg = on_cpu(load_config(CONFIG, list(opts)))
    save_backbone(path, backbone_state(build_backbone(cfg)), backbone_metadata(cfg, None))
    return str(path)


def test_names_of_starts():
    words = [
        "scratch",
        "supervised.pkl",
        "output/pretrain/backbone.pkl",
        "ours=x/backbone.pkl",
        "torchvision://resnet18",
    ]
    assert parse_starts(words) == [
        Start("scratch", ""),
        Start("supervised", "supervised.pkl"),
        Start("pretrain", "output/pretrain/backbone.pkl"),
        Start("ours", "x/backbone.pkl"),
        Start("resnet18", "torchvision://resnet18"),
    ]
    query = "moco.pkl?matching_heuristics=True"
    assert parse_starts([query, "a b.pkl"]) == [Start("moco", query), Start("a_b", "a b.pkl")]


def test_a_name_before_a_file():
    assert split_name("a=b.yaml") == ("a", "b.yaml") and split_name("x/b.yaml") == (None, "x/b.yaml")
    assert split_name("x/moco.pkl?matching_heuristics=True")[0] is None


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("..=a.pkl", r"\.\.=a\.pkl: '\.\.' must be letters, .* and begin with no dot"),
        (".=a.pkl", r"\.=a\.pkl: '\.' must be"),
        ("../model_final.pth", r"\.\./model_final\.pth: name it by NAME=FILE: '\.\.' must be"),
        ("/model_final.pth", r"/model_final\.pth: name it by NAME=FILE: '' must be"),
    ],
)
def test_a_name_that_leaves_the_folder_of_the_grid_is_refused(word, says):
    with pytest.raises(ValueError, match=says):
        parse_starts(["scratch", word])


def test_two_starts_of_one_name():
    with pytest.raises(ValueError, match="two starts are called a: name them by NAME=FILE"):
        parse_starts(["x/a.pkl", "y/a.pkl"])


def test_starts_that_do_not_fit_are_all_named(tmp_path):
    cfg = load_config(CONFIG)
    good = Start("good", save(tmp_path / "good.pkl"))
    check_starts(cfg, [Start("scratch", ""), good])
    bgr = save(tmp_path / "bgr.pkl", ["INPUT.FORMAT", "BGR"])
    deeper = save(tmp_path / "deeper.pkl", ["MODEL.RESNETS.DEPTH", "34"])
    (tmp_path / "text.pkl").write_text("no weights")
    wrong = [good, Start("lost", "no.pkl"), Start("deep", deeper), Start("bgr", bgr)]
    with pytest.raises(ValueError, match="these starts cannot be used") as error:
        check_starts(cfg, [*wrong, Start("text", str(tmp_path / "text.pkl"))])
    _, lost, deep, colours, text = str(error.value).splitlines()
    assert lost == "  lost: MODEL.WEIGHTS: file no.pkl does not exist"
    assert deep.startswith("  deep: ") and "depth is 34 in the file but MODEL.RESNETS.DEPTH is 18" in deep
    assert colours.startswith("  bgr: ") and "INPUT.FORMAT is RGB" in colours
    assert text.startswith("  text: cannot read weights from ")
    assert cfg.MODEL.DEVICE == load_config(CONFIG).MODEL.DEVICE

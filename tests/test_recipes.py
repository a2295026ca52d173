"""Every yaml that names a data set trains two iterations and is scored, on drawn trees of the layouts they name."""

import json
import math
import shutil
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import builtin

import train_net
from densesiam_d2.data import load_image_folder, register_all_datasets
from densesiam_d2.data.sample_sets import register_scenes
from densesiam_d2.engine import argument_parser, checked_config, load_config
from tests.data_trees import draw_trees

CONFIGS = Path(__file__).parents[1] / "configs"
CONFIG_FILES = [path for path in sorted(CONFIGS.rglob("*.yaml")) if path.parent.name != "grids"]
OWN = CONFIGS / "own"  # recipes for data that the command names
RECIPES = [path for path in CONFIG_FILES if path.parent == OWN or load_config(str(path)).DATASETS.TRAIN]

# What makes any recipe small. A key that a recipe leaves at 0 or off stays so.
TINY = {
    "SEED": 1,
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    "MODEL.RESNETS.WIDTH_PER_GROUP": 16,
    "MODEL.FPN.OUT_CHANNELS": 32,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 50,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 20,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 20,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 10,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 8,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 64,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": 32,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 32,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
    "MODEL.SEM_SEG_HEAD.PSEUDO_LABEL.MERGE_FROM": 12,
    "MODEL.CLUSTERING.GRID_SIZE": 16,
    "MODEL.DETCO.LOCAL_HIDDEN_DIM": 32,
    "MODEL.IIC.WIDTH": 8,
    "MODEL.IIC.WINDOW": 2,
    "INPUT.MIN_SIZE_TRAIN": (64, 96),
    "INPUT.MAX_SIZE_TRAIN": 128,
    "INPUT.MIN_SIZE_TEST": 64,
    "INPUT.MAX_SIZE_TEST": 128,
    "INPUT.CROP.SIZE": [64, 64],
    "INPUT.SSL.VIEW_SIZE": 64,
    "INPUT.SSL.PATCH_SIZE": 21,
    "INPUT.SSL.PRE_CROP": 96,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 2,
    "SOLVER.STEPS": (),
    "SOLVER.AMP.ENABLED": False,
    "SOLVER.RESCALE_INTERVAL": False,
    "TEST.CENTER_CROP_SIZE": 64,
    "TEST.SLIDE_WINDOW": 64,
    "TEST.SLIDE_STRIDE": 48,
    "TEST.EVAL_PERIOD": 0,
    "TEST.PRECISE_BN.ENABLED": False,
    "DATALOADER.NUM_WORKERS": 0,
}
ONLY_IF_SET = (
    "MODEL.SEM_SEG_HEAD.PSEUDO_LABEL.MERGE_FROM",
    "INPUT.SSL.PRE_CROP",
    "TEST.CENTER_CROP_SIZE",
    "TEST.SLIDE_WINDOW",
    "TEST.SLIDE_STRIDE",
)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The data sets of detectron2 and of this package under their own names, but below a drawn tree."""
    root = tmp_path_factory.mktemp("datasets")
    draw_trees(root)
    before = [(catalog, dict(catalog.data)) for catalog in (DatasetCatalog, MetadataCatalog)]
    for catalog, _ in before:
        catalog.data.clear()
    for register in (builtin.register_all_coco, builtin.register_all_cityscapes, builtin.register_all_pascal_voc):
        register(str(root))
    register_all_datasets(root)
    for seed, name in enumerate(("train", "val", "tiny")):
        register_scenes(f"scenes_{name}", root / "scenes" / name, num=4, seed=seed, size=96)
    DatasetCatalog.register("demo_photos", lambda: load_image_folder(root / "imagenet"))
    yield
    for catalog, content in before:
        catalog.data.clear()
        catalog.data.update(content)


def tiny_options(cfg) -> list[str]:
    options = []
    for key, value in TINY.items():
        node = cfg
        for part in key.split("."):
            node = node[part]
        if node or key not in ONLY_IF_SET:
            options += [key, str(value)]
    return options + (
        ["MODEL.DENSESIAM.GRID_SIZE", "16"] if cfg.MODEL.META_ARCHITECTURE == "DenseSiamSegmentor" else []
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(CONFIGS).with_suffix("")))
def test_recipe(path, drawn, tmp_path):
    recipe = load_config(str(path))
    data = ["DATASETS.TRAIN", "('scenes_train',)"] if path.parent == OWN else []
    words = ["--config-file", str(path), *tiny_options(recipe), *data, "OUTPUT_DIR", str(tmp_path / "run")]
    args = argument_parser().parse_args(words)
    cfg = checked_config(args)
    try:
        train_net.main(cfg, args)
        rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.json").read_text().splitlines()]
        losses = {row["iteration"]: row["total_loss"] for row in rows if "total_loss" in row}
        assert max(losses) == 1 and math.isfinite(losses[1])
        if cfg.DATASETS.TEST:
            results = json.loads((tmp_path / "run" / "results.json").read_text())
            assert set(results) == set(cfg.DATASETS.TEST) and all(results.values())
    finally:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)  # hundreds of megabytes


def test_some_recipe_names_each_layout():
    names = {name for path in RECIPES for name in load_config(str(path)).DATASETS.TRAIN}
    for layout in ("imagenet", "coco_2017_train", "coco_stuff27", "voc", "cityscapes_fine", "cityscapes27", "camvid"):
        assert any(name.startswith(layout) for name in names), layout

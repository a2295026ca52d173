"""Run the demo: pretraining, unsupervised segmentation, Mask R-CNN, and a report.

    python -m densesiam_d2.demo --output output/demo

Finished stages are not run again, their results are reused; ``--overwrite`` runs all stages again.
"""

import argparse
import os
import sys
import time
from pathlib import Path

from detectron2.data import DatasetCatalog

import densesiam_d2.data  # noqa: F401  registers the data
from densesiam_d2.demo.summary import write_summary
from densesiam_d2.engine.run_lock import InUseError, lock_file
from densesiam_d2.processes import INTERRUPTED
from densesiam_d2.reporting.stages import ROOT, Stage, StageError, run_stage

_TRAIN_SETS = ("scenes_train", "demo_photos")
_TEST_SET = "scenes_val"
_QUICK_TEST_SET = "scenes_tiny"
_QUICK = "SOLVER.MAX_ITER 2 SOLVER.STEPS () SOLVER.IMS_PER_BATCH 2"
_QUICK_SETS = f"DATASETS.TRAIN {_QUICK_TEST_SET} DATASETS.TEST {_QUICK_TEST_SET}"


def build_stages(output: Path, *, quick: bool) -> list[Stage]:
    """Return the stages in the order in which they run.

    Args:
        output: folder of the demo; each stage gets a folder in it.
        quick: run only two iterations of each stage on a few images, to see that everything works.
    """
    backbone = output / "pretrain" / "backbone.pkl"
    return [
        Stage(
            "pretrain",
            "pretraining with DenseSiam, without labels, from a MobileNetV2 that knows ImageNet",
            "configs/demo/pretrain.yaml",
            output / "pretrain",
            product="backbone.pkl",
            opts=tuple(f"{_QUICK} DATASETS.TRAIN {_QUICK_TEST_SET}".split()) if quick else (),
        ),
        *_segmentation_stages(output, quick=quick),
        *(
            Stage(
                name,
                title,
                "configs/demo/mask_rcnn.yaml",
                output / name,
                weights=weights,
                opts=tuple(f"{_QUICK} {_QUICK_SETS}".split()) if quick else (),
            )
            for name, title, weights in (
                ("mask_rcnn", "Mask R-CNN from that backbone", backbone),
                ("mask_rcnn_imagenet", "baseline: Mask R-CNN from the ImageNet weights", "torchvision://mobilenet_v2"),
                ("mask_rcnn_scratch", "baseline: Mask R-CNN from random weights", ""),
            )
        ),
    ]


def _segmentation_stages(output: Path, *, quick: bool) -> list[Stage]:
    train, test = (_QUICK_TEST_SET, _QUICK_TEST_SET) if quick else (_TRAIN_SETS[0], _TEST_SET)
    sets = (
        f"DATASETS.TRAIN {train} DATASETS.TEST {test} MODEL.SEM_SEG_HEAD.NUM_CLASSES 10 INPUT.MIN_SIZE_TEST 160 SEED 1"
    )
    views = f"INPUT.SSL.VIEW_SIZE 160 INPUT.SSL.PRE_CROP 160 SOLVER.MAX_ITER {2 if quick else 60}"
    photos = (
        "DATASETS.TRAIN demo_photos DATASETS.TEST () MODEL.SEM_SEG_HEAD.NUM_CLASSES 10 INPUT.MIN_SIZE_TEST 240 SEED 1 "
        f"INPUT.SSL.VIEW_SIZE 192 INPUT.SSL.PRE_CROP 240 SOLVER.IMS_PER_BATCH 4 SOLVER.MAX_ITER {2 if quick else 40}"
    )
    features = "['res4','res5']"
    merged = "configs/unsup_seg/densesiam_best_merged_mobilenet_v2_camvid.yaml"
    return [
        Stage(
            "unsup_seg",
            "segmentation without labels: merged clusters of a MobileNetV2's features",
            merged,
            output / "unsup_seg",
            opts=(*sets.split(), *views.split()),
        ),
        Stage(
            "photos",
            "the same on photographs",
            merged,
            output / "photos",
            product="model_final.pth",
            opts=tuple(photos.split()),
        ),
        Stage(
            "kmeans_features",
            "baseline: k-means on the same features",
            "configs/unsup_seg/kmeans_features.yaml",
            output / "kmeans_features",
            opts=(
                *("MODEL.RESNETS.OUT_FEATURES", features, "MODEL.SEM_SEG_HEAD.IN_FEATURES", features),
                *("MODEL.WEIGHTS", "torchvision://mobilenet_v2", "MODEL.KMEANS.STRIDE", "16", *sets.split()),
            ),
        ),
        Stage(
            "kmeans_color",
            "baseline: k-means on colours",
            "configs/unsup_seg/kmeans_color_position.yaml",
            output / "kmeans_color",
            opts=("MODEL.KMEANS.POSITION_WEIGHT", "0.0", *sets.split()),
        ),
    ]


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/demo"), help="folder for everything")
    parser.add_argument("--overwrite", action="store_true", help="run finished stages again")
    parser.add_argument("--quick", action="store_true", help="two iterations each, to see that it works")
    args = parser.parse_args(argv)
    if not (ROOT / "train_net.py").is_file():
        sys.exit(f"demo: it runs from a checkout of the project, and {ROOT} has no train_net.py")
    start, output = time.perf_counter(), args.output.resolve()
    os.chdir(ROOT)  # the stages run there too, and the default folder of the data is a relative path
    try:
        _lock = lock_file(output / ".demo.lock")
        report = run(output, quick=args.quick, overwrite=args.overwrite)
    except InUseError as error:
        sys.exit(f"demo: --output {output} is in use by {error}: wait for it, or name another folder")
    except (StageError, ImportError, ValueError, OSError) as error:
        sys.exit(f"demo: {error}")
    except KeyboardInterrupt:
        print("demo: interrupted; the same command goes on from the last finished stage", file=sys.stderr)
        sys.exit(INTERRUPTED)
    print(f"Done in {(time.perf_counter() - start) / 60:.1f} minutes. The report: {report}")


def run(output: Path, *, quick: bool = False, overwrite: bool = False) -> Path:
    """Run all stages and write ``report.html`` and ``results.json`` into ``output``. Returns the report's path.

    Raises:
        StageError: a stage failed.
        ImportError: the photographs' packages are missing.
    """
    stages = build_stages(output, quick=quick)
    total = len(stages) + 2
    print(f"[1/{total}] data: drawing scenes, unpacking photographs", flush=True)
    test_set = _QUICK_TEST_SET if quick else _TEST_SET
    train_sets = (_QUICK_TEST_SET,) if quick else _TRAIN_SETS
    for name in {*train_sets, test_set, "demo_photos"}:
        print(f"      {name}: {len(DatasetCatalog.get(name))} images", flush=True)
    records = {
        stage.name: run_stage(stage, position=f"[{i}/{total}]", overwrite=overwrite)
        for i, stage in enumerate(stages, start=2)
    }
    print(f"[{total}/{total}] report: pictures, tables", flush=True)
    return write_summary(output, {stage.name: stage for stage in stages}, records, train_sets[0], test_set, quick=quick)


if __name__ == "__main__":
    main()

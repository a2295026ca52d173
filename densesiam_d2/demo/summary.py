"""The demo's report: read the results of all stages, and write ``report.html`` and ``results.json``."""

import json
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import detectron2
import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from densesiam_d2.engine.segmentor import Segmentor
from densesiam_d2.engine.setup import load_config
from densesiam_d2.evaluation.json_scores import write_json
from densesiam_d2.grid.records import hardware
from densesiam_d2.reporting import pictures
from densesiam_d2.reporting.curves import Panel, draw_panel, read_metrics
from densesiam_d2.reporting.metric_texts import COLLAPSE, LOSSES, meaning_of
from densesiam_d2.reporting.page import Section, compare, write_report
from densesiam_d2.reporting.run_report import curve_pictures, write_run_report
from densesiam_d2.reporting.stages import ROOT, Stage

__all__ = ["write_summary"]

_PHOTOS = ("chelsea", "coffee", "rocket", "brick", "coins")
_SEGMENTATION = {
    "unsup_seg": "merged clusters",
    "kmeans_features": "k-means on features",
    "kmeans_color": "k-means on colours",
}
_DETECTION = {
    "mask_rcnn": "ImageNet, then DenseSiam",
    "mask_rcnn_imagenet": "ImageNet",
    "mask_rcnn_scratch": "random weights",
}
_LEAST_SCORE = 0.3  # predictions with a lower score are not drawn


@dataclass(frozen=True)
class _Run:
    """A finished stage.

    Attributes:
        stage: the stage.
        record: its command and time, as returned by ``run_stage``.
        results: its scores on the test set; empty for pretraining.
    """

    stage: Stage
    record: dict
    results: dict

    @property
    def output(self) -> Path:
        return self.stage.output

    def config(self, weights: Path | None = None):
        """Return the run's config for this machine, with other weights if given."""
        opts = [*self.stage.opts, "OUTPUT_DIR", str(self.output)]
        return load_config(str(ROOT / self.stage.config), opts + (["MODEL.WEIGHTS", str(weights)] if weights else []))


def write_summary(
    output: Path, stages: dict[str, Stage], records: dict[str, dict], train_set: str, test_set: str, *, quick: bool
) -> Path:
    """Write ``report.html`` and ``results.json``.

    Args:
        output: folder of the demo.
        stages: name -> stage.
        records: name of the stage -> record that ``run_stage`` returned.
        train_set: name of the dataset of labelled scenes for training.
        test_set: name of the dataset of labelled scenes for scoring.
        quick: whether the stages had two iterations only, so that the numbers mean nothing.

    Returns:
        Path of the report.
    """
    runs = {name: _Run(stage, records[name], _read_results(stage, test_set)) for name, stage in stages.items()}
    machine = {**hardware(), "Python": platform.python_version(), "detectron2": detectron2.__version__}
    introduction = _introduce(train_set, test_set, quick)
    sections = [
        _overview_section(output / "overview.jpg", runs, test_set),
        _pretraining_section(runs["pretrain"], test_set),
        _segmentation_section({name: runs[key] for key, name in _SEGMENTATION.items()}, runs["photos"], test_set),
        _detection_section({name: runs[key] for key, name in _DETECTION.items()}, test_set),
        _commands_section(runs, machine),
    ]
    results = {
        "quick": quick,
        "machine": machine,
        "test_set": test_set,
        "unsupervised_segmentation": {
            "merged_clusters": runs["unsup_seg"].results["sem_seg"],
            "kmeans_features": runs["kmeans_features"].results["sem_seg"],
            "kmeans_color": runs["kmeans_color"].results["sem_seg"],
        },
        "mask_rcnn": {name: runs[key].results for key, name in _DETECTION.items()},
        "stages": {name: {k: run.record[k] for k in ("command", "seconds", "finished")} for name, run in runs.items()},
    }
    write_json(output / "results.json", results)
    return write_report(output / "report.html", "DenseSiam in detectron2: demo", introduction, sections)


def _read_results(stage: Stage, test_set: str) -> dict:
    path = stage.output / "results.json"
    return json.loads(path.read_text())[test_set] if path.is_file() else {}


def _introduce(train_set: str, test_set: str, quick: bool) -> list[str]:
    num_train, num_test = len(DatasetCatalog.get(train_set)), len(DatasetCatalog.get(test_set))
    paragraphs = [
        "A MobileNetV2 that knows ImageNet goes on with DenseSiam on images without labels, and from there Mask R-CNN "
        "learns to detect and segment objects with labels. Beside that, it segments without labels.",
        f"The images are procedural scenes ({num_train} for training, {num_test} for scoring) and a few photographs. "
        "The demo shows that the whole way works. Small images, a small network and minutes of training say nothing "
        "about the scores on ImageNet, COCO or Cityscapes; each number comes from one run, so differences of a "
        "few points may be chance (docs/few_labels.md has three seeds).",
    ]
    if quick:
        paragraphs.insert(0, "This is a quick run of two iterations per stage: its numbers and pictures mean nothing.")
    return paragraphs


def _overview_section(path: Path, runs: dict[str, _Run], test_set: str) -> Section:
    """Write the picture of all results to ``path``, and return the section that shows it."""
    names = list(MetadataCatalog.get(test_set).stuff_classes)
    detectors = {"Mask R-CNN, pretrained": runs["mask_rcnn"], "Mask R-CNN, random start": runs["mask_rcnn_scratch"]}
    files = [record["file_name"] for record in DatasetCatalog.get("demo_photos")]
    photos = _segmented_photos(runs["photos"], [f for name in _PHOTOS for f in files if name in Path(f).name])
    scene = pictures.draw_overview(
        test_set,
        0,
        {"label map, no labels": _classes_of(runs["unsup_seg"], names)},
        {name: run.config(run.output / "model_final.pth") for name, run in detectors.items()},
        _LEAST_SCORE,
    )
    width = max(photos.shape[1], scene.shape[1])
    parts = [np.pad(p, ((0, 8), (0, width - p.shape[1]), (0, 0)), constant_values=255) for p in (photos, scene)]
    picture = np.vstack(parts)
    cv2.imwrite(str(path), picture[..., ::-1])
    return Section("In one picture").figure(
        picture,
        "Top: some photographs, and clusters that were found in them without a label. Bottom: the first scene of the "
        "test set, its clusters, and what Mask R-CNN finds after the same training with labels from two starts (score "
        f"at least {_LEAST_SCORE}).",
    )


def _segmented_photos(run: _Run, files: list[str]) -> np.ndarray:
    cfg = run.config(run.output / "model_final.pth")
    return pictures.draw_overlays(files, Segmentor(cfg), cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)


def _pretraining_section(run: _Run, test_set: str) -> Section:
    cfg = run.config()
    photos = [record for record in DatasetCatalog.get("demo_photos") if "chelsea" in Path(record["file_name"]).name]
    metrics = read_metrics(run.output)
    section = Section("1. Pretraining without labels")
    section.text(
        f"{cfg.SOLVER.MAX_ITER} iterations of {cfg.SOLVER.IMS_PER_BATCH} images in two views of "
        f"{cfg.INPUT.SSL.VIEW_SIZE} x {cfg.INPUT.SSL.VIEW_SIZE} pixels, in {run.record['seconds']:.0f} s."
    )
    section.command(run.record["command"])
    section.figure(
        pictures.draw_view_pairs(cfg, [*DatasetCatalog.get(test_set)[:2], *photos]),
        "Images with their two views. Points of the same colour show the same spot; the network learns to give them "
        "the same features.",
    )
    return section.panels(curve_pictures(metrics, LOSSES)).panels(curve_pictures(metrics, COLLAPSE))


def _segmentation_section(runs: dict[str, _Run], photos: _Run, test_set: str) -> Section:
    metadata = MetadataCatalog.get(test_set)
    names, colors = list(metadata.stuff_classes), np.array(metadata.stuff_colors, np.uint8)
    scores = {name: run.results["sem_seg"] for name, run in runs.items()}
    section = Section("2. Segmentation without labels")
    section.text(
        f"Each method sorts pixels into {len(names)} clusters, as many as there are classes. Labels are used only to "
        "score: each class gets the cluster that makes the most pixels right (Hungarian matching), for all methods "
        "alike. Merged clusters are many k-means clusters of a network's features, of which those that a crop and the "
        "whole image mix up most were merged. The first baseline is plain k-means on the same features. The second "
        "knows only the colour of a pixel; stuff comes in pairs of similar colour, so colour cannot tell all classes "
        "apart."
    )
    for run in runs.values():
        section.command(run.record["command"])
    ours, *others = ((name, s["mIoU"]) for name, s in scores.items())
    section.verdict(compare("mIoU", ours, others))
    section.table(["", "mIoU", "pixel accuracy"], [[n, s["mIoU"], s["pACC"]] for n, s in scores.items()])
    section.table(["IoU", *names], [[n, *(s[f"IoU-{c}"] for c in names)] for n, s in scores.items()])

    methods = {name: _classes_of(run, names) for name, run in runs.items()}
    section.figure(pictures.draw_legend(names, colors), "The classes.", photo=False)
    drawn = pictures.draw_segmentations(test_set, range(6), methods)
    section.figure(drawn, "The first scenes of the test set; not chosen.", photo=False)
    section.text(
        "The same method on photographs that have little in common. They have no labels, so there is no score: look "
        "whether the same kind of surface has the same colour."
    )
    section.command(photos.record["command"])
    files = [record["file_name"] for record in DatasetCatalog.get("demo_photos")]
    return section.figure(_segmented_photos(photos, files), "All photographs, and the clusters found in them.")


def _classes_of(run: _Run, names: list[str]) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from an image to its label map, each cluster having the class that it was matched with."""
    segmentor, table = Segmentor(run.config(run.output / "model_final.pth")), pictures.cluster_table(run.output, names)
    return lambda image: table[segmentor(image)]


def _detection_section(runs: dict[str, _Run], test_set: str) -> Section:
    section = Section("3. Mask R-CNN")
    section.text(
        "The same network, data and short schedule from three starts: the weights of section 1, the ImageNet weights "
        "they came from, and random weights. So the table shows what pretraining is worth at all, and what the minutes "
        "without labels add. Under other seeds the second difference may have the other sign."
    )
    for run in runs.values():
        section.command(run.record["command"])
    for task, name in (("segm", "mask AP"), ("bbox", "box AP")):
        ours, *others = ((start, run.results[task]["AP"]) for start, run in runs.items())
        section.verdict(compare(name, ours, others))
    columns = [(task, score) for task in ("segm", "bbox") for score in ("AP", "AP50", "AP75")]
    header = ["", *(f"{'mask' if task == 'segm' else 'box'} {score}" for task, score in columns)]
    section.table(header, [[n, *(r.results[t][s] for t, s in columns)] for n, r in runs.items()])
    metrics = {name: read_metrics(r.output) for name, r in runs.items()}
    drawn = []
    for key in ("total_loss", "loss_mask", "loss_cls"):
        meaning = meaning_of(key)
        panel = Panel(key, {name: m[key] for name, m in metrics.items() if key in m}, meaning.unit)
        drawn.append((draw_panel(panel), meaning.text))
    section.panels(drawn)
    cfgs = [r.config(r.output / "model_final.pth") for r in runs.values()]
    return section.figure(
        pictures.draw_detections(cfgs, test_set, range(4), _LEAST_SCORE),
        "The first scenes of the test set. Top: labels; below: predictions after the starts "
        f"{', '.join(runs)} (score at least {_LEAST_SCORE}).",
    )


def _commands_section(runs: dict[str, _Run], machine: dict) -> Section:
    section = Section("4. Commands and times")
    words = {**machine, "gpus": " and ".join(machine["gpus"]) or "none"}
    section.text(", ".join(f"{name}: {value}" for name, value in words.items()))
    rows = [[r.stage.title, round(r.record["seconds"]), r.record["finished"]] for r in runs.values()]
    section.table(["stage", "seconds", "finished"], rows)
    section.text(
        "The report of each stage, with all its numbers, files and config (python -m densesiam_d2.tools.report):"
    )
    section.links({name: f"{name}/{write_run_report(run.output).name}" for name, run in runs.items()})
    for run in runs.values():
        section.command(run.record["command"])
    return section

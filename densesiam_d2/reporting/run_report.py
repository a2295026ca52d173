"""The report of one run: where it is, its scores, collapse numbers, curves, views, files, config and commands."""

import shlex
import time
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
from detectron2.config import CfgNode

from densesiam_d2.engine.collapse import CollapseMonitor, healthy_range
from densesiam_d2.engine.setup import load_config
from densesiam_d2.grid.progress import duration
from densesiam_d2.labels.subset import evenly_spaced
from densesiam_d2.modeling import model_output, trains_on_views
from densesiam_d2.reporting.curves import Curve, Panel, draw_panel
from densesiam_d2.reporting.metric_texts import COLLAPSE, GROUPS, PROBE, SCORES, meaning_of
from densesiam_d2.reporting.page import Section, write_report
from densesiam_d2.reporting.pictures import draw_view_pairs, find_records
from densesiam_d2.reporting.run_files import RunFiles, config_differences

__all__ = ["curve_pictures", "write_run_report"]

_NUM_VIEWS = 3  # images in the section of views
_MOST_FILES = 20  # unreadable files in the table
_MOST_COLUMNS = 8  # scores in a row
_PICTURES = {
    "confusion.png": "Each row says where the pixels of a class went, in percent.",
    "contact_sheet.png": "Images of the test set with their labels and predictions, evenly chosen.",
}
_TASKS = {"segm": "masks", "bbox": "boxes", "sem_seg": "pixels"}


def write_run_report(folder: Path, path: Path | None = None) -> Path:
    """Write the report of a run, which may still be going on.

    Args:
        folder: OUTPUT_DIR of the run.
        path: the file to write; None stands for ``report.html`` in the folder.

    Returns:
        The file.

    Raises:
        FileNotFoundError: the folder holds no run.
    """
    folder = folder.resolve()  # "." has no name, and the commands are for another folder
    run = RunFiles(folder)
    parts = (_state, _scores, _collapse, _curves, _views, _set_aside, _weights, _config, _commands)
    sections = [section for part in parts if (section := part(run)) is not None]
    for problem in run.problems:
        sections[0].warning(f"Could not be read: {problem}")
    title = f"{run.cfg.MODEL.META_ARCHITECTURE}: {folder.name}" if run.cfg else folder.name
    about = f"Report of the run in {folder}, written on {time.strftime('%Y-%m-%d at %H:%M:%S')}."
    return write_report(path or folder / "report.html", title, [about], sections)


def curve_pictures(metrics: Mapping[str, Curve], group: str) -> list[tuple[np.ndarray, str]]:
    """Return a picture and a caption for the numbers of a group, as :meth:`Section.panels` takes them.

    Scores of one test set and task share a picture, other numbers have one each.

    Args:
        metrics: name -> curve.
        group: see :data:`densesiam_d2.reporting.metric_texts.GROUPS`.
    """
    titles: dict[str, list[str]] = {}
    for name in sorted(metrics):
        meaning = meaning_of(name)
        if meaning is not None and meaning.group == group and np.isfinite(metrics[name][1]).any():
            titles.setdefault(name.rpartition("/")[0] if group in (SCORES, PROBE) else name, []).append(name)
    pictures = []
    for title, names in titles.items():
        meaning = meaning_of(names[0])
        curves = {name.rpartition("/")[2]: metrics[name] for name in names}
        panel = Panel(title, curves, meaning.unit, *_limits(title, metrics))
        values = _best_values(panel) if group in (SCORES, PROBE) else f"Last: {metrics[title][1][-1]:.4g}."
        pictures.append((draw_panel(panel), f"{meaning.text} {_healthy_text(panel)}{values}"))
    return pictures


def _best_values(panel: Panel) -> str:
    """Return the last and the highest value of each curve as text."""
    parts = []
    for name, (iterations, values) in panel.curves.items():
        best = int(np.nanargmax(values))
        parts.append(f"{name}: last {values[-1]:.1f}, highest {values[best]:.1f} at {iterations[best]:.0f}")
    return f"{'; '.join(parts)}."


def _limits(name: str, metrics: Mapping[str, Curve]) -> tuple[tuple[float | None, float | None], float | None]:
    """Return the healthy range of a number, and the value to compare it with."""
    ideal = metrics["ssl/z_std_ideal"][1][-1] if "ssl/z_std_ideal" in metrics else None
    return healthy_range(name.removeprefix("ssl/"), ideal), ideal if name == "ssl/z_std" else None


def _healthy_text(panel: Panel) -> str:
    low, high = panel.healthy
    parts = ([f"from {low:g}"] if low is not None else []) + ([f"up to {high:g}"] if high is not None else [])
    return f"Healthy {' '.join(parts)}. " if parts else ""


def _state(run: RunFiles) -> Section:
    section, rows = Section("State"), []
    total = run.cfg.SOLVER.MAX_ITER if run.cfg else 0
    if run.seeds:
        seeds, missing = run.seeds["seeds"], len(run.seeds.get("not_done", {}))
        rows.append(["state", f"{len(seeds)} seeds, {missing} not done; each has its own folder and report"])
    elif run.evaluated_only:
        rows.append(["state", "evaluated, not trained"])
    else:
        done = f"{run.iterations} of {total} ({run.iterations / total:.0%})" if total else str(run.iterations)
        rows.append(["iterations", done])
        rows.append(["state", _progress(run)])
    if not run.finished and "eta_seconds" in run.metrics:
        rows.append(["time left then", duration(run.metrics["eta_seconds"][1][-1])])
    if run.cfg:
        rows += [
            ["training set", ", ".join(run.cfg.DATASETS.TRAIN) or "nothing"],
            ["test set", ", ".join(run.cfg.DATASETS.TEST) or "nothing"],
            ["weights at the start", run.cfg.MODEL.WEIGHTS or "random weights"],
            ["images per iteration", str(run.cfg.SOLVER.IMS_PER_BATCH)],
        ]
    return section.table(["", ""], rows, words=True)


def _progress(run: RunFiles) -> str:
    if run.finished:
        return "training has ended"
    if run.last_written is None:
        return "no numbers yet"
    ago = duration(max(0.0, time.time() - run.last_written))
    return f"not at its end; the last numbers were written {ago} before this page"


def _scores(run: RunFiles) -> Section | None:
    """Scores of the evaluation, with the pictures that it wrote; None if nothing was evaluated."""
    results = run.results
    if not results:
        return None
    section = Section("Scores")
    if run.seeds:
        section.text(
            f"Mean and standard deviation of the seeds {results['seeds']}; each has a folder and its own report."
        )
        for failed, reason in results.get("not_done", {}).items():
            section.warning(f"{failed} is not done: {reason}")
        results = results["scores"]
    section.text(
        "From results.json. AP, IoU and accuracy are in percent; n/a: the test set has nothing to score there."
    )
    for dataset, tasks in results.items():
        section.headline(dataset)
        _add_tables(section, {k: v for k, v in tasks.items() if isinstance(v, Mapping) and k != "protocol"})
        if "protocol" in tasks:
            section.text("; ".join(f"{key.replace('_', ' ')}: {value}" for key, value in tasks["protocol"].items()))
        if tasks.get("absent_classes"):
            section.text(f"Classes without anything in this set: {', '.join(tasks['absent_classes'])}.")
    for path in sorted((run.folder / "inference").rglob("*.png")):
        picture = cv2.imread(str(path))
        if picture is not None:
            caption = f"{_PICTURES.get(path.name, '')} ({path.relative_to(run.folder)})"
            section.figure(picture[..., ::-1], caption, photo=False)
    return section


def _add_tables(section: Section, tasks: Mapping[str, Mapping]) -> None:
    """Add the scores of a test set: few in one row per task, many below each other; those of classes are folded."""
    in_a_row: dict[tuple[str, ...], list] = {}
    for task, scores in tasks.items():
        name = _TASKS.get(task, task)
        of_classes = {score: _score(value) for score, value in scores.items() if score.startswith(("IoU-", "AP-"))}
        others = {score: _score(value) for score, value in scores.items() if score not in of_classes}
        if len(others) > _MOST_COLUMNS:
            section.table([name, "score"], list(others.items()))
        else:
            in_a_row.setdefault(tuple(others), []).append([name, *others.values()])
        if of_classes:
            rows = [[score.partition("-")[2], value] for score, value in of_classes.items()]
            section.table(
                ["class", next(iter(of_classes)).partition("-")[0]], rows, folded=f"Scores of each class, {name}"
            )
    for columns, rows in in_a_row.items():
        section.table(["", *columns], rows)


def _score(value: float | Mapping | None) -> float | str | None:
    """Return what stands in a cell: a number, or mean and deviation of several seeds."""
    if not isinstance(value, Mapping):
        return value
    mean, std = value.get("mean"), value.get("std")
    if not isinstance(mean, int | float):
        return None
    return f"{mean:.1f}" + (f" ± {std:.1f}" if isinstance(std, int | float) else "")


def _collapse(run: RunFiles) -> Section | None:
    """The numbers that show a collapse; None for a run that logs none."""
    pictures = curve_pictures(run.metrics, COLLAPSE)
    if not pictures:
        return None
    section = Section(COLLAPSE)
    section.text(
        "In a collapse all features become equal although the loss falls. Each number below shows another kind. "
        "Green is healthy, red is a collapse; a number on white ground has no limit."
    )
    values = {name.removeprefix("ssl/"): curve[1][-1] for name, curve in run.metrics.items() if name.startswith("ssl/")}
    signs = CollapseMonitor.complaints(values)
    if signs:
        section.warning(f"The last values show a collapse: {'; '.join(signs)}. The log says what helps.")
    else:
        section.verdict("The last values show no collapse.")
    return section.panels(pictures)


def _curves(run: RunFiles) -> Section | None:
    section, any_picture = Section("Curves"), False
    for group in GROUPS:
        pictures = curve_pictures(run.metrics, group) if group != COLLAPSE else []
        if pictures:
            section.headline(group).panels(pictures)
            any_picture = True
    return section if any_picture else None


def _views(run: RunFiles) -> Section | None:
    """Images with their two views; None for a run that does not train on views."""
    if run.cfg is None or not trains_on_views(run.cfg):
        return None
    section = Section("Views")
    try:
        cfg = run.cfg.clone()
        records = find_records(cfg)
        chosen = evenly_spaced(records, _NUM_VIEWS)
        picture = draw_view_pairs(cfg, chosen)
    except (ValueError, OSError, ImportError) as error:
        return section.text(f"The training images cannot be read here: {error}")
    return section.figure(
        picture,
        f"{len(chosen)} of {len(records)} training images with two views, drawn anew as training draws them. Points of "
        "the same colour and number show the same spot; the network learns to give them the same features.",
    )


def _set_aside(run: RunFiles) -> Section:
    section, files = Section("Files set aside"), run.set_aside
    if not files:
        return section.text("No unreadable file was met (there is no quarantine.jsonl).")
    section.text(f"{len(files)} files could not be read; others were taken for them. All are in quarantine.jsonl.")
    rows = [[entry["file_name"], entry.get("reason", "")] for entry in files[:_MOST_FILES]]
    return section.table(["file", "reason"], rows, words=True)


def _weights(run: RunFiles) -> Section:
    section = Section("Checkpoints")
    if run.seeds:
        return section.text("In the folders of the seeds.")
    if not run.weights:
        return section.text("None." if run.evaluated_only else "None yet.")
    kinds = {
        "model_final.pth": "the end of training",
        "model_best.pth": f"the best value of {run.cfg.TEST.BEST_METRIC if run.cfg else 'TEST.BEST_METRIC'}",
        "backbone.pkl": "the backbone alone, for MODEL.WEIGHTS of the next training",
        "backbone.safetensors": "the same backbone, for other programs",
        "backbone_best.pkl": "the backbone of model_best.pth",
        "backbone_best.safetensors": "the same backbone, for other programs",
    }
    rows = [
        [path.name, size, date, kinds.get(path.name, "") + (" (--resume starts here)" * (path.name == run.newest))]
        for path, size, date in run.weights
    ]
    return section.table(["file", "MiB", "written", "what it is"], rows, words=True)


def _config(run: RunFiles) -> Section | None:
    if run.cfg is None:
        return None
    section = Section("Config")
    yaml = run.start.config_file if run.start else ""
    if yaml and Path(yaml).is_file():
        try:
            _add_differences(section, yaml, run.cfg, load_config(yaml))
        except ValueError as error:
            section.warning(f"The yaml of the command, {yaml}, cannot be read any more: {error}")
    elif yaml:
        section.text(f"The yaml of the command, {yaml}, is not here; the defaults below are what remains to compare.")
    changes = config_differences(run.cfg)
    folded = f"{len(changes)} keys differ from the defaults of detectron2 and this project"
    return section.table(["key", "default", "this run"], changes, words=True, folded=folded)


def _add_differences(section: Section, yaml: str, cfg: CfgNode, base: CfgNode) -> None:
    changes = config_differences(cfg, base)
    if not changes:
        section.text(f"The run has exactly the values of {yaml}.")
        return
    section.text(
        f"What the command line, the data and the machine changed in {yaml} (iterations that follow from epochs, "
        "classes that follow from labels):"
    )
    section.table(["key", yaml, "this run"], changes, words=True)


def _commands(run: RunFiles) -> Section:
    section, folder = Section("Commands"), run.folder
    commands = {"The same again, in a new folder": run.command()}
    if run.cfg is not None:
        config = ["--config-file", str(folder / "config.yaml")]
        train, weights = run.train_net(config[1]), str(folder / (run.newest or "model_final.pth"))
        if run.evaluated_only:
            weights = run.cfg.MODEL.WEIGHTS
        else:
            again = [*train, "OUTPUT_DIR", f"{folder}_again"]
            commands["The same from the values of this run, whatever has become of the yaml"] = shlex.join(again)
            if not run.finished:
                commands["Go on with it after it was stopped"] = shlex.join([*train, "--resume"])
            if run.cfg.DATASETS.TEST:
                commands["Evaluate again"] = shlex.join([*train, "--eval-only", "MODEL.WEIGHTS", weights])
        if weights and model_output(run.cfg) in ("instances", "semantic"):
            words = [*config, "--weights", weights, "--input", "IMAGES", "--output", f"{folder.name}_predicted"]
            commands["Apply it to images"] = shlex.join(["python", "-m", "densesiam_d2.tools.predict", *words])
    page = shlex.join(["python", "-m", "densesiam_d2.tools.report", str(folder)])
    commands["This page again, with what has been written since"] = page
    for text, command in commands.items():
        if command:
            section.text(f"{text}:").command(command)
    return section

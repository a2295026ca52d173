r"""Draw a low-shot curve: train with few labels from several starts, and show what each start is worth.

    python -m densesiam_d2.tools.low_shot --config-file configs/own/mask_rcnn_R18_FPN.yaml \
        --train coco:/data/train.json,images=/data/train --test coco:/data/val.json,images=/data/val \
        --labels 10 25 50 100 all --starts scratch supervised.pkl output/pretrain_R18/backbone.pkl \
        --output output/low_shot --seeds 3

Works for Mask R-CNN, Faster R-CNN (MODEL.MASK_ON False) and semantic FCN, whose sets are named masks:IMAGES,labels=DIR.

- A seed draws random subsets of the training images that are nested: the 10 are among the 25. All starts get the same.
- The length of a training follows the number of labels, and the last layers have four times the learning rate; the rule
  stands in densesiam_d2/grid/schedules.py. ``--length 0.1`` makes all trainings shorter, for a trial.
- A start is "scratch" (random weights), a file as for MODEL.WEIGHTS, or NAME=FILE. Files that do not exist or do not
  fit the config are named before any training begins.
- Each training is one command of train_net.py in a folder of its own. The same command line again skips those that are
  done, goes on with stopped ones and tries failed ones again. Several calls on one folder share the work, for instance
  one for each GPU with CUDA_VISIBLE_DEVICES.

FOLDER/report.html (mean and standard deviation over the seeds, as plot and table) and FOLDER/results.json are written
after each training; what is missing or failed is shown in both.

Exit status: 0; 1 if a training is not done; 2 for wrong usage, data or weights; 75 when stopped.
"""

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from densesiam_d2.engine import argument_parser, checked_config, load_config
from densesiam_d2.evaluation.json_scores import write_json
from densesiam_d2.grid import Cell, Table
from densesiam_d2.grid.low_shot import count_labels, label_counts, low_shot_cells, transfer_scores
from densesiam_d2.grid.schedules import low_shot_iterations
from densesiam_d2.grid.starts import check_starts, parse_starts
from densesiam_d2.grid.table import Entry
from densesiam_d2.reporting.curves import draw_scores
from densesiam_d2.reporting.grid_page import DIFFERENCE_NOTE, difference, points, runs_section
from densesiam_d2.reporting.page import Section, write_report
from densesiam_d2.reporting.stages import ROOT
from densesiam_d2.tools.command_line import naming, tool
from densesiam_d2.tools.grid_command import RUN_KEYS, add_grid_arguments, check_grid_arguments, run_grid

__all__ = ["main", "write_low_shot_page"]


@tool
def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    words = sys.argv[1:] if argv is None else argv
    args = _parser().parse_args(words)
    command = shlex.join(["python", "-m", "densesiam_d2.tools.low_shot", *words])
    return _run(args, command)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help="yaml of a training with labels, as in configs/own")
    parser.add_argument("--train", required=True, metavar="SET", help="labelled images to draw from")
    parser.add_argument("--test", required=True, metavar="SET", help="labelled images for the scores")
    parser.add_argument("--labels", nargs="+", required=True, metavar="N", help="numbers of labelled images, or all")
    parser.add_argument("--starts", nargs="+", required=True, metavar="START", help="scratch, FILE or NAME=FILE")
    add_grid_arguments(parser, output="output/low_shot")
    return parser


def _run(args: argparse.Namespace, command: str) -> int:
    check_grid_arguments(args, RUN_KEYS)
    starts = parse_starts(args.starts)
    root = args.output.resolve()
    words = ["--config-file", args.config_file, "--num-gpus", str(args.num_gpus), *args.opts]
    words += ["DATASETS.TRAIN", args.train, "DATASETS.TEST", args.test, "MODEL.WEIGHTS", "", "OUTPUT_DIR", str(root)]
    with naming(args.config_file):
        transfer_scores(load_config(args.config_file, args.opts), args.test)  # refuses configs without labels
        cfg = checked_config(argument_parser().parse_args(words))
    check_starts(cfg, starts)
    counts = label_counts(args.labels, args.train, count_labels(cfg, args.train, args.test, args.opts[::2]))
    for word, count in counts.items():
        iterations = low_shot_iterations(count, cfg.SOLVER.IMS_PER_BATCH, length=args.length)
        print(f"{word} labels ({count} images): {iterations:,} iterations of {cfg.SOLVER.IMS_PER_BATCH}")
    cells = low_shot_cells(
        cfg,
        root=root,
        counts=counts,
        starts=starts,
        seeds=args.seeds,
        test=args.test,
        script=ROOT / "train_net.py",
        config_file=args.config_file,
        train=args.train,
        length=args.length,
        num_gpus=args.num_gpus,
        opts=args.opts,
    )
    return run_grid(cells, args, lambda: write_low_shot_page(root, cells, counts, command))


def write_low_shot_page(root: Path, cells: Sequence[Cell], counts: Mapping[int | str, int], command: str) -> Path:
    """Write report.html and results.json from what is done, and return the path of the page.

    Args:
        root: the grid's folder.
        cells: from ``low_shot_cells``.
        counts: number of labels or "all" -> number of images.
        command: the command line of the whole grid.
    """
    table = Table(cells)
    starts = list(dict.fromkeys(cell.axes["start"] for cell in cells))
    iterations = {cell.axes["labels"]: round(cell.work) for cell in cells}
    score, first = table.scores[0], starts[0]

    def entry(start: str, count: int, name: str = score) -> Entry:
        return table.rows[start, count][name]

    ticks = {count: f"{count}\n(all)" if word == "all" else str(word) for word, count in counts.items()}
    lines = {start: points([(count, entry(start, count)) for count in counts.values()]) for start in starts}
    section = Section(f"{score} against the number of labelled images")
    section.figure(
        draw_scores(lines, x="labelled images", y=score, ticks=ticks),
        f"Mean {score} over the seeds; a bar is one standard deviation up and down.",
        photo=False,
    )
    rows = [
        [
            *(ticks[count].replace("\n", " "), start, iterations[count]),
            *(str(entry(start, count, name)) for name in table.scores),
            "" if start == first else difference(entry(start, count), entry(first, count)),
        ]
        for count in counts.values()
        for start in starts
    ]
    section.table(["labels", "start", "iterations", *table.scores, f"{score} minus {first}"], rows)
    section.text(f"Mean ± standard deviation (n - 1) over the seeds, in percent. {DIFFERENCE_NOTE}")
    introduction = [
        f"How good a model becomes with few labels, from {len(starts)} starts: {', '.join(starts)}. With one seed, a "
        "smaller set of labels lies in the larger ones, and all starts learn from the same images with the same "
        "schedule."
    ]
    write_json(root / "results.json", {"command": command, "iterations": iterations, **table.to_json()})
    return write_report(
        root / "report.html", "Low-shot curve", introduction, [section, runs_section(cells, table, command)]
    )


if __name__ == "__main__":
    sys.exit(main())

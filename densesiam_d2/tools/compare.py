r"""Compare pretraining methods on your own images at equal cost.

    python -m densesiam_d2.tools.compare --configs densesiam=configs/pretrain_R18.yaml configs/pretrain_simsiam.yaml \
        --data folder:/data/images --budget pairs=10000 --batch 64 \
        --probe masks:/data/train,labels=/data/train_labels masks:/data/val,labels=/data/val_labels \
        --transfer configs/own/mask_rcnn_R18_FPN.yaml coco:/data/train.json coco:/data/val.json --labels 50 \
        --starts scratch --output output/compare --seeds 3 \
        MODEL.RESNETS.DEPTH 18 MODEL.RESNETS.RES2_OUT_CHANNELS 64 INPUT.SSL.VIEW_SIZE 112

For each seed, each method is pretrained on the same images and exports its backbone; tools.probe scores its frozen
features on labelled sets; with --transfer, a detector or FCN is trained from it with labels and evaluated.

- ``--budget pairs=N``: every method sees N pairs of views (100,000 by default). ``--budget minutes=M``: every method
  trains for M minutes on this machine; short trainings measure its seconds per step first. Several values with commas
  between them, such as pairs=2000,10000, give a curve; each is a training of its own with its own schedule.
- ``--batch B`` gives all methods B pairs in an iteration, and scales their learning rates in proportion.
- ``--labels N`` draws N labelled images by seed for the transfer; its length follows them, as in tools.low_shot.
- ``--starts``: weights that are not pretrained here, scored in the same way: scratch, FILE or NAME=FILE. They are
  probed with the backbone of the first config.
- Keys and values at the end hold for pretraining (such as MODEL.WEIGHTS) and probe. Those of the transfer follow its
  test set.
- All configs, data sets, starts and backbones are checked before any training begins. The same command line again skips
  what is done, goes on with what was stopped, and tries failed runs again.

FOLDER/report.html (quality, seconds per step, memory; a plot of the probe against the time of pretraining) and
FOLDER/results.json are written after each run; what is missing or failed is shown in both.

Exit status: 0; 1 if a run is not done; 2 for wrong usage, data or weights; 75 when stopped.
"""

import argparse
import contextlib
import dataclasses
import io
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from detectron2.config import CfgNode

from densesiam_d2.data.datasets import check_datasets
from densesiam_d2.engine import argument_parser, checked_config, load_config
from densesiam_d2.evaluation.cityscapes import ensure_cityscapes_api
from densesiam_d2.evaluation.json_scores import write_json
from densesiam_d2.grid import Cell, State, Table, state_of
from densesiam_d2.grid.compare import Budget, Comparison, Cost, Method, Transfer, check_backbones, cost_of
from densesiam_d2.grid.low_shot import ALL, count_labels, label_counts, transfer_scores
from densesiam_d2.grid.starts import Start, check_starts, parse_starts, split_name
from densesiam_d2.modeling import trains_on_views
from densesiam_d2.probe.truth import labelled_pair
from densesiam_d2.reporting.curves import draw_scores
from densesiam_d2.reporting.grid_page import points, runs_section
from densesiam_d2.reporting.page import Section, write_report
from densesiam_d2.reporting.stages import ROOT
from densesiam_d2.tools.command_line import naming, tool
from densesiam_d2.tools.grid_command import (
    RUN_KEYS,
    add_grid_arguments,
    check_grid_arguments,
    check_opts,
    run_grid,
)

__all__ = ["main", "write_compare_page"]

RESERVED = {*RUN_KEYS, "SOLVER.IMS_PER_BATCH", "SOLVER.BASE_LR"} - {"MODEL.WEIGHTS"}


@tool
def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    words = sys.argv[1:] if argv is None else argv
    args = _parser().parse_args(words)
    command = shlex.join(["python", "-m", "densesiam_d2.tools.compare", *words])
    return _run(args, command)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", required=True, metavar="YAML", help="pretrainings: YAML or NAME=YAML")
    parser.add_argument("--data", nargs="+", required=True, metavar="SET", help="images to pretrain on")
    parser.add_argument(
        "--budget", default="pairs=100000", metavar="B", help="pairs=N or minutes=M (default %(default)s)"
    )
    parser.add_argument("--batch", type=int, metavar="N", help="pairs in an iteration (default: that of each yaml)")
    parser.add_argument("--probe", nargs=2, required=True, metavar=("TRAIN", "TEST"), help="labelled sets of the probe")
    parser.add_argument(
        "--transfer", nargs="+", metavar="WORD", help="yaml, training set and test set; then keys and values"
    )
    parser.add_argument("--labels", default=ALL, metavar="N", help="labelled images of the transfer (default all)")
    parser.add_argument("--starts", nargs="+", default=[], metavar="START", help="scratch, FILE or NAME=FILE")
    add_grid_arguments(parser, output="output/compare")
    return parser


def _run(args: argparse.Namespace, command: str) -> int:
    budget = Budget.parse(args.budget)
    check_grid_arguments(args, RESERVED)
    if not args.transfer and (args.labels != ALL or args.length != 1):
        raise ValueError("--labels and --length are for the training of --transfer: add it, or leave them out")
    starts = parse_starts(args.starts)
    methods = _methods(args, starts)
    check_starts(methods[0].cfg, starts)
    comparison = Comparison(
        root=args.output.resolve(),
        script=ROOT / "train_net.py",
        methods=methods,
        starts=starts,
        seeds=args.seeds,
        data=args.data,
        probe=tuple(args.probe),
        transfer=_transfer(args, methods, starts) if args.transfer else None,
        budget=budget,
        batch=args.batch,
        num_gpus=args.num_gpus,
        opts=args.opts,
    )

    comparison.check_pairs()

    def write_page() -> Path:
        return write_compare_page(comparison, comparison.cells(), command)

    timing = comparison.timing_cells()
    if timing and not args.dry_run:
        print("first, the seconds per step of each method:")
        run_grid(timing, args, write_page)
    return run_grid(comparison.cells(), args, write_page)


def _methods(args: argparse.Namespace, starts: Sequence[Start]) -> list[Method]:
    """Check all configs as train_net.py does, and the probe's labels; a method without a name has that of its file."""
    batch = ["SOLVER.IMS_PER_BATCH", str(args.batch)] if args.batch is not None else []
    methods = []
    for word in args.configs:
        name, file = split_name(word)
        with naming(file):
            cfg = load_config(file, args.opts)
        if not trains_on_views(cfg):
            raise ValueError(f"--configs {file}: {cfg.MODEL.META_ARCHITECTURE} is no pretraining")
        with contextlib.redirect_stdout(io.StringIO()) if methods else contextlib.nullcontext():  # one note is enough
            _checked(args, file, [*args.opts, *batch, "DATASETS.TRAIN", repr(tuple(args.data)), "DATASETS.TEST", "()"])
        methods.append(Method(name or Path(file).stem.removeprefix("pretrain_"), file, cfg))
    names = [method.name for method in methods] + [start.name for start in starts]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two of --configs and --starts are called {name}: name them by NAME=FILE")
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = [args.probe[0]], [args.probe[1]]
    check_datasets(cfg)
    ensure_cityscapes_api(args.probe)
    labelled_pair(*args.probe, white_level=cfg.INPUT.WHITE_LEVEL)
    return methods


def _checked(args: argparse.Namespace, file: str, opts: Sequence[str]) -> CfgNode:
    words = ["--config-file", file, "--num-gpus", str(args.num_gpus), *opts, "OUTPUT_DIR", str(args.output.resolve())]
    with naming(file):
        return checked_config(argument_parser().parse_args(words))


def _transfer(args: argparse.Namespace, methods: Sequence[Method], starts: Sequence[Start]) -> Transfer:
    """Check the training with labels, and that all backbones and starts fit it."""
    if len(args.transfer) < 3:
        raise ValueError("--transfer takes a yaml, a training set and a test set; then keys and values, if any")
    config_file, train, test, *opts = args.transfer
    check_opts(opts, RUN_KEYS)
    with naming(config_file):
        transfer_scores(load_config(config_file, opts), test)  # refuses configs without labels
    with contextlib.redirect_stdout(io.StringIO()):
        sets = ["DATASETS.TRAIN", train, "DATASETS.TEST", test]
        cfg = _checked(args, config_file, [*opts, *sets, "MODEL.WEIGHTS", ""])
    check_starts(cfg, starts)
    check_backbones(methods, cfg)
    ((labels, count),) = label_counts([args.labels], train, count_labels(cfg, train, test, opts[::2])).items()
    command = {"labels": labels, "count": count, "length": args.length, "num_gpus": args.num_gpus, "opts": opts}
    command |= {"script": ROOT / "train_net.py", "config_file": config_file, "train": train}
    return Transfer(cfg, test, command)


def write_compare_page(comparison: Comparison, cells: Sequence[Cell], command: str) -> Path:
    """Write report.html and results.json from what is done, and return the path of the page.

    Args:
        comparison: what the cells are made of.
        cells: its cells.
        command: the command line of the whole grid.
    """
    table, unit = Table(cells), comparison.budget.unit
    methods = [(start.name, "") for start in comparison.starts]
    methods += [(method.name, value) for value in comparison.budget.values for method in comparison.methods]
    costs = {row: _mean_costs(cells, *row) for row in methods}
    lines, rows = {}, []
    for method, value in methods:
        entries = table.rows.get(tuple({"method": method, "budget": value}[axis] for axis in table.axes), {})
        cost = costs[method, value]
        if table.scores and entries:
            lines.setdefault(method, []).append((cost["minutes"] if value else 0.0, entries[table.scores[0]]))
        numbers = [_text(cost["minutes"], 2), _text(cost["seconds_per_step"], 3), _text(cost["mib"], 0)]
        given = f"{value:.15g} {unit}" if value else "not pretrained here"
        rows.append([method, given, *numbers, *(str(entries.get(score, "")) for score in table.scores)])
    section = Section("Quality and cost")
    if table.scores:
        section.figure(
            draw_scores(
                {method: points(entries) for method, entries in lines.items()},
                x="minutes of pretraining",
                y=table.scores[0],
            ),
            f"Mean {table.scores[0]} of frozen features over the seeds; a bar is one standard deviation up and down.",
            photo=False,
        )
    section.table(["method", "budget", "minutes", "s per step", "memory, MiB", *table.scores], rows)
    section.text(
        "Scores: mean ± standard deviation (n - 1) over the seeds, in percent. Minutes: seconds per step times the "
        "number of steps, without the start of the program. Memory: the most that one GPU held; without a GPU, the "
        "resident memory of the largest process."
    )
    introduction = [
        f"{len(comparison.methods)} methods, pretrained without labels on {', '.join(comparison.data)} at equal "
        f"{unit}. The probe fits a linear and a nearest-neighbour classifier to frozen features of "
        f"{comparison.probe[0]} and scores them on {comparison.probe[1]}."
    ]
    if comparison.transfer:
        given = comparison.transfer.command
        introduction.append(
            f"Then {given['config_file']} is trained from each backbone with {given['count']} labelled images of "
            f"{given['train']}, and evaluated on {comparison.transfer.test}."
        )
    measured = [{"method": method, "budget": value, **cost} for (method, value), cost in costs.items() if value]
    content = {"command": command, "budget": unit, "costs": measured, **table.to_json()}
    write_json(comparison.root / "results.json", content)
    sections = [section, runs_section(cells, table, command)]
    return write_report(comparison.root / "report.html", "Pretraining methods compared", introduction, sections)


def _mean_costs(cells: Sequence[Cell], method: str, budget: float | str) -> dict[str, float | None]:
    """Return the mean of each field of ``Cost`` over the finished pretrainings of a method; None without any."""
    done = [
        dataclasses.asdict(cost_of(cell))
        for cell in cells
        if (cell.stage, cell.axes.get("method"), cell.axes.get("budget")) == ("pretrain", method, budget)
        and state_of(cell) == State.DONE
    ]
    values = {f.name: [c[f.name] for c in done if c[f.name] is not None] for f in dataclasses.fields(Cost)}
    return {name: mean(numbers) if numbers else None for name, numbers in values.items()}


def _text(number: float | None, digits: int) -> str:
    return "" if number is None else f"{number:.{digits}f}"


if __name__ == "__main__":
    sys.exit(main())

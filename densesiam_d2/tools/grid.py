r"""Run a grid of commands that is written down in a yaml, and sum up its scores.

    python -m densesiam_d2.tools.grid run configs/grids/methods.yaml --output output/methods \
        --set data=/data seed=0,1
    python -m densesiam_d2.tools.grid table configs/grids/methods.yaml --output output/methods \
        --set data=/data

``run`` runs what is not done yet. It can be stopped by Ctrl-C or SIGTERM and called again: finished cells are kept, a
stopped training goes on from its last checkpoint, failed cells are tried again. Several calls on one folder share the
cells, also on several machines with a shared file system. On a machine with several GPUs, start one call for each, with
CUDA_VISIBLE_DEVICES=0, 1 and so on. Every cell has a folder with log.txt and cell.json: command, seed, code version,
hardware, date, seconds, memory, scores.

``table`` writes mean and sample standard deviation over the seeds, and lists the cells that are missing or failed. With
``--markdown FILE`` it also replaces what is between the lines ``<!-- begin NAME -->`` and ``<!-- end NAME -->`` of a
document, where NAME is that of the yaml, or ``--name``; a new file gets these lines. ``--plot FILE AXIS SCORE`` draws
the means of a score over an axis of numbers, as dots with bars of one standard deviation. There is a line for each
value of the other axes; ``--set`` leaves values out:

    python -m densesiam_d2.tools.grid table configs/grids/few_labels.yaml --output output/few_labels \
        --set data=/data dataset=nuclei labels=10,25,50,100,393 --plot curve.png labels "mask AP"

``restore`` takes the finished cells of the JSON of a table into an empty folder, so that a grid goes on without the old
folder, for example on another machine. The JSON holds scores and no weights, so a pretraining runs anew where a cell
that is not done needs it. Give the same ``--set`` as for that table; paths may differ:

    python -m densesiam_d2.tools.grid restore configs/grids/few_labels.yaml --output output/few_labels \
        --json docs/few_labels.json

Commands run in the working directory, which is the project's root for the yamls in configs/grids.

Exit status: 0; 1 if a cell is not done; 2 for wrong usage or a folder with results of other commands; 75 when stopped.
"""

import argparse
import json
import sys
from pathlib import Path

from PIL import Image

from densesiam_d2.atomic import atomic_write
from densesiam_d2.evaluation.json_scores import write_json
from densesiam_d2.grid import Cell, Grid, Table, insert_table, restore, run_cells, waiting
from densesiam_d2.grid.placeholders import near
from densesiam_d2.reporting.curves import draw_scores
from densesiam_d2.reporting.grid_page import points
from densesiam_d2.tools.command_line import naming, tool
from densesiam_d2.tools.grid_command import print_not_done

__all__ = ["main"]


@tool
def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    args = _parser().parse_args(argv)
    grid = Grid.load(args.grid, args.set)
    unknown = [name for name in args.only if name not in [stage.name for stage in grid.stages]]
    if unknown:
        names = ", ".join(stage.name for stage in grid.stages)
        raise ValueError(f"--only {unknown[0]}: no such stage in {args.grid}, which has {names}")
    cells = grid.cells(args.output)
    return args.do(args, cells)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="run | table | restore")
    for name, do in (("run", _run), ("table", _table), ("restore", _restore)):
        command = commands.add_parser(name)
        command.set_defaults(do=do)
        command.add_argument("grid", type=Path, metavar="GRID.yaml")
        command.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="the grid's folder")
        command.add_argument(
            "--set",
            nargs="+",
            action="extend",
            default=[],
            metavar="NAME=VALUE",
            help="other values of an axis, such as seed=0,1, or another text for one of the words",
        )
        if do is _restore:
            command.set_defaults(only=[])
            command.add_argument("--json", type=Path, required=True, metavar="FILE", help="a JSON of `table --json`")
            continue
        command.add_argument("--only", nargs="+", default=[], metavar="STAGE", help="only the cells of these stages")
        if do is _run:
            command.add_argument("--jobs", type=int, default=1, metavar="N", help="cells at a time (default 1)")
            command.add_argument("--dry-run", action="store_true", help="only print the commands that would run")
        else:
            command.add_argument(
                "--markdown",
                type=Path,
                metavar="FILE",
                help="write the table here too, between the marker lines of a document or in a new file",
            )
            command.add_argument("--name", help="of the marker lines, for a second table of one grid (default: GRID)")
            command.add_argument(
                "--plot", nargs=3, metavar=("FILE", "AXIS", "SCORE"), help="draw a score over an axis, such as labels"
            )
            command.add_argument("--json", type=Path, metavar="FILE", help="write all numbers here")
    return parser


def _run(args: argparse.Namespace, cells: list[Cell]) -> int:
    if args.jobs < 1:
        raise ValueError(f"--jobs {args.jobs}: at least 1")
    if args.dry_run:
        for cell in waiting(cells, args.only):
            print(cell.command)
        return 0
    return print_not_done(run_cells(cells, jobs=args.jobs, only=args.only))


def _table(args: argparse.Namespace, cells: list[Cell]) -> int:
    table = Table(cells, only=args.only)
    print(table.markdown(), end="")
    if args.markdown:
        args.markdown.parent.mkdir(parents=True, exist_ok=True)
        with naming(f"--markdown {args.markdown}"):
            text = args.markdown.read_text() if args.markdown.exists() else ""
            text = insert_table(text, args.name or args.grid.stem, table.markdown())
        with atomic_write(args.markdown.resolve()) as file:  # a link stays one
            file.write(text.encode())
    if args.plot:
        _plot(table, *args.plot)
    if args.json:
        write_json(args.json, table.to_json())
    return int(bool(table.missing))


def _restore(args: argparse.Namespace, cells: list[Cell]) -> int:
    with naming(f"--json {args.json}"):
        restored = restore(cells, json.loads(args.json.read_text()))
    print(f"{len(restored)} of {len(cells)} cells are taken from {args.json}")
    return 0


def _plot(table: Table, file: str, axis: str, score: str) -> None:
    """Draw the means of a score over an axis; what is missing has no point."""
    for what, name, known in (("axis", axis, table.axes), ("score", score, table.scores)):
        if name not in known:
            raise ValueError(f"--plot: there is no {what} {name}{near(name, known)}")
    x = table.axes.index(axis)
    rows = {row: entries[score] for row, entries in table.rows.items() if row[x] != "" and score in entries}
    if not rows:
        raise ValueError(f"--plot: no cell with the score {score} has the axis {axis}")
    texts = [row[x] for row in rows if isinstance(row[x], str)]
    if texts:
        raise ValueError(f"--plot: the axis {axis} has the value {texts[0]}, which is not a number")
    several = [i for i in range(len(table.axes)) if i != x and len({row[i] for row in rows}) > 1]
    lines: dict[str, list] = {}
    for row, entry in rows.items():
        lines.setdefault(" ".join(str(row[i]) for i in several), []).append((row[x], entry))
    picture = draw_scores(
        {name: points(entries) for name, entries in lines.items()},
        x=axis,
        y=score,
        ticks={row[x]: str(row[x]) for row in rows},
    )
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(file)


if __name__ == "__main__":
    sys.exit(main())

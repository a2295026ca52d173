"""What the command lines of tools that run a grid share."""

import argparse
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from densesiam_d2.grid import Cell, run_cells, waiting

__all__ = ["RUN_KEYS", "add_grid_arguments", "check_grid_arguments", "check_opts", "print_not_done", "run_grid"]

# Keys of a training that the tools set themselves.
RUN_KEYS = ("DATASETS.TRAIN", "DATASETS.TEST", "MODEL.WEIGHTS", "SEED", "OUTPUT_DIR")
RUN_KEYS += ("SOLVER.MAX_ITER", "SOLVER.EPOCHS", "SOLVER.STEPS", "SOLVER.WARMUP_ITERS", "SOLVER.WARMUP_EPOCHS")


def add_grid_arguments(parser: argparse.ArgumentParser, *, output: str) -> None:
    """Add --seeds, --output with a default, --num-gpus, --jobs, --length, --dry-run, and keys and values at the end."""
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds 0 to N - 1 (default %(default)s)")
    parser.add_argument(
        "--output", type=Path, default=output, metavar="FOLDER", help="for runs, page and JSON (default %(default)s)"
    )
    parser.add_argument("--num-gpus", type=int, default=1, metavar="N", help="of each training (default %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time (default %(default)s)")
    parser.add_argument(
        "--length", type=float, default=1.0, metavar="F", help="factor on the iterations with labels (default 1)"
    )
    parser.add_argument("--dry-run", action="store_true", help="check everything, and only print the commands")
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, help="config keys and values, after an option that takes one value"
    )


def check_grid_arguments(args: argparse.Namespace, reserved: Collection[str]) -> None:
    """Check the numbers, and by :func:`check_opts` the keys.

    Raises:
        ValueError: one of them cannot be; the message names it.
    """
    for name in ("seeds", "num_gpus", "jobs"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(args, name)}: at least 1")
    if not 0 < args.length < math.inf:
        raise ValueError(f"--length {args.length}: a number above 0")
    check_opts(args.opts, reserved)


def check_opts(opts: Sequence[str], reserved: Collection[str]) -> None:
    """Check that keys and values do not set what the tool sets.

    Raises:
        ValueError: a key is reserved.
    """
    for key in opts[::2]:
        if key in reserved:
            raise ValueError(f"{key} is set by this tool: leave it out")


def run_grid(cells: Sequence[Cell], args: argparse.Namespace, write_page: Callable[[], Path]) -> int:
    """Run what is not done, and write the page again after each run; return the exit status, 1 if a cell is not done.

    Args:
        cells: all cells.
        args: with the arguments of :func:`add_grid_arguments`.
        write_page: writes the page from what is done, and returns its path.
    """
    if args.dry_run:
        print(*(cell.command for cell in waiting(cells)), sep="\n")
        return 0
    not_done = run_cells(cells, jobs=args.jobs, ended=write_page)
    print(f"The results are in {write_page()}")
    return print_not_done(not_done)


def print_not_done(not_done: Mapping[str, str]) -> int:
    """Print the cells that are not done, by name, with the reason; return the exit status, 1 if there are any."""
    if not_done:
        print(f"not done ({len(not_done)}):", *(f"  {name}: {why}" for name, why in not_done.items()), sep="\n")
    return int(bool(not_done))

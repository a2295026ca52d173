"""Train one config with several seeds, each in its own processes and folder, and sum up the scores."""

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from detectron2.config import CfgNode

from densesiam_d2.engine.launch import under_torchrun
from densesiam_d2.evaluation.json_scores import write_json
from densesiam_d2.grid.cells import Cell
from densesiam_d2.grid.records import State, read_record
from densesiam_d2.grid.run import run_cells
from densesiam_d2.grid.table import Entry
from densesiam_d2.processes import PREEMPTED

__all__ = ["run_seeds"]


def run_seeds(script: Path, cfg: CfgNode, args: argparse.Namespace) -> int:
    """Run ``script`` once for each seed: SEED, SEED + 1 and so on (from 0 if SEED is negative), one after the other.

    Each seed has the folder OUTPUT_DIR/seed_<seed>; what it prints is in log.txt there. Called again, finished seeds
    are kept and the others go on from their last checkpoints. OUTPUT_DIR/results.json then has, for each score, "mean",
    "std" (sample standard deviation, with n - 1) and "values" in the order of "seeds"; null is a score that is not
    defined or a seed without results.

    Args:
        script: the entry point, such as train_net.py.
        cfg: the checked config.
        args: the parsed command line, with ``seeds`` > 0.

    Returns:
        The exit code: 0; 1 if a seed failed, which is named; 75 if a signal asked to stop.

    Raises:
        ValueError: the command line does not fit, or OUTPUT_DIR has seeds of another command.
    """
    if args.eval_only:
        raise ValueError("--seeds trains; to evaluate a seed again, name its folder: OUTPUT_DIR .../seed_0, no --seeds")
    if args.num_machines > 1 or under_torchrun():
        raise ValueError("--seeds starts its own processes on one machine: use --num-gpus, without torchrun")
    root = Path(cfg.OUTPUT_DIR).absolute()
    first = max(cfg.SEED, 0)
    cells = [_cell(script, root, args, seed) for seed in range(first, first + args.seeds)]
    for cell in cells:
        record = read_record(cell)
        if record and record["words"] != cell.fixed_words:
            raise ValueError(
                f"{cell.folder} is of another command: name another OUTPUT_DIR. It was: {record['command']}"
            )
    try:
        not_done = run_cells(cells)
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return PREEMPTED
    _sum_up(root, cells, not_done)
    for name, reason in not_done.items():
        print(f"train_net.py: {name} is not done: {reason}", file=sys.stderr)
    stopped = any(read_record(cell).get("state") == State.STOPPED for cell in cells)
    return PREEMPTED if stopped else int(bool(not_done))


def _cell(script: Path, root: Path, args: argparse.Namespace, seed: int) -> Cell:
    name = f"seed_{seed}"
    pairs = zip(args.opts[::2], args.opts[1::2], strict=True)
    opts = [word for key, value in pairs if key not in ("SEED", "OUTPUT_DIR") for word in (key, value)]
    words = ["python", str(script), "--config-file", args.config_file, "--num-gpus", str(args.num_gpus)]
    words += ["--dist-url", args.dist_url, "--resume", "auto", *opts, "SEED", str(seed)]
    return Cell(name, "seeds", (*words, "OUTPUT_DIR", str(root / name)), root, {"seed": seed})


def _sum_up(root: Path, cells: list[Cell], not_done: Mapping[str, str]) -> None:
    """Write OUTPUT_DIR/results.json, and print a table of the scores without those of single classes."""
    results = [_results(cell) if cell.name not in not_done else {} for cell in cells]
    names = dict.fromkeys(path for result in results for path in result)
    seeds, scores = [cell.axes["seed"] for cell in cells], {}
    width = max((len(" ".join(path)) for path in names), default=0)
    print(f"{'score':{width}}  {'mean ± std':>15}  " + "  ".join(f"{f'seed {seed}':>8}" for seed in seeds))
    for path in names:
        values = [result.get(path) for result in results]
        entry = Entry([value for value in values if value is not None])
        node = scores
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = {"mean": entry.mean, "std": entry.std, "values": values}
        if not path[-1].startswith(("IoU-", "AP-")):
            std = "" if entry.std is None else f" ± {entry.std:.2f}"
            mean = "" if entry.mean is None else f"{entry.mean:.2f}{std}"
            columns = "  ".join(f"{'-' if value is None else f'{value:.2f}':>8}" for value in values)
            print(f"{' '.join(path):{width}}  {mean:>15}  {columns}")
    write_json(root / "results.json", {"seeds": seeds, "not_done": dict(not_done), "scores": scores})
    print(f"Results are in {root / 'results.json'}")


def _results(cell: Cell) -> dict[tuple[str, ...], float | None]:
    """Return the scores in a seed's results.json: (data set, task, score) -> value; {} without test sets.

    Raises:
        ValueError: the file cannot be read; the message names it.
    """
    path = cell.folder / "results.json"
    try:
        content = json.loads(path.read_text()) if path.is_file() else {}
        if not isinstance(content, dict):
            raise ValueError("it must be an object")
    except ValueError as error:
        raise ValueError(
            f"{path} cannot be read ({error}): delete cell.json beside it, and run the same command again, which "
            "evaluates this seed anew"
        ) from error
    return dict(_scores(content))


def _scores(node: Mapping, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], float | None]]:
    for key, value in node.items():
        if isinstance(value, Mapping) and key != "protocol":
            yield from _scores(value, (*above, key))
        elif len(above) > 1 and (value is None or isinstance(value, int | float)):
            yield (*above, key), value if value is not None and math.isfinite(value) else None

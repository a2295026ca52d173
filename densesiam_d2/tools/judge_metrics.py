"""Find out which number without labels picks good checkpoints, from runs that also scored a small labelled set.

    python -m densesiam_d2.tools.judge_metrics RUN [RUN ...] [--metrics NAME ...] [--json FILE]

A RUN is the OUTPUT_DIR of a training with TEST.MONITOR.DATASET. Each metric is read as TEST.BEST_METRIC reads it: the
mean of what was logged since the last scoring; the highest value is the best, or the lowest with "-" before the name.
For each metric the table has

- the rank correlation (Spearman) with the mIoU over the checkpoints of a run: 1 orders them as the mIoU does;
- by how many points of mIoU the checkpoint that the metric picks is above the last one, and below the best one.

All are means over the runs ± their standard deviation. A run whose training does not log the metric is left out, and
for the correlation also a run in which the metric never changes. "(last)" always takes the last checkpoint, "(any)" is
the mean of all.

Exit status: 0, or 2 for wrong usage or a run that cannot be judged.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from scipy.stats import spearmanr

from densesiam_d2.evaluation.json_scores import write_json
from densesiam_d2.grid.placeholders import near
from densesiam_d2.reporting.curves import Curve, read_metrics
from densesiam_d2.tools.command_line import check_output_file, naming, tool

__all__ = ["compared_values", "judge_run", "main"]

SCORE = "monitor/mIoU"
METRICS = (
    "ssl/used_clusters",
    "-ssl/largest_cluster",
    "ssl/usage_entropy",
    "ssl/assignment_entropy",
    "-ssl/pixel_entropy",
    "ssl/view_agreement",
    "-total_loss",
)


def compared_values(curve: Curve, iterations: np.ndarray) -> np.ndarray:
    """Return the values that TEST.BEST_METRIC compares.

    Args:
        curve: iterations and values of a logged number.
        iterations: (C,) the iterations of the comparisons, ascending.

    Returns:
        (C,) mean of the values logged after the comparison before, up to this one; NaN where there is none.
    """
    logged, values = curve
    parts = [values[(logged > a) & (logged <= b)] for a, b in zip([0, *iterations[:-1]], iterations, strict=True)]
    return np.array([part.mean() if len(part) else np.nan for part in parts])


def judge_run(curves: dict[str, Curve], metrics: Sequence[str]) -> dict[str, dict[str, float | None]]:
    """Judge the metrics of one run.

    Args:
        curves: the logged numbers, with ``monitor/mIoU``.
        metrics: names as of TEST.BEST_METRIC; one that was not logged, or not finite, at a comparison is left out.

    Returns:
        For each metric, "(last)" and "(any)": "correlation" (None where it is not defined), and "above_last" and
        "below_best" of the picked checkpoint, in points of mIoU.

    Raises:
        ValueError: the run has fewer than three scores, or one that is not a number.
    """
    iterations, scores = curves.get(SCORE, (np.zeros(0), np.zeros(0)))
    if len(scores) < 3:
        raise ValueError(
            f"{len(scores)} values of {SCORE}, but at least 3 are compared: train with TEST.MONITOR.DATASET and a "
            "smaller TEST.MONITOR.PERIOD"
        )
    if not np.isfinite(scores).all():
        first = int(iterations[~np.isfinite(scores)][0])
        raise ValueError(f"{SCORE} after {first} iterations is not a finite number: leave this run out")

    def judged(picked: float, correlation: float | None = None) -> dict:
        return {
            "correlation": correlation,
            "above_last": float(picked - scores[-1]),
            "below_best": float(scores.max() - picked),
        }

    found = {}
    for metric in metrics:
        name = metric.removeprefix("-")
        values = compared_values(curves[name], iterations) if name in curves else np.array([np.nan])
        if not np.isfinite(values).all():
            continue
        values = values if name == metric else -values
        constant = np.ptp(values) == 0 or np.ptp(scores) == 0
        correlation = None if constant else float(spearmanr(values, scores).statistic)
        found[metric] = judged(scores[values.argmax()], correlation)  # of equal values the first, as in a training
    return found | {"(last)": judged(scores[-1]), "(any)": judged(scores.mean())}


def _table(runs: dict[str, dict], metrics: Sequence[str]) -> str:
    lines = ["| TEST.BEST_METRIC | runs | rank correlation | above the last | below the best |"]
    lines.append("| --- | ---: | ---: | ---: | ---: |")
    for metric in [*metrics, "(last)", "(any)"]:
        of_runs = [run[metric] for run in runs.values() if metric in run]
        columns = [_mean(run[key] for run in of_runs) for key in ("correlation", "above_last", "below_best")]
        lines.append(f"| {metric} | {len(of_runs)} | {' | '.join(columns)} |")
    return "\n".join(lines)


def _mean(values) -> str:
    values = [value for value in values if value is not None]
    if not values:
        return ""
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def _judge(args: argparse.Namespace) -> None:
    """Judge all runs, print the table, and write the JSON file.

    Raises:
        ValueError: a run cannot be judged, or no run has logged a metric of ``--metrics``.
        FileNotFoundError: a run has no metrics.json.
    """
    if args.json:
        check_output_file("--json", args.json)
    metrics, found, logged = args.metrics or METRICS, {}, set()
    for run in args.runs:
        if not (run / "metrics.json").is_file():
            raise FileNotFoundError(f"{run} holds no metrics.json: name the OUTPUT_DIR of a training")
        curves = read_metrics(run)
        logged |= curves.keys()
        with naming(run):
            found[str(run)] = judge_run(curves, metrics)
    for metric in args.metrics or ():
        name = metric.removeprefix("-")
        if name not in logged:
            raise ValueError(f"--metrics {metric}: no run has logged it{near(name, sorted(logged))}")
    print(_table(found, metrics))
    if args.json:
        write_json(args.json, found)


@tool
def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="OUTPUT_DIR of a training")
    parser.add_argument("--metrics", nargs="+", type=str.strip, metavar="NAME", help=f"default: {' '.join(METRICS)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers of each run here")
    words = sys.argv[1:] if argv is None else argv
    # argparse takes a word such as -total_loss for an option, unless a space stands before it.
    args = parser.parse_args([f" {word}" if re.match(r"-[^-]", word) and word != "-h" else word for word in words])
    _judge(args)


if __name__ == "__main__":
    sys.exit(main())

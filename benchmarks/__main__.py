"""``python -m benchmarks [NAME ...]``: measure, print a table with goals and gates, and keep the rows.

``make bench`` runs all but "gpu". Rows go to benchmarks/results/<date>.json.
"""

import argparse
import datetime
import importlib
import os
import sys
from pathlib import Path

# Idle OpenMP threads would otherwise spin, and their time count as work. Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from benchmarks.harness import Options, table, write_rows

# Name -> module; each has run(options) -> rows.
BENCHMARKS = {
    "data": "two views of a JPEG file: lightly, albumentations, torchvision, floors (G1 to G4)",
    "loader": "files to batches through worker processes, and what crosses their borders (G5, G6)",
    "released_data": "the released unsupervised segmentation's pipeline (G7)",
    "step": "a pretraining step: its own backbone, lightly's SimSiam and DenseCL (G8, G9)",
    "methods": "a training step of every two-view method: SimSiam's",
    "seg_step": "a step of unsupervised segmentation: the released one (G10)",
    "evaluation": "evaluating segmentations: the released evaluator (G11, G12)",
    "scale": "100 million images: heap, start-up, sampler (G13)",
    "processes": "two processes on the CPU (G14)",
    "gpu": "everything that needs a GPU (G15)",
}


def main(argv: list[str] | None = None) -> int:
    """Run the benchmarks; returns the exit code: 1 if a gate was missed."""
    listing = "\n".join(f"  {name:14} {text}" for name, text in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description=listing, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[[], *BENCHMARKS], help="default: all but gpu")
    parser.add_argument("--repeats", type=int, default=7, help="rounds of each measurement")
    parser.add_argument("--images", type=Path, help="a folder of JPEG files instead of those made from photographs")
    parser.add_argument("--quick", action="store_true", help="tiny inputs, one round, no file: does it run?")
    parser.add_argument("--output", type=Path, help="instead of benchmarks/results/<date>.json")
    args = parser.parse_args(argv)

    options = Options(1 if args.quick else args.repeats, args.images, args.quick)
    results = Path(__file__).parent / "results" / f"{datetime.date.today()}.json"
    rows = []
    for name in args.names or [name for name in BENCHMARKS if name != "gpu"]:
        print(f"== {name}: {BENCHMARKS[name]}", flush=True)
        new = importlib.import_module(f"benchmarks.{name}").run(options)
        print(table(new), flush=True)
        rows += new
        if args.output or not args.quick:
            write_rows(new, args.output or results)
    missed = [row.name for row in rows if row.passes(row.gate) is False]
    if missed and not args.quick:
        print(f"gates missed: {', '.join(missed)}", file=sys.stderr)
    return int(bool(missed) and not args.quick)


if __name__ == "__main__":
    sys.exit(main())

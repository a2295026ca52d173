"""``python -m benchmarks [NAME ...]``: measure, print a table with goals, and keep the rows.

``make bench`` runs all but "gpu" and "growth". Rows go to benchmarks/results/<date>.json.
"""

import argparse
import datetime
import importlib
import os
import sys
from pathlib import Path

# Idle OpenMP threads would otherwise spin, and their time count as work. Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from benchmarks.harness import Options, bf16_instructions, table, write_rows
from densesiam_d2.grid.records import hardware

# Name -> module; each has run(options), which yields lists of rows; a list is printed and kept as soon as it is there.
BENCHMARKS = {
    "data": "two views of a JPEG file: lightly, albumentations, torchvision, the bare calls",
    "loader": "files to batches through worker processes, and what crosses their borders",
    "released_data": "the released unsupervised segmentation's pipeline",
    "methods": "a training step of every method: its own backbone, lightly's",
    "instances": "mapping an image with masks for Mask R-CNN: detectron2's mapper",
    "memory": "a step of pretraining with less memory: stages computed again, a batch in parts",
    "seg_step": "a step of unsupervised segmentation: the released one",
    "evaluation": "evaluating segmentations: the bare kernels, the released evaluator",
    "scale": "100 million images: heap, start-up, sampler",
    "processes": "two processes on the CPU",
    "probe_hook": "TEST.PROBE: the same pretraining with and without it",
    "growth": "time and memory against images, clusters, classes, view size and processes, with plots in docs/",
    "gpu": "everything that needs a GPU",
}
ASKED_FOR = ("growth", "gpu")  # run only by name


def main(argv: list[str] | None = None) -> int:
    """Run the benchmarks; returns the exit code: 1 if a goal was missed."""
    listing = "\n".join(f"  {name:14} {text}" for name, text in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description=listing, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        choices=[[], *BENCHMARKS],
        help=f"default: all but {' and '.join(ASKED_FOR)}",
    )
    parser.add_argument("--repeats", type=int, default=7, help="rounds of each measurement")
    parser.add_argument("--images", type=Path, help="a folder of JPEG files instead of those made from photographs")
    parser.add_argument("--quick", action="store_true", help="tiny inputs, one round, no file: does it run?")
    parser.add_argument("--output", type=Path, help="instead of benchmarks/results/<date>.json")
    args = parser.parse_args(argv)
    if args.repeats < 1:
        parser.error(f"--repeats {args.repeats} must be at least 1")

    options = Options(1 if args.quick else args.repeats, args.images, args.quick)
    results = Path(__file__).parent / "results" / f"{datetime.date.today()}.json"
    rows = []
    machine, bf16 = hardware(), ", ".join(bf16_instructions()) or "none"
    print(f"{machine['cores']} cores of {machine['cpu']}; instructions for bf16: {bf16}", flush=True)
    for name in args.names or [name for name in BENCHMARKS if name not in ASKED_FOR]:
        print(f"== {name}: {BENCHMARKS[name]}", flush=True)
        for new in importlib.import_module(f"benchmarks.{name}").run(options):
            print(table(new), flush=True)
            rows += new
            if args.output or not args.quick:
                write_rows(new, args.output or results)
    missed = [f"{row.name}: {row.peer}" for row in rows if row.passes() is False]
    if missed and not args.quick:
        print("goals missed:", *missed, sep="\n  ", file=sys.stderr)
    return int(bool(missed) and not args.quick)


if __name__ == "__main__":
    sys.exit(main())

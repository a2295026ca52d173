"""Write the report of a run as one HTML file, also while it is going on.

    python -m densesiam_d2.tools.report output/pretrain

The page says how far the run is, and shows its scores, the numbers that tell a collapse with their healthy range, all
curves with a sentence on each, views with their common points, unreadable files, checkpoints, what differs from the
yaml and from the defaults, and the commands that repeat it. It needs no other file and no network.
"""

import argparse
import sys
from pathlib import Path

from densesiam_d2.reporting.run_report import write_run_report
from densesiam_d2.tools.command_line import check_output_file, tool

__all__ = ["main"]


@tool
def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="OUTPUT_DIR", help="folder of the run")
    parser.add_argument("--output", type=Path, help="file to write (default: OUTPUT_DIR/report.html)")
    args = parser.parse_args(argv)
    if args.output:
        check_output_file("--output", args.output)
    print(write_run_report(args.folder, args.output))


if __name__ == "__main__":
    sys.exit(main())

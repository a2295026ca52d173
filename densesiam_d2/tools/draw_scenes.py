"""Draw labelled scenes into a folder: images, semantic labels and COCO instances.

python -m densesiam_d2.tools.draw_scenes --output output/scenes --num 16 --seed 0 --size 160
"""

import argparse
import sys
from pathlib import Path

from densesiam_d2.samples.scenes import write_scenes
from densesiam_d2.tools.command_line import tool


@tool
def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--num", type=int, default=16, help="number of scenes")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other scenes")
    parser.add_argument("--size", type=int, default=160, help="side of an image in pixels")
    args = parser.parse_args(argv)
    if args.seed < 0:
        raise ValueError(f"--seed {args.seed} must be 0 or more")
    root = write_scenes(args.output, args.num, args.seed, args.size)
    print(f"{args.num} scenes of {args.size} x {args.size} pixels (seed {args.seed}) are in {root}")


if __name__ == "__main__":
    sys.exit(main())

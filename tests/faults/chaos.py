"""Kill a training at random moments, resume it each time, and compare its end with that of an undisturbed one.

python -m tests.faults.chaos --kills 20
python -m tests.faults.chaos --kills 200 --num-gpus 2 --iterations 4000 -- MODEL.RESNETS.DEPTH 18
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.runs import ROOT, differences, options, write_images

STARTED = "Starting training from iteration"


def main(words: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--iterations", type=int, help="of the training; default: 20 for each kill")
    parser.add_argument("--num-gpus", type=int, default=1, help="processes; they run on the CPU")
    parser.add_argument("--workers", type=int, default=2, help="loader workers of each process")
    parser.add_argument("--max-seconds", type=float, default=4.0, help="of training before a kill")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("options", nargs="*", help="KEY VALUE of the training")
    args = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        return _run(args, Path(folder))


def _run(args: argparse.Namespace, folder: Path) -> int:
    images, moments = write_images(folder / "scenes"), random.Random(args.seed)
    training = ["SOLVER.MAX_ITER", args.iterations or 20 * args.kills, "SOLVER.CHECKPOINT_PERIOD", 3]
    training += ["SOLVER.CHECKPOINT_KEEP_LAST", 3, "DATALOADER.NUM_WORKERS", args.workers, *args.options]
    straight, killed = (options(images, folder / name, *training) for name in ("straight", "killed"))
    print("undisturbed run ...", flush=True)
    assert _start(straight, args, folder / "straight.log").wait() == 0, (folder / "straight.log").read_text()[-3000:]
    kills, resumed, unusable = 0, 0, 0
    while True:
        log = folder / f"part_{kills}.log"
        process = _start(killed, args, log)
        wait = moments.uniform(0, args.max_seconds) if kills < args.kills else float("inf")
        status = _wait(process, log, folder / "killed", wait)
        first = [*log.read_text().partition(STARTED)[2].split(maxsplit=1), "?"][0]
        resumed += first not in ("0", "?")
        print(f"part {kills}: from iteration {first}, exit status {status}", flush=True)
        if status is None:
            process.kill()  # the other processes end with it
            process.wait()
            kills += 1
        elif status == 0:
            break
        else:
            unusable += 1
            print(log.read_text()[-3000:])
            break
    different = differences(folder / "straight", folder / "killed") if not unusable else ["no end"]
    print(f"{kills} kills, {resumed} parts went on from a checkpoint, {unusable} unusable states")
    print(f"{len(different)} tensors differ: {different[:5]}")
    return int(bool(different) or unusable > 0 or kills < args.kills or not resumed)


def _start(words: list[str], args: argparse.Namespace, log: Path) -> subprocess.Popen:
    command = [sys.executable, "train_net.py", "--resume", "auto", "--num-gpus", str(args.num_gpus), *words]
    with log.open("w") as file:
        return subprocess.Popen(
            command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )


def _wait(process: subprocess.Popen, log: Path, output: Path, seconds: float) -> int | None:
    """Let a process train for some seconds, counted from the first checkpoint that the run has, this part's or earlier.

    Returns:
        Its exit status, or None if it is still training.
    """
    started = None
    while process.poll() is None:
        if started is None and STARTED in log.read_text() and any(output.glob("model_*.pth")):
            started = time.monotonic()
        if started is not None and time.monotonic() - started > seconds:
            return None
        time.sleep(0.01)
    return process.returncode


if __name__ == "__main__":
    sys.exit(main())

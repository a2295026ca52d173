"""Tiny real trainings in processes of their own, to be hurt and compared."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from densesiam_d2.samples.scenes import write_scenes

ROOT = Path(__file__).parents[2]


def write_images(folder: Path, num: int = 12, size: int = 64) -> Path:
    """Write some images and return their folder."""
    write_scenes(folder, num=num, seed=0, size=size)
    return folder / "images"


def options(images: Path, output: Path, *more) -> list[str]:
    """Return the arguments of a pretraining that takes a few seconds, with a checkpoint every five iterations."""
    words = ["--config-file", ROOT / "configs/quick/pretrain_instant_test.yaml", "SEED", 7, "MODEL.DEVICE", "cpu"]
    words += ["DATASETS.TRAIN", f"('folder:{images}',)", "OUTPUT_DIR", output, "SOLVER.CHECKPOINT_PERIOD", 5]
    words += ["SOLVER.MAX_ITER", 12, "INPUT.SSL.VIEW_SIZE", 32, "MODEL.RESNETS.OUT_FEATURES", "['res3']"]
    words += ["MODEL.SSL.IN_FEATURE", "res3", "MODEL.DENSESIAM.GRID_SIZE", 4, *more]
    return [str(word) for word in words]


def train(words: list[str], *flags, faults: str = "", module: str = "", timeout: float = 300, **environment):
    """Run train_net.py, with faults if any are named, or a module that does; returns the finished process."""
    program = ["-m", module] if module else ["-m", "tests.faults.inject", faults] if faults else ["train_net.py"]
    return subprocess.run(
        [sys.executable, *program, *flags, *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        text=True,
        capture_output=True,
        timeout=timeout,
    )


def final_state(folder: Path) -> dict:
    """Return what a run saved at its end."""
    return torch.load(folder / "model_final.pth", weights_only=True)


def differences(one: Path, other: Path) -> list[str]:
    """Return the names of the tensors of model and optimizer that are not equal bit by bit."""
    found = []
    first, second = final_state(one), final_state(other)
    for name, value in first["model"].items():
        if not torch.equal(value, second["model"][name]):
            found.append(name)
    momenta = [s["trainer"]["_trainer"]["optimizer"]["state"] for s in (first, second)]
    for key, state in momenta[0].items():
        if not torch.equal(state["momentum_buffer"], momenta[1][key]["momentum_buffer"]):
            found.append(f"momentum of parameter {key}")
    return found

"""A training step of every two-view method beside SimSiam's: R18, 112 pixels, 32 pairs, the optimizer included.

On the CPU: CPU time, two threads, float32, and no memory, because the system counts the peak of a whole process only.
On a GPU: wall time, float32 and bf16, and the most memory that PyTorch had allocated, with weights and optimizer.
"""

import gc
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.harness import Options, Row, measure, ratios
from benchmarks.inputs import jpeg_files
from benchmarks.models import build, train_step
from densesiam_d2.data.two_view_mapper import TwoViewDatasetMapper, collate_views
from densesiam_d2.engine import load_config
from densesiam_d2.modeling.meta_arch import METHODS, SimSiam

__all__ = ["run"]

R18 = ["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "SOLVER.BASE_LR", 0.001]


def run(options: Options) -> list[Row]:
    """Measure the methods that learn features, each turn by turn with SimSiam."""
    torch.set_num_threads(2)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = []
    for method in METHODS:
        if method.output == "features":
            for dtype in (None, torch.bfloat16) if device == "cuda" else (None,):
                rows += _beside_simsiam(options, method.__name__, device, dtype)
    return rows


def recipes() -> dict[str, str]:
    """Return the yaml of each pretraining method, by the name of its class; the one with the shortest name."""
    paths = sorted(Path("configs").glob("pretrain*.yaml"), key=lambda path: len(path.name), reverse=True)
    return {load_config(str(path)).MODEL.META_ARCHITECTURE: str(path) for path in paths}


def _beside_simsiam(options: Options, name: str, device: str, dtype: torch.dtype | None) -> list[Row]:
    less = {"higher_is_better": False}
    label = f"{name} step R18" + (", bf16" if dtype else "")
    step, images = _step(options, name, device, dtype)
    rows = []
    if device == "cuda":
        rows.append(Row.of(label, "peak GiB", [_peak(step)], **less))
    if name == SimSiam.__name__:
        seconds = measure({name: step}, options.repeats)[name]
    else:
        other, _ = _step(options, SimSiam.__name__, device, dtype)
        times = measure({name: step, "SimSiam": other}, options.repeats)
        rows.append(Row.of(label, "ours / SimSiam", ratios(times, name, "SimSiam"), **less))
        seconds = times[name]
    return [*rows, Row.of(label, f"seconds for {images} pairs", seconds, **less)]


def _step(options: Options, name: str, device: str, dtype: torch.dtype | None) -> tuple[Callable[[], object], int]:
    """Return a method's training step on one batch that its own mapper made, and the batch's size."""
    images, side = options.size(32, 2), options.size(112, 64)
    config, words = recipes()[name], [*R18, "INPUT.SSL.VIEW_SIZE", side]
    ssl = load_config(config).INPUT.SSL
    if ssl.get("PATCH_GRID", 0):
        words += ["INPUT.SSL.PATCH_SIZE", ssl.PATCH_SIZE * side // ssl.VIEW_SIZE]
    model, optimizer = build(config, *words, device=device)
    # Metrics are for every twentieth step; half-way through the training all losses count.
    model.metrics_due, model.progress = (lambda: False), 0.5
    mapper = TwoViewDatasetMapper(load_config(config, words))
    batch = collate_views([mapper({"file_name": file}) for file in jpeg_files(options, images)])
    batch = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
    step = train_step(model, optimizer, batch, dtype)
    return (_timed(step) if device == "cuda" else step), images


def _timed(step: Callable[[], object]) -> Callable[[], float]:
    """Return a step that waits for the GPU and returns its seconds."""

    def timed() -> float:
        torch.cuda.synchronize()
        begin = time.perf_counter()
        step()
        torch.cuda.synchronize()
        return time.perf_counter() - begin

    return timed


def _peak(step: Callable[[], object]) -> float:
    """Return the most memory that was allocated on the GPU during a step, in GiB; other models must be gone."""
    step()  # the first step allocates the optimizer's state
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    step()
    return torch.cuda.max_memory_allocated() / 2**30

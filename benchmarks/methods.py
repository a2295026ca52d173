"""A training step of every method beside its own backbone alone and beside lightly's, in seconds and memory.

ResNet-18 and ResNet-50 with views of the recipe's size, float32, the optimizer included; segmentation methods with the
backbone of their recipe. The floor is the backbone in the same layout: the same calls with the same inputs, forward and
backward, and for a teacher the forward alone. The goal is for the time above the floor that the FLOPs of the heads do
not explain: step / (floor * FLOPs of the step / FLOPs of the floor).

On the CPU: CPU time, two threads; bf16 for DenseSiam only, and only where the processor has the instructions. On a GPU:
wall time, float32 and bf16.
"""

import gc
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import Options, Row, bf16_instructions, measure, peak_mib, ratios
from benchmarks.inputs import jpeg_files
from benchmarks.models import R18, Floor, build, train_step
from benchmarks.peers.lightly_steps import LIGHTLY
from densesiam_d2.data.two_view_mapper import TwoViewDatasetMapper, collate_views
from densesiam_d2.engine import load_config
from densesiam_d2.modeling.meta_arch import METHODS

__all__ = ["run"]

DEPTHS = {18: (R18, 16, 1.12), 50: ([], 8, 1.06)}  # keys, pairs, goal


def run(options: Options) -> Iterator[list[Row]]:
    """Measure all methods."""
    torch.set_num_threads(2)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for method in METHODS[:4] if options.quick else METHODS:
        config = recipes()[method.__name__]
        depths = DEPTHS if method.output == "features" else [load_config(config).MODEL.RESNETS.DEPTH]
        for depth in list(depths)[:1] if options.quick else depths:
            yield _of_method(options, method.__name__, depth, method.output == "features", device)
            gc.collect()


def recipes() -> dict[str, str]:
    """Return the yaml of each method, by the name of its class; the one with the shortest name."""
    paths = [*Path("configs").glob("pretrain*.yaml"), *Path("configs/unsup_seg").glob("*_coco27.yaml")]
    paths.sort(key=lambda path: len(path.name), reverse=True)
    return {load_config(str(path)).MODEL.META_ARCHITECTURE: str(path) for path in paths}


def _of_method(options: Options, name: str, depth: int, pretraining: bool, device: str) -> list[Row]:
    keys, images, goal = DEPTHS[depth]
    images = options.size(images, 2)
    model, optimizer, batch = _model_and_batch(options, recipes()[name], keys if pretraining else [], images, device)
    floor = Floor(model, batch)
    steps = {"ours": train_step(model, optimizer, batch), "backbone": train_step(floor, None, batch)}
    if pretraining and (device == "cuda" or (name == "DenseSiam" and bf16_instructions())):
        steps["ours, bf16"] = train_step(model, optimizer, batch, torch.bfloat16)
        steps["backbone, bf16"] = train_step(floor, None, batch, torch.bfloat16)
    if pretraining and name in LIGHTLY:
        peer = LIGHTLY[name](depth).to(device).train()
        trained = [p for p in peer.parameters() if p.requires_grad]
        sgd = torch.optim.SGD(trained, lr=0.001, momentum=0.9, weight_decay=1e-4)
        steps["lightly"] = train_step(peer, sgd, tuple(x.contiguous() for x in model.preprocess_views(batch)[:2]))

    # These are also the first steps, which allocate the optimizer's state.
    counted = {key: _flops(step) for key, step in steps.items()}
    peaks = {key: _peak(step, device) / images for key, step in steps.items()}
    times = measure(steps if device == "cpu" else {k: _timed(step) for k, step in steps.items()}, options.repeats)
    label, less = f"{name} step R{depth}", {"higher_is_better": False}
    share = counted["ours"] / counted["backbone"]
    rows = [Row.of(label, "FLOPs, ours / backbone", [share], **less)]
    for bf16 in ("", ", bf16") if "ours, bf16" in steps else ("",):
        ratio = ratios(times, f"ours{bf16}", f"backbone{bf16}")
        above = [x / share for x in ratio]
        rows += [
            Row.of(label, f"ours / backbone{bf16}, FLOPs of the heads counted in", above, goal=goal, **less),
            Row.of(label, f"ours / backbone{bf16}", ratio, **less),
        ]
    if "lightly" in steps:
        rows.append(Row.of(label, "ours / lightly", ratios(times, "ours", "lightly"), goal=1.0, **less))
    for key in steps:
        rows.append(Row.of(label, f"{key}, seconds per pair", [t / images for t in times[key]], **less))
        rows.append(Row.of(label, f"{key}, peak MiB per pair", [peaks[key]], **less))
    return rows


def _model_and_batch(options: Options, config: str, keys: list, images: int, device: str) -> tuple:
    """Return a method's model, its optimizer, and a batch that its own mapper made."""
    ssl = load_config(config).INPUT.SSL
    side = options.size(ssl.VIEW_SIZE, 64)
    words = [*keys, "SOLVER.BASE_LR", 0.001, "INPUT.SSL.VIEW_SIZE", side, "MODEL.WEIGHTS", ""]
    if ssl.get("PATCH_GRID", 0):
        words += ["INPUT.SSL.PATCH_SIZE", ssl.PATCH_SIZE * side // ssl.VIEW_SIZE]
    model, optimizer = build(config, *words, device=device)
    mapper = TwoViewDatasetMapper(load_config(config, words))
    batch = collate_views([mapper({"file_name": file}) for file in jpeg_files(options, images)])
    batch = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
    return model, optimizer, batch


def _flops(step: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as flops:
        step()
    return flops.get_total_flops()


def _timed(step: Callable[[], object]) -> Callable[[], float]:
    """Return a step that waits for the GPU and returns its seconds."""

    def timed() -> float:
        torch.cuda.synchronize()
        begin = time.perf_counter()
        step()
        torch.cuda.synchronize()
        return time.perf_counter() - begin

    return timed


def _peak(step: Callable[[], object], device: str) -> float:
    """Return how much memory a step needs at most beyond what is allocated before it, in MiB."""
    if device == "cpu":
        return peak_mib(step)
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return (torch.cuda.max_memory_allocated() - before) / 2**20

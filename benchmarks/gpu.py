"""What needs a GPU: steps in bf16, eager, compiled and as CUDA graphs, their share of the ceilings, data wait.

    python -m benchmarks gpu --repeats 5 [--images /data/imagenet/train]

Rates are pairs of views per second. One process; wall time between synchronisations. With ``--quick`` the eager part
runs on the CPU with tiny inputs, to see that the script works.
"""

import gc
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from detectron2.config import get_cfg
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import Options, Row
from benchmarks.inputs import jpeg_files
from benchmarks.models import R18, Floor, build, random_batch, train_step
from benchmarks.peers.lightly_steps import SimSiam
from densesiam_d2.config import add_densesiam_config
from densesiam_d2.data.loader import build_two_view_train_loader

__all__ = ["run"]

# Name -> config, keys, side of a view, images per batch.
STEPS = {
    "R50 224": ("configs/pretrain.yaml", [], 224, 256),
    "R18 224": ("configs/pretrain.yaml", R18, 224, 512),
    "R18-FPN 320": ("configs/unsup_seg/densesiam_R18_FPN_coco27.yaml", ["MODEL.WEIGHTS", ""], 320, 64),
}
BF16 = torch.bfloat16


def run(options: Options) -> Iterator[list[Row]]:
    """Measure everything that this machine can.

    Raises:
        SystemExit: there is no GPU.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not options.quick:
        raise SystemExit("gpu: torch sees no CUDA device; --quick tries the script on the CPU")
    torch.backends.cudnn.benchmark = True
    rows, *ceilings = _ceilings(options, device)
    yield rows
    for name in list(STEPS)[1:2] if options.quick else STEPS:
        yield _steps(options, device, name, *ceilings)
    yield _data_wait(options, device)


def _seconds(step: Callable[[], object], device: str, options: Options, steps: int) -> list[float]:
    """Return the seconds of one step, for each repeat of some steps in a row."""

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    for _ in range(options.size(10, 1)):
        step()
    found = []
    for _ in range(options.repeats):
        wait()
        begin = time.perf_counter()
        for _ in range(steps):
            step()
        wait()
        found.append((time.perf_counter() - begin) / steps)
    return found


class ByteCounter(TorchDispatchMode):
    """Adds up the bytes of all tensors that operations take and return; what a cache spares them counts too."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = (x for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor))
            self.bytes += sum(x.numel() * x.element_size() for x in tensors)
        return result


def _ceilings(options: Options, device: str) -> tuple[list[Row], float, float]:
    """Measure what matrix products and copies reach here: FLOP/s in bf16, and bytes/s read and written."""
    side, length = options.size(8192, 128), options.size(1 << 30, 1 << 16)
    a, b = (torch.randn(side, side, device=device, dtype=BF16) for _ in range(2))
    products = [2 * side**3 / s for s in _seconds(lambda: a @ b, device, options, options.size(20, 1))]
    source, target = (torch.zeros(length, device=device, dtype=torch.uint8) for _ in range(2))
    copies = [2 * length / s for s in _seconds(lambda: target.copy_(source), device, options, options.size(20, 1))]
    rows = [
        Row.of("bf16 matrix product", "TFLOP/s", [x / 1e12 for x in products]),
        Row.of("copy", "TB/s read and written", [x / 1e12 for x in copies]),
    ]
    return rows, max(products), max(copies)


def _graphed(step: Callable[[], None]) -> Callable[[], None]:
    """Capture a step as a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def _steps(options: Options, device: str, name: str, products: float, copies: float) -> list[Row]:
    config, words, side, images = STEPS[name]
    images, side = options.size(images, 2), options.size(side, 64)
    rows, rates = [], {}

    def note(variant: str, step: Callable[[], None]) -> None:
        try:
            rates[variant] = [images / s for s in _seconds(step, device, options, options.size(20, 1))]
            rows.append(Row.of(f"{name}, {variant}, batch {images}", "pairs/s", rates[variant]))
        except RuntimeError as error:  # a variant that does not work, or does not fit, is a finding
            print(f"{name}, {variant}: {str(error).splitlines()[0]}", flush=True)
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()

    batch = random_batch(images, side, device)
    model, optimizer = build(config, *words, device=device)
    views = tuple(model.preprocess_views(batch)[:2])
    note("backbone only", train_step(Floor(model, batch), None, batch, BF16))
    note("fp32", train_step(model, optimizer, batch))
    note("bf16", train_step(model, optimizer, batch, BF16))
    if device == "cuda":
        note("bf16, CUDA graph", _try(lambda: _graphed(train_step(model, optimizer, batch, BF16))))
        compiled, compiled_optimizer = build(config, *words, device=device)
        compiled.backbone = torch.compile(compiled.backbone)
        note("bf16, compiled backbone", train_step(compiled, compiled_optimizer, batch, BF16))
        synced, synced_optimizer = _synced(config, words, device)
        note("bf16, SyncBN", train_step(synced, synced_optimizer, batch, BF16))
    if "FPN" not in name:
        peer = SimSiam(18 if "R18" in name else 50).to(device).train()
        sgd = torch.optim.SGD(peer.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
        plain = tuple(x.contiguous() for x in views)
        note("lightly SimSiam, fp32", train_step(peer, sgd, plain))
        note("lightly SimSiam, bf16", train_step(peer, sgd, plain, BF16))
    if rates.keys() >= {"bf16", "backbone only"}:
        shares = [a / b for a, b in zip(rates["bf16"], rates["backbone only"], strict=True)]
        rows.append(Row.of(f"{name}, bf16", "share of the backbone-only rate", shares, goal=0.9))
    if "bf16" in rates:
        with FlopCounterMode(display=False) as flops, ByteCounter() as traffic:
            train_step(model, optimizer, batch, BF16)()
        for work, ceiling, peer in (
            (flops.get_total_flops(), products, "share of the measured bf16 products (MFU)"),
            (traffic.bytes, copies, "bytes of all operands, share of the measured copy"),
        ):
            used = [rate * work / images / ceiling for rate in rates["bf16"]]
            rows.append(Row.of(f"{name}, bf16", peer, used))
    return rows + (_memory(name, config, words, side) if device == "cuda" else [])


def _try(make: Callable[[], Callable[[], None]]) -> Callable[[], None]:
    """Make a step when it is first taken, so that a failure to make it counts as its own."""
    made = []

    def step() -> None:
        if not made:
            made.append(make())
        made[0]()

    return step


def _synced(config: str, words: list, device: str) -> tuple:
    """Return a model with real SyncBN, in a process group of one."""
    if not torch.distributed.is_initialized():
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", "29555")
        torch.distributed.init_process_group("nccl", rank=0, world_size=1)
    model, _ = build(config, *words, device=device)
    model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)


def _memory(name: str, config: str, words: list, side: int) -> list[Row]:
    """Measure the peak memory of a step for growing batches."""
    rows = []
    for images in (64, 128, 256, 512, 1024):
        model, optimizer = build(config, *words, device="cuda")
        torch.cuda.reset_peak_memory_stats()
        try:
            train_step(model, optimizer, random_batch(images, side, "cuda"), BF16)()
        except torch.cuda.OutOfMemoryError:
            break
        peak = torch.cuda.max_memory_allocated() / 2**30
        rows.append(Row.of(f"{name}, bf16, batch {images}", "peak GiB", [peak], higher_is_better=False))
        del model, optimizer
        torch.cuda.empty_cache()
    return rows


def _data_wait(options: Options, device: str) -> list[Row]:
    """Compare steps on JPEG files with steps on one batch that stays where it is."""
    name = "R50 224" if not options.quick else "R18 224"
    config, words, side, images = STEPS[name]
    images, side, steps = options.size(images, 2), options.size(side, 64), options.size(60, 2)
    model, optimizer = build(config, *words, device=device)
    still = random_batch(images, side, device)
    alone = min(_seconds(train_step(model, optimizer, still, BF16), device, options, options.size(20, 1)))
    rows = []
    for workers in (4, 8, 16) if not options.quick else (1,):
        with tempfile.TemporaryDirectory() as folder:
            listing = Path(folder) / "images.txt"
            listing.write_text("\n".join(jpeg_files(options, options.size(2000, 4), kilobytes=110)))
            cfg = get_cfg()
            add_densesiam_config(cfg)
            cfg.merge_from_list(
                ["DATASETS.TRAIN", (f"list:{listing}",), "DATALOADER.NUM_WORKERS", workers, "INPUT.FORMAT", "RGB"]
            )
            cfg.merge_from_list(["SOLVER.IMS_PER_BATCH", images, "INPUT.SSL.VIEW_SIZE", side, "MODEL.DEVICE", device])
            cfg.OUTPUT_DIR = folder
            loader = iter(build_two_view_train_loader(cfg))
            wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
            for _ in range(options.size(10, 1)):
                train_step(model, optimizer, next(loader), BF16)()
            wait()
            begin = time.perf_counter()
            for _ in range(steps):
                train_step(model, optimizer, next(loader), BF16)()
            wait()
            with_data = (time.perf_counter() - begin) / steps
            loader.close()
        limits = {"goal": 0.03, "higher_is_better": False} if workers == 4 else {}
        lost = max(0.0, 1 - alone / with_data)
        rows.append(Row.of(f"{name}, {workers} workers", "share of time lost to data", [lost], **limits))
        rows.append(Row.of(f"{name}, {workers} workers, from files", "pairs/s", [images / with_data]))
    return rows

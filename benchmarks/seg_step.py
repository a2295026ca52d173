"""A step of unsupervised segmentation beside the released one and its backbone. CPU time, two threads."""

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.harness import Options, Row, bf16_instructions, measure, peak_mib, ratios
from benchmarks.models import build, random_batch, train_step
from benchmarks.peers.released_model import ReleasedSegmentation

__all__ = ["run"]

CONFIG = "configs/unsup_seg/densesiam_R18_FPN_coco27.yaml"


def run(options: Options) -> Iterator[list[Row]]:
    """Measure R18, 320 pixels, 4 images."""
    torch.set_num_threads(2)
    images, side = options.size(4, 2), options.size(320, 64)
    words = ["MODEL.WEIGHTS", "", "MODEL.DENSESIAM.GRID_SIZE", side // 4]
    model, optimizer = build(CONFIG, *words)
    released = ReleasedSegmentation().train()
    batch = random_batch(images, side)
    large, small = torch.rand(images, 3, 2 * side, 2 * side), torch.rand(images, 3, side, side)
    crops = torch.tensor([[0.1, 0.2, 0.7]]).repeat(images, 1)
    stored = (large, small, crops, torch.arange(images) % 2 == 0)
    sgd = torch.optim.SGD(released.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)

    def floor(dtype: torch.dtype | None = None) -> None:
        released.zero_grad()
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            views = (released.replay(large, crops, stored[3], side), small)
            loss = sum(output.mean() for view in views for output in released.backbone(view))
        loss.backward()

    variants = {
        "ours": train_step(model, optimizer, batch),
        "released": train_step(released, sgd, stored),
        "floor": floor,
    }
    if bf16_instructions():
        variants["ours, bf16"] = train_step(model, optimizer, batch, torch.bfloat16)
        variants["floor, bf16"] = partial(floor, torch.bfloat16)
    times = measure(variants, options.repeats)
    name, less = "segmentation step", {"higher_is_better": False}
    rows = [
        Row.of(name, "ours / the released backbone", ratios(times, "ours", "floor"), goal=1.30, **less),
        Row.of(name, "released / ours", ratios(times, "released", "ours"), goal=1.2),
        Row.of(name, "released / the released backbone", ratios(times, "released", "floor"), **less),
        Row.of(name, "ours, peak MiB per pair", [peak_mib(variants["ours"]) / images], **less),
        Row.of(name, "released, peak MiB per pair", [peak_mib(variants["released"]) / images], **less),
        Row.of(name, "its backbone, peak MiB per pair", [peak_mib(floor) / images], **less),
    ]
    if bf16_instructions():
        bf16, ratio = f"{name}, bf16", ratios(times, "ours, bf16", "floor, bf16")
        rows += [
            Row.of(bf16, "ours / the released backbone", ratio, goal=1.30, **less),
            Row.of(bf16, "released / ours", ratios(times, "released", "ours, bf16"), goal=2.0),
        ]
    yield rows

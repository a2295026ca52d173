"""A step of unsupervised segmentation beside the released one (G10). CPU time, two threads."""

import torch

from benchmarks.harness import Options, Row, measure, ratios
from benchmarks.models import build, random_batch, train_step
from benchmarks.peers.released_model import ReleasedSegmentation

__all__ = ["run"]

CONFIG = "configs/unsup_seg/densesiam_R18_FPN_coco27.yaml"


def run(options: Options) -> list[Row]:
    """Measure G10: R18, 320 pixels, 4 images."""
    torch.set_num_threads(2)
    images, side = options.size(4, 2), options.size(320, 64)
    words = ["MODEL.WEIGHTS", "", "MODEL.DENSESIAM.GRID_SIZE", side // 4]
    model, optimizer = build(CONFIG, *words)
    released = ReleasedSegmentation().train()
    batch = random_batch(images, side)
    model.metrics_due = lambda: False
    model.progress = 1.0  # all losses count
    large, small = torch.rand(images, 3, 2 * side, 2 * side), torch.rand(images, 3, side, side)
    crops = torch.tensor([[0.1, 0.2, 0.7]]).repeat(images, 1)
    stored = (large, small, crops, torch.arange(images) % 2 == 0)
    sgd = torch.optim.SGD(released.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)

    def floor() -> None:
        released.zero_grad()
        views = (released.replay(large, crops, stored[3], side), small)
        sum(output.mean() for view in views for output in released.backbone(view)).backward()

    times = measure(
        {
            "ours": train_step(model, optimizer, batch),
            "ours bf16": train_step(model, optimizer, batch, torch.bfloat16),
            "released": train_step(released, sgd, stored),
            "floor": floor,
        },
        options.repeats,
    )
    less = {"higher_is_better": False}
    return [
        Row.of(
            "G10 segmentation step",
            "ours / the released backbone",
            ratios(times, "ours", "floor"),
            goal=1.35,
            gate=1.5,
            **less,
        ),
        Row.of("segmentation step", "released / its backbone", ratios(times, "released", "floor"), **less),
        Row.of(
            "G10 segmentation step",
            "released / ours",
            ratios(times, "released", "ours"),
            goal=1.2,
            gate=1.1,
        ),
        Row.of(
            "G10 segmentation step, bf16",
            "released / ours",
            ratios(times, "released", "ours bf16"),
            goal=2.1,
            gate=1.8,
        ),
    ]

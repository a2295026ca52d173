"""A pretraining step beside the backbone alone and beside lightly's (G8, G9). CPU time, two threads."""

import torch

from benchmarks.harness import Options, Row, measure, ratios
from benchmarks.models import Floor, build, random_batch, train_step
from benchmarks.peers.lightly_steps import DenseCL, SimSiam

__all__ = ["run"]

CONFIG = "configs/pretrain.yaml"
GOALS = {18: (1.10, 1.15), 50: (1.06, 1.12)}


def run(options: Options) -> list[Row]:
    """Measure G8 and G9 for R18 and R50."""
    torch.set_num_threads(2)
    rows = []
    for depth, images in ((18, 8), (50, 4)):
        if options.quick and depth == 50:
            break
        rows += _of_depth(options, depth, options.size(images, 2), options.size(224, 64))
    return rows


def _of_depth(options: Options, depth: int, images: int, side: int) -> list[Row]:
    words = ["MODEL.RESNETS.DEPTH", depth] + (["MODEL.RESNETS.RES2_OUT_CHANNELS", 64] if depth == 18 else [])
    model, optimizer = build(CONFIG, *words)
    floor = Floor(model)
    simsiam, densecl = SimSiam(depth).train(), DenseCL(depth).train()
    batch = random_batch(images, side)
    channels_last = tuple(model.preprocess_views(batch)[:2])
    plain = tuple(x.contiguous() for x in channels_last)

    def sgd(network):
        trained = [p for p in network.parameters() if p.requires_grad]
        return torch.optim.SGD(trained, lr=0.1, momentum=0.9, weight_decay=1e-4)

    # Metrics are for every twentieth step; a step of theirs in between would be measured as if it were all of them.
    model.metrics_due = lambda: False
    bf16 = torch.bfloat16
    times = measure(
        {
            "ours": train_step(model, optimizer, batch),
            "ours bf16": train_step(model, optimizer, batch, bf16),
            "floor": train_step(floor, None, channels_last),
            "SimSiam": train_step(simsiam, sgd(simsiam), plain),
            "DenseCL": train_step(densecl, sgd(densecl), plain),
        },
        options.repeats,
    )
    goal, gate = GOALS[depth]
    less = {"higher_is_better": False}
    return [
        Row.of(
            f"G8 pretraining step R{depth}",
            "ours / its backbone",
            ratios(times, "ours", "floor"),
            goal=goal,
            gate=gate,
            **less,
        ),
        Row.of(
            f"G9 pretraining step R{depth}",
            "ours / lightly SimSiam",
            ratios(times, "ours", "SimSiam"),
            goal=0.85,
            gate=0.95,
            **less,
        ),
        Row.of(
            f"G9 pretraining step R{depth}, bf16",
            "ours / lightly SimSiam",
            ratios(times, "ours bf16", "SimSiam"),
            goal=0.50,
            gate=0.60,
            **less,
        ),
        Row.of(f"pretraining step R{depth}", "ours / lightly DenseCL", ratios(times, "ours", "DenseCL"), **less),
        Row.of(
            f"pretraining step R{depth}", "ours, core-ms per image", [1000 * t / images for t in times["ours"]], **less
        ),
    ]

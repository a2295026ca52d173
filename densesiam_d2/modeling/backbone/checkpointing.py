"""Activation checkpointing of a backbone: less memory for more time, with the same gradients and statistics."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence

import torch
from detectron2.modeling import FPN, Backbone, ResNet
from torch import nn
from torch.utils.checkpoint import checkpoint

from densesiam_d2.modeling.backbone.torchvision_backbone import TorchvisionBackbone

__all__ = ["checkpoint_stages"]


def checkpoint_stages(backbone: Backbone, stages: Sequence[str]) -> None:
    """Let the blocks of some stages keep only their inputs in training, and compute the rest again in the backward.

    The running statistics of batch norm move in the first forward only, and random layers draw the same numbers again.
    So gradients and buffers are the same as without checkpointing.

    Args:
        backbone: a ResNet of detectron2, a CNN of torchvision, or a pyramid on one of them; changed in place.
        stages: of "res2", "res3", "res4", "res5"; a ResNet of detectron2 also has "stem". In a CNN of torchvision
            "res2" includes what comes before it.

    Raises:
        ValueError: the backbone has no such stage, or the stage consists of single layers.
    """
    blocks = {stage: inner for stage, inner in _blocks_by_stage(backbone).items() if inner}
    unknown = [stage for stage in stages if stage not in blocks]
    if unknown:
        raise ValueError(
            f"MODEL.SSL.CHECKPOINT_STAGES has {unknown[0]!r}; {type(backbone).__name__} has stages of blocks: "
            f"{', '.join(blocks) or 'none'}"
        )
    for stage in stages:
        for block in blocks[stage]:
            block.forward = functools.partial(_forward, block, block.forward)


def _blocks_by_stage(backbone: Backbone) -> dict[str, list[nn.Module]]:
    network = backbone.bottom_up if isinstance(backbone, FPN) else backbone
    if isinstance(network, ResNet):
        stages = zip(network.stage_names, network.stages, strict=True)
        return {"stem": [network.stem], **{name: list(stage) for name, stage in stages}}
    return network.blocks_by_stage() if isinstance(network, TorchvisionBackbone) else {}


def _forward(block: nn.Module, forward: Callable, x: torch.Tensor) -> torch.Tensor:
    if not (block.training and torch.is_grad_enabled()):  # a teacher and an evaluation keep nothing anyway
        return forward(x)
    again = functools.partial(_fixed_statistics, block)
    return checkpoint(forward, x, use_reentrant=False, context_fn=lambda: (contextlib.nullcontext(), again()))


@contextlib.contextmanager
def _fixed_statistics(block: nn.Module) -> Iterator[None]:
    """Keep the running statistics of all batch norms of a block as they are, without changing what they compute."""
    norms = [m for m in block.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:  # they still get the statistics, because the backward expects the same tensors as the forward
        norm.momentum, norm.num_batches_tracked = 0.0, norm.num_batches_tracked.clone()  # nn.SyncBatchNorm refuses None
    try:
        yield
    finally:
        for norm, values in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = values

"""Layers: modules and tensor helpers that know no config."""

from densesiam_d2.layers.distributed import mean_over_images, world_size
from densesiam_d2.layers.idle import with_idle
from densesiam_d2.layers.mlp import ProjectorPredictor, conv_mlp
from densesiam_d2.layers.resize import resize_logits, resized_labels
from densesiam_d2.layers.spread import embedding_spread
from densesiam_d2.layers.valid import blank_invalid

__all__ = [
    "ProjectorPredictor",
    "blank_invalid",
    "conv_mlp",
    "embedding_spread",
    "mean_over_images",
    "resize_logits",
    "resized_labels",
    "with_idle",
    "world_size",
]

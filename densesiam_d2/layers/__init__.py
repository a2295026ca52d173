"""Layers: modules and tensor helpers that know no config."""

from densesiam_d2.layers.distributed import mean_over_images, world_size
from densesiam_d2.layers.mlp import ProjectorPredictor, conv_mlp

__all__ = ["ProjectorPredictor", "conv_mlp", "mean_over_images", "world_size"]

"""Layers: modules and tensor functions that do not read a config."""

from densesiam_d2.layers.batch_colors import COLOR_OPERATIONS, apply_color_steps
from densesiam_d2.layers.cluster_metrics import cluster_metrics
from densesiam_d2.layers.distributed import (
    gather,
    gather_uneven,
    gather_with_gradient,
    mean_over_images,
    shuffle,
    unshuffle,
    unwrap,
    world_size,
)
from densesiam_d2.layers.idle import with_idle
from densesiam_d2.layers.kmeans import MiniBatchKMeans, TooFewPointsError, kmeans, nearest
from densesiam_d2.layers.merging import ClusterMerging, merge_clusters
from densesiam_d2.layers.mlp import ProjectorPredictor, conv_mlp
from densesiam_d2.layers.propagation import PixelPropagation
from densesiam_d2.layers.pyramid import FeaturePyramid
from densesiam_d2.layers.queue import FeatureQueue
from densesiam_d2.layers.resize import resize_logits, resized_labels
from densesiam_d2.layers.spread import embedding_spread
from densesiam_d2.layers.teacher import MomentumTeacher, cosine_momentum
from densesiam_d2.layers.valid import blank_invalid

__all__ = [
    "COLOR_OPERATIONS",
    "ClusterMerging",
    "FeaturePyramid",
    "FeatureQueue",
    "MiniBatchKMeans",
    "MomentumTeacher",
    "PixelPropagation",
    "ProjectorPredictor",
    "TooFewPointsError",
    "apply_color_steps",
    "blank_invalid",
    "cluster_metrics",
    "conv_mlp",
    "cosine_momentum",
    "embedding_spread",
    "gather",
    "gather_uneven",
    "gather_with_gradient",
    "kmeans",
    "mean_over_images",
    "merge_clusters",
    "nearest",
    "resize_logits",
    "resized_labels",
    "shuffle",
    "unshuffle",
    "unwrap",
    "with_idle",
    "world_size",
]

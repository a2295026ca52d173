"""Losses: pure functions of tensors."""

from densesiam_d2.losses.assignment import balanced_logits
from densesiam_d2.losses.clusters import cluster_cross_entropy
from densesiam_d2.losses.contrastive import info_nce
from densesiam_d2.losses.mutual_information import displaced_counts, mutual_information_loss
from densesiam_d2.losses.pseudo_label import pseudo_label_loss
from densesiam_d2.losses.region import pool_regions, region_infonce
from densesiam_d2.losses.similarity import negative_cosine, negative_cosine_of_pairs, soft_cross_entropy
from densesiam_d2.losses.slots import active_slots, pool_slots, prototype_scores, slot_infonce
from densesiam_d2.losses.usage import usage_loss

__all__ = [
    "active_slots",
    "balanced_logits",
    "cluster_cross_entropy",
    "displaced_counts",
    "info_nce",
    "mutual_information_loss",
    "negative_cosine",
    "negative_cosine_of_pairs",
    "pool_regions",
    "pool_slots",
    "prototype_scores",
    "pseudo_label_loss",
    "region_infonce",
    "slot_infonce",
    "soft_cross_entropy",
    "usage_loss",
]

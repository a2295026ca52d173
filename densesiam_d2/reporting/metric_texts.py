"""What the numbers in ``metrics.json`` mean, for a reader who sees their curves for the first time."""

import re
from typing import NamedTuple

__all__ = ["GROUPS", "Meaning", "meaning_of"]

COLLAPSE, CLUSTERS, LOSSES, SCORES, PROBE, DETECTOR, SPEED, OTHER = GROUPS = (
    "Collapse numbers",
    "Clusters, without labels",
    "Losses",
    "Scores during training",
    "Probe",
    "Inside the detector",
    "Schedule and speed",
    "Other numbers",
)


class Meaning(NamedTuple):
    """What a number means.

    Attributes:
        group: one of ``GROUPS``.
        unit: for the axis; "" for a number without one.
        text: one sentence.
    """

    group: str
    unit: str
    text: str


_NO_CURVE = r"eta_seconds|rank_data_time|ssl/z_std_ideal|.*/(IoU|AP)-.*|.*unmatched_classes.*"

# The first pattern that matches a whole name counts.
_MEANINGS = {
    r"ssl/between": Meaning(
        COLLAPSE, "1 = evenly spread", "How much the mean features of images differ; near 0 all images look alike."
    ),
    r"ssl/effective_rank": Meaning(
        COLLAPSE, "directions", "How many directions the features use; near 1 most differences lie on one line."
    ),
    r"ssl/winners": Meaning(
        COLLAPSE, "regions or clusters", "How many soft regions or clusters win at least one point of the batch."
    ),
    r"ssl/largest_cluster": Meaning(COLLAPSE, "share of points", "Near 1 one cluster has taken all points."),
    r"ssl/assignment_entropy": Meaning(
        COLLAPSE, "0 to 1", "How evenly points are assigned to clusters on average; at 0 one cluster has all."
    ),
    r"ssl/z_std": Meaning(
        COLLAPSE,
        "standard deviation",
        "Spread of the normalised features; it should stay near 1/sqrt(D), the dashed line.",
    ),
    r"ssl/within": Meaning(
        COLLAPSE, "1 = evenly spread", "How much the points of an image differ; at 0 an image has one feature only."
    ),
    r"ssl/mean_norm": Meaning(COLLAPSE, "length, 0 to 1", "Length of the mean feature; at 1 all features are equal."),
    r"ssl/overlap": Meaning(OTHER, "share of view 2", "How much of view 2 view 1 shows, on average."),
    r"ssl/no_overlap": Meaning(OTHER, "share of images", "Images whose two views show no common point."),
    r"ssl/used_clusters": Meaning(CLUSTERS, "clusters", "How many clusters have at least one point of the batch."),
    r"ssl/usage_entropy": Meaning(
        CLUSTERS, "0 to 1", "1: all clusters have the same number of points; 0: one has all."
    ),
    r"ssl/pixel_entropy": Meaning(CLUSTERS, "0 to 1", "0: every point is sure of its cluster; 1: none prefers any."),
    r"ssl/view_agreement": Meaning(
        CLUSTERS, "share of points", "Common points that have the same cluster in both views; higher is better."
    ),
    r"total_loss": Meaning(LOSSES, "loss", "The sum of all losses; it should fall, then level off."),
    r"loss_pixel(_aux)?": Meaning(
        LOSSES, "loss", "Disagreement of the two views at common points; for DenseSiam it falls from 0 towards -1."
    ),
    r"loss_region|loss_windows_.*|loss_patches.*": Meaning(
        LOSSES, "loss", "Disagreement of the two views about regions of the image; it should fall."
    ),
    r"loss_image|loss_dense": Meaning(
        LOSSES, "loss", "Disagreement of the two views of an image, against other images where the method has them."
    ),
    r"loss_group|loss_slot": Meaning(LOSSES, "loss", "Disagreement of the two views about slots; it should fall."),
    r"loss_over|loss_clusters?": Meaning(
        LOSSES, "loss", "How badly clusters of the two views fit together; lower is better."
    ),
    r"loss_distance": Meaning(
        LOSSES, "distance", "Distance of features to their cluster's centre; nothing is trained."
    ),
    r"loss_sem_seg": Meaning(LOSSES, "cross entropy", "Wrong classes of pixels; without labels, of pseudo labels."),
    r"loss_usage": Meaning(LOSSES, "loss", "Grows when few clusters are used."),
    r"loss_rpn_cls": Meaning(LOSSES, "cross entropy", "First stage: is there an object at an anchor?"),
    r"loss_rpn_loc": Meaning(LOSSES, "loss", "First stage: how far proposed boxes are from objects."),
    r"loss_cls": Meaning(LOSSES, "cross entropy", "Second stage: wrong classes of proposed boxes."),
    r"loss_box_reg": Meaning(LOSSES, "loss", "Second stage: how far boxes are from objects."),
    r"loss_mask": Meaning(LOSSES, "cross entropy", "Wrong pixels of masks; 0.69 is guessing."),
    r"loss_.*": Meaning(LOSSES, "loss", "One part of the total loss."),
    r"probe/.*(mIoU|pACC|mACC|AP).*": Meaning(
        PROBE, "percent", "What the frozen features know about the classes of a labelled set; higher is better."
    ),
    r"probe/.*": Meaning(PROBE, "", "What the frozen features know about the classes of a labelled set."),
    r"(.*/)?(segm|bbox)/AP.*": Meaning(
        SCORES, "percent", "Average precision on the test set (segm: masks, bbox: boxes); higher is better."
    ),
    r"(.*/)?(sem_seg|monitor)/.*(IoU|ACC).*": Meaning(
        SCORES, "percent", "Pixels of a labelled set that get the right class; higher is better."
    ),
    r"(.*/)?(sem_seg|monitor|segm|bbox)/.*": Meaning(SCORES, "", "A number of the evaluation on a labelled set."),
    r"rpn/num_(pos|neg)_anchors": Meaning(
        DETECTOR, "anchors per image", "Anchors that the first stage learns as object (pos) or background (neg)."
    ),
    r"roi_head/num_(fg|bg)_samples": Meaning(
        DETECTOR, "boxes per image", "Proposed boxes that the second stage learns as object (fg) or background (bg)."
    ),
    r"fast_rcnn/cls_accuracy": Meaning(DETECTOR, "share of boxes", "Proposed boxes with the right class."),
    r"fast_rcnn/fg_cls_accuracy": Meaning(DETECTOR, "share of boxes", "Boxes on objects with the right class."),
    r"fast_rcnn/false_negative": Meaning(DETECTOR, "share of boxes", "Boxes on objects that are taken for background."),
    r"mask_rcnn/accuracy": Meaning(DETECTOR, "share of pixels", "Pixels in masks that are right."),
    r"mask_rcnn/false_negative": Meaning(DETECTOR, "share of pixels", "Pixels of objects that masks miss."),
    r"mask_rcnn/false_positive": Meaning(DETECTOR, "share of pixels", "Pixels outside objects that masks cover."),
    r"lr": Meaning(SPEED, "learning rate", "The learning rate, after warm-up and schedule."),
    r"grad_norm": Meaning(SPEED, "norm", "Length of the gradient; jumps come before trouble."),
    r"time": Meaning(SPEED, "seconds", "Time of one iteration."),
    r"data_time": Meaning(
        SPEED,
        "seconds",
        "Time of one iteration that is spent waiting for images; near 0 is good (DATALOADER.NUM_WORKERS).",
    ),
    r"dropped_steps": Meaning(SPEED, "steps", "Steps left out because a loss or gradient was not finite."),
    r"\[metric\]grad_scaler": Meaning(SPEED, "factor", "Scale of the loss in mixed precision."),
}


def meaning_of(name: str) -> Meaning | None:
    """Return what a number of ``metrics.json`` means; None for those that need no curve of their own."""
    if re.fullmatch(_NO_CURVE, name):
        return None
    for pattern, meaning in _MEANINGS.items():
        if re.fullmatch(pattern, name):
            return meaning
    return Meaning(OTHER, "", "Logged by the training.")

"""ReSim: Region Similarity Representation Learning (ICCV 2021, arXiv 2103.12902)."""

from typing import NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from densesiam_d2.geometry import move_windows, overlap_boxes, sliding_windows
from densesiam_d2.layers import FeaturePyramid, gather, mean_over_images
from densesiam_d2.losses import info_nce
from densesiam_d2.modeling.meta_arch.moco import MoCo
from densesiam_d2.rules import POSITIVE, all_of

__all__ = ["ReSim", "WindowLevel"]


class WindowLevel(NamedTuple):
    """Sliding windows over one map of the pyramid."""

    name: str  # of the encoder's map
    size: int  # side of a window, in pixels of the view
    stride: int  # pixels from one window to the next
    gather: bool  # whether the negatives come from all processes


@META_ARCH_REGISTRY.register()
class ReSim(MoCo):
    """MoCo v2 for images and, in the same way, for windows that slide over view 1, each with its place in view 2.

    The features of windows come from a feature pyramid. Their negatives are all places of the keys' maps, also those of
    the same image, where one lies on the window itself, as released.

    Letters: x view, q query (of view 1), k key (of view 2). N images, D embedding of images, E embedding of windows, W
    windows.

    Source: Tete-Xiao/ReSim, moco/builder.py, moco/models.py and moco/datasets.py. Departures: a window's feature is
    taken by RoIAlign (there: Precise RoI Pooling, which computes the integral that RoIAlign approximates), which
    enlarges windows below one cell to a cell; both place cell i at coordinate i. The loss is the mean over the windows
    of all processes, and 0 without any (there: each process's own mean, and NaN).
    """

    accumulates = False
    RULES = {
        "MODEL.RESIM.IN_FEATURES": (
            lambda v: len(v) > 1,
            "a list of at least two outputs of the backbone, fine before coarse, such as ['res4', 'res5']",
        ),
        "MODEL.RESIM.DIM": POSITIVE,
        "MODEL.RESIM.WINDOW_SIZES": (all_of(lambda v: isinstance(v, int) and v > 0), "a list of pixels > 0"),
        "MODEL.RESIM.WINDOW_STRIDES": (all_of(lambda v: isinstance(v, int) and v > 0), "a list of pixels > 0"),
        "MODEL.RESIM.GATHER": (all_of(lambda v: v in (True, False)), "a list of True and False"),
    }

    @configurable
    def __init__(self, *, in_features: list[str], levels: list[WindowLevel], **kwargs):
        """Store the windows.

        Args:
            in_features: names of the backbone's outputs for the pyramid, fine before coarse.
            levels: one for each of them but the last.
            kwargs: arguments of :class:`MoCo`; ``head`` has the children "image" and "pyramid".
        """
        super().__init__(**kwargs)
        self.in_features = in_features
        self.levels = levels

    @staticmethod
    def add_config(cfg: CfgNode) -> None:
        """Add MODEL.RESIM; the other keys are those of MODEL.MOCO."""
        keys = cfg.MODEL.RESIM = CfgNode()
        # Outputs of the backbone for the pyramid, fine before coarse. The coarsest has no windows.
        keys.IN_FEATURES = ["res3", "res4", "res5"]
        # Channels of the pyramid (E).
        keys.DIM = 256
        # For each output but the coarsest: side of its windows and distance between them, in pixels of the view, and
        # whether their negatives come from all processes.
        keys.WINDOW_SIZES = [32, 48]
        keys.WINDOW_STRIDES = [24, 32]
        keys.GATHER = [False, True]

    @classmethod
    def problems(cls, cfg: CfgNode) -> list[str]:
        keys, problems = cfg.MODEL.RESIM, []
        expected = len(keys.IN_FEATURES) - 1
        for name in ("WINDOW_SIZES", "WINDOW_STRIDES", "GATHER"):
            if len(keys[name]) != expected:
                problems.append(
                    f"MODEL.RESIM.{name} has {len(keys[name])} values; give one for each of the {expected} outputs in "
                    "IN_FEATURES but the last"
                )
        if any(size >= cfg.INPUT.SSL.VIEW_SIZE for size in keys.WINDOW_SIZES):
            problems.append(
                f"MODEL.RESIM.WINDOW_SIZES is {keys.WINDOW_SIZES}; windows must be smaller than INPUT.SSL.VIEW_SIZE "
                f"{cfg.INPUT.SSL.VIEW_SIZE}"
            )
        return problems

    @classmethod
    def from_config(cls, cfg):
        ret = super().from_config(cfg)
        keys, shapes = cfg.MODEL.RESIM, ret["backbone"].output_shape()
        missing = sorted(set(keys.IN_FEATURES) - set(shapes))
        if missing:
            raise ValueError(f"MODEL.RESIM.IN_FEATURES {missing} are not among the backbone's {sorted(shapes)}")
        inputs, view = [shapes[name] for name in keys.IN_FEATURES], cfg.INPUT.SSL.VIEW_SIZE
        if any(view / shape.stride <= 2 for shape in inputs[:-1]):  # rounded up, fewer than the 3 cells of a window
            raise ValueError(
                f"INPUT.SSL.VIEW_SIZE {view} gives maps of fewer than 3 x 3 cells, which ReSim's windows need: strides "
                f"of MODEL.RESIM.IN_FEATURES are {[shape.stride for shape in inputs]}"
            )
        pyramid = FeaturePyramid([s.channels for s in inputs], [s.stride for s in inputs], keys.DIM)
        per_level = (keys.IN_FEATURES[:-1], keys.WINDOW_SIZES, keys.WINDOW_STRIDES, keys.GATHER)
        return {
            **ret,
            "head": nn.ModuleDict({"image": ret["head"], "pyramid": pyramid}),
            "in_features": keys.IN_FEATURES,
            "levels": [WindowLevel(*values) for values in zip(*per_level, strict=True)],
        }

    def embed(self, x: torch.Tensor, backbone: nn.Module, head: nn.Module) -> tuple[torch.Tensor, ...]:
        """Return what the losses compare of a view (N, 3, H, W).

        Args:
            x: a normalised view.
            backbone, head: the student's or the teacher's.

        Returns:
            The embedding of the image (N, D), of norm 1, and the maps (N, E, h, w) of the pyramid, fine before coarse.
        """
        f, *maps = self.encode_maps(x, [self.in_feature, *self.in_features], backbone)
        image = head["image"](f.mean(dim=(2, 3), keepdim=True)).flatten(1)
        return F.normalize(image.float(), dim=1), *head["pyramid"](maps)

    def forward(self, batched_inputs):
        """Compare images and windows of two views in training; return features otherwise.

        Args:
            batched_inputs: as in ``DenseSiam``.

        Returns:
            In training, "loss_image" and for each level "loss_windows_<name>", all >= 0, where windows that do not lie
            wholly in view 2 are left out; otherwise "features" (C, h, w) per image.
        """
        if not self.training:
            return self.inference(batched_inputs)
        x1, x2, boxes1, boxes2 = self.preprocess_views(batched_inputs)
        self.teacher.update(self.momentum)
        k, *k_maps = self.teach(x2)
        q, *q_maps = self.embed(x1, self.backbone, self.head)
        losses = {"loss_image": info_nce(q, k, self.queue.features.clone(), self.temperature).mean()}
        self.queue.push(gather(k))

        view_size = x1.shape[-1]
        for level, q_map, k_map in zip(self.levels, q_maps, k_maps, strict=True):
            windows = sliding_windows(view_size, level.size, level.stride).to(boxes1)  # (W, 4)
            moved, inside = move_windows(windows, boxes1, boxes2, view_size)  # (N, W, 4), (N, W)
            q_windows = pool_windows(q_map, windows.expand_as(moved), view_size)  # (N * W, E)
            k_windows = pool_windows(k_map, moved, view_size)
            places = F.avg_pool2d(k_map.float(), 3, stride=1).flatten(2).transpose(1, 2).flatten(0, 1)
            negatives = F.normalize(gather(places) if level.gather else places, dim=1)
            loss = info_nce(q_windows, k_windows, negatives, self.temperature)
            losses[f"loss_windows_{level.name}"] = mean_over_images(loss, inside.flatten())

        if self.metrics_due():
            self.log_metrics(q, overlap=overlap_boxes(boxes1, boxes2)[1])
        return losses


def pool_windows(features: torch.Tensor, windows: torch.Tensor, view_size: int) -> torch.Tensor:
    """Return the features of windows, averaged over each window and L2-normalised.

    Args:
        features: (N, E, h, w); cell i has its centre at i * view_size / w pixels.
        windows: (N, W, 4) windows as (x0, y0, x1, y1) in pixels of the view.
        view_size: side of the view, in pixels.

    Returns:
        (N * W, E) float32. Where a window's edges lie on cell centres, this is the exact mean of the bilinearly
        interpolated map over the window.
    """
    pooled = roi_align(features.float(), list(windows), 1, features.shape[-1] / view_size, aligned=False)
    return F.normalize(pooled.flatten(1), dim=1)

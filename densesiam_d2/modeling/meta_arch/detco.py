"""DetCo: Unsupervised Contrastive Learning for Object Detection (ICCV 2021, arXiv 2102.04803)."""

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn
from torch.nn import functional as F

from densesiam_d2.layers import FeatureQueue, gather
from densesiam_d2.losses import info_nce
from densesiam_d2.modeling.meta_arch.moco import MoCo
from densesiam_d2.rules import NOT_NEGATIVE, all_of

__all__ = ["DetCo"]


@META_ARCH_REGISTRY.register()
class DetCo(MoCo):
    """MoCo v2 at several stages of the encoder, for whole views, for their patches, and between patches and views.

    Letters: x view, q query (of view 1), k key (of view 2). N images, P patches of a view, S stages, D embedding.

    The authors have not released their pretraining. This follows the paper as implemented in shuuchen/DetCo.pytorch
    (detco/builder.py, detco/models.py, main_detco.py), which is not theirs. Departure: the order of the patches is
    drawn for each image (there: for the whole batch).
    """

    RULES = {
        "MODEL.DETCO.IN_FEATURES": (
            lambda v: len(v) > 0,
            "a list of outputs of the backbone, such as ['res4', 'res5']",
        ),
        "MODEL.DETCO.STAGE_WEIGHTS": (all_of(lambda v: v >= 0), "a list of numbers >= 0"),
        "MODEL.DETCO.LOCAL_HIDDEN_DIM": NOT_NEGATIVE,
    }

    @configurable
    def __init__(self, *, stage_weights: dict[str, float], **kwargs):
        """Store the weights.

        Args:
            stage_weights: weight of the losses of each stage, by the name of the backbone's output.
            kwargs: arguments of :class:`MoCo`. ``head`` has the children "image" and "patches", each with one module
                per stage. ``queue`` likewise, with one queue per stage.
        """
        super().__init__(**kwargs)
        self.stage_weights = stage_weights

    @staticmethod
    def add_config(cfg: CfgNode) -> None:
        """Add MODEL.DETCO; the other keys are those of MODEL.MOCO."""
        keys = cfg.MODEL.DETCO = CfgNode()
        # Outputs of the backbone that have a head, and the weights of their losses.
        keys.IN_FEATURES = ["res2", "res3", "res4", "res5"]
        keys.STAGE_WEIGHTS = [0.1, 0.4, 0.7, 1.0]
        # Hidden width of the heads of patches; 0 = that of their input, which is patches * channels. With ResNet-50 and
        # 9 patches these heads then have 450 million weights.
        keys.LOCAL_HIDDEN_DIM = 0

    @classmethod
    def problems(cls, cfg: CfgNode) -> list[str]:
        keys, problems = cfg.MODEL.DETCO, []
        if len(keys.IN_FEATURES) != len(keys.STAGE_WEIGHTS):
            problems.append(
                f"MODEL.DETCO.STAGE_WEIGHTS has {len(keys.STAGE_WEIGHTS)} values; give one for each of the "
                f"{len(keys.IN_FEATURES)} outputs in IN_FEATURES"
            )
        if cfg.INPUT.SSL.PATCH_GRID == 0:
            problems.append("INPUT.SSL.PATCH_GRID is 0, but DetCo needs patches; set it to 3")
        return problems

    @classmethod
    def from_config(cls, cfg):
        ret = super().from_config(cfg)
        keys, shapes = cfg.MODEL.DETCO, ret["backbone"].output_shape()
        missing = sorted(set(keys.IN_FEATURES) - set(shapes))
        if missing:
            raise ValueError(f"MODEL.DETCO.IN_FEATURES {missing} are not among the backbone's {sorted(shapes)}")
        dim, length, num_patches = (
            cfg.MODEL.MOCO.PROJ_DIMS[-1],
            cfg.MODEL.MOCO.QUEUE_LENGTH,
            cfg.INPUT.SSL.PATCH_GRID**2,
        )

        def heads(num_inputs: int, hidden_dim: int) -> nn.ModuleDict:
            widths = {name: num_inputs * shapes[name].channels for name in keys.IN_FEATURES}
            return nn.ModuleDict({name: cls.mlp(w, [hidden_dim or w, dim]) for name, w in widths.items()})

        def queues() -> nn.ModuleDict:
            return nn.ModuleDict({name: FeatureQueue(dim, length) for name in keys.IN_FEATURES})

        return {
            **ret,
            "head": nn.ModuleDict({"image": heads(1, 0), "patches": heads(num_patches, keys.LOCAL_HIDDEN_DIM)}),
            "queue": nn.ModuleDict({"image": queues(), "patches": queues()}),
            "stage_weights": dict(zip(keys.IN_FEATURES, keys.STAGE_WEIGHTS, strict=True)),
        }

    def embed(self, x: torch.Tensor, backbone: nn.Module, head: nn.Module) -> tuple[torch.Tensor, ...]:
        """Return an embedding (N, D) of norm 1 for each stage, of views or of sets of patches.

        Args:
            x: normalised views (N, 3, H, W), or patches (N, P, 3, h, w), whose features are concatenated.
            backbone, head: the student's or the teacher's.
        """
        heads = head["image" if x.dim() == 4 else "patches"]
        maps = self.encode_maps(x.flatten(0, -4), list(heads), backbone)  # of (N * P, 3, h, w)
        pooled = [f.mean(dim=(2, 3)).reshape(len(x), -1, 1, 1) for f in maps]  # (N, P * C, 1, 1)
        embedded = (layers(f) for layers, f in zip(heads.values(), pooled, strict=True))
        return tuple(F.normalize(e.flatten(1).float(), dim=1) for e in embedded)

    def forward(self, batched_inputs):
        """Compare views and patches in training; return features otherwise.

        Args:
            batched_inputs: in training, the dict of ``collate_views`` ("views" uint8 (N, 2, 3, H, W), "view_boxes"
                (N, 2, 4), "patches" uint8 (N, 2, P, 3, h, w)) or a list of what ``TwoViewDatasetMapper`` returns;
                otherwise a list of dicts with "image".

        Returns:
            In training, "loss_image", "loss_patches" and "loss_patches_to_image", sums over the stages with their
            weights; otherwise "features" (C, h, w) per image.
        """
        if not self.training:
            return self.inference(batched_inputs)
        x1, x2, *_ = self.preprocess_views(batched_inputs)
        patches1, patches2 = self.preprocess_patches(batched_inputs)
        self.teacher.update(self.momentum)
        keys = {"image": self.teach(x2), "patches": self.teach(patches2)}
        queries = {
            "image": self.embed(x1, self.backbone, self.head),
            "patches": self.embed(patches1, self.backbone, self.head),
        }

        negatives = {name: [queue.features.clone() for queue in queues.values()] for name, queues in self.queue.items()}

        def loss(query: str, key: str) -> torch.Tensor:
            stages = zip(queries[query], keys[key], negatives[key], self.stage_weights.values(), strict=True)
            return sum(w * info_nce(q, k, others, self.temperature).mean() for q, k, others, w in stages)

        losses = {
            "loss_image": loss("image", "image"),
            "loss_patches": loss("patches", "patches"),
            "loss_patches_to_image": loss("patches", "image"),
        }
        for name, queues in self.queue.items():
            for queue, k in zip(queues.values(), keys[name], strict=True):
                queue.push(gather(k))

        if self.metrics_due():
            self.log_metrics(queries["image"][-1])
        return losses

    def preprocess_patches(self, batched_inputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Move the patches of both views, (N, P, 3, h, w) each, to the device and normalise them."""
        if isinstance(batched_inputs, list):
            patches = torch.stack([x["patches"] for x in batched_inputs])
        else:
            patches = batched_inputs["patches"]
        return ((patches.to(self.device, non_blocking=True) - self.pixel_mean) / self.pixel_std).unbind(dim=1)

"""The segmentation head that makes pseudo labels itself: a top-down decoder and one or two cluster classifiers.

Shape shorthand: N images, C decoder channels, K clusters, h,w cells at the finest stride, H,W input pixels.
"""

from collections.abc import Callable
from operator import attrgetter

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import nn
from torch.nn import functional as F

from densesiam_d2.layers import ClusterMerging, conv_mlp, with_idle
from densesiam_d2.losses import pseudo_label_loss
from densesiam_d2.modeling.sem_seg.decoder import (
    TopDownDecoder,
    check_finest_stride,
    clustering_weights,
    features_of,
)
from densesiam_d2.modeling.sem_seg.loss import masked_cross_entropy

__all__ = ["ClusterClassifier", "PseudoLabelSemSegHead"]


class ClusterClassifier(nn.Module):
    """A projector to K cluster logits, and a predictor on these logits that is used only in training.

    Source: densesiam/models/architectures/densesiam.py in ZwwWayne/DenseSiam.
    """

    def __init__(
        self,
        in_dim: int,
        num_classes: int,
        *,
        num_convs: int,
        norm: Callable[[int], nn.Module],
        logit_norm: bool = True,
        predictor: bool = True,
    ):
        """Build projector and predictor.

        Args:
            in_dim: C, channels of the decoder's output, and of all hidden layers.
            num_classes: K.
            num_convs: convolution-norm-ReLU blocks of the projector before its last convolution.
            norm: function that makes a norm layer from a number of channels.
            logit_norm: end the projector with a norm.
            predictor: False gives a predictor that returns its input.
        """
        super().__init__()
        # The last norm has no learned scale, so that the logits of every cluster keep unit variance and none dies out.
        last = False if logit_norm else None
        dims = [in_dim] * num_convs + [num_classes]
        self.projector = conv_mlp(in_dim, dims, norm=norm, bias_last=True, last_norm_affine=last)
        self.predictor: nn.Module = nn.Identity()
        if predictor:
            widths = [in_dim, num_classes]
            self.predictor = conv_mlp(num_classes, widths, norm=norm, bias_last=True, last_norm_affine=None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits z (N, K, h, w) of decoded features (N, C, h, w); the predictor is not applied."""
        return self.projector(x)


@SEM_SEG_HEADS_REGISTRY.register()
class PseudoLabelSemSegHead(nn.Module):
    """Cluster pixels without labels, or classify them with labels.

    Under ``SemanticSegmentor`` it computes its own loss: pseudo labels without targets, cross-entropy with targets.
    ``DenseSiamSegmentor`` calls :meth:`decode` and the classifiers, and adds the similarity of two views.

    Source: densesiam/models/architectures/densesiam.py in ZwwWayne/DenseSiam.
    """

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        num_classes: int,
        conv_dim: int,
        common_stride: int,
        norm: Callable[[int], nn.Module],
        num_proj_convs: int = 2,
        normalize: bool = False,
        logit_norm: bool = True,
        predictor: bool = True,
        aux_classes: int = 0,
        merge_from: int = 0,
        rebalance: bool = True,
        sinkhorn: bool = False,
        similarity_weight: float = 1.0,
        loss_weight: float = 1.0,
        ignore_value: int = 255,
    ):
        """Build the decoder and the classifiers.

        Args:
            input_shape: channels and stride of the backbone features to use.
            num_classes: K, clusters of the result.
            conv_dim: C, channels of the decoder and of the hidden layers.
            common_stride: stride of the finest feature, by which logits are upsampled to input pixels.
            norm: function that makes a norm layer from a number of channels.
            num_proj_convs: hidden blocks of each projector.
            normalize: normalise each backbone feature before the decoder.
            logit_norm: end each projector with a norm.
            predictor: whether each classifier has a predictor.
            aux_classes: clusters of the auxiliary classifier; 0 = none.
            merge_from: M, clusters of the main classifier, which the result merges; 0 = K, and nothing is merged.
            rebalance: see :func:`densesiam_d2.losses.pseudo_label_loss`.
            sinkhorn: whether the targets of ``DenseSiamSegmentor`` use all clusters alike, see
                :func:`densesiam_d2.losses.balanced_logits`.
            similarity_weight: total weight that :meth:`similarity_weights` divides between the classifiers.
            loss_weight: weight of ``loss_sem_seg``.
            ignore_value: label of the pixels that the loss leaves out, when there are labels.

        Raises:
            ValueError: IN_FEATURES is empty, or the finest of them is not at COMMON_STRIDE.
        """
        super().__init__()
        check_finest_stride(input_shape, common_stride)
        self.num_classes = num_classes
        self.aux_classes = aux_classes
        self.num_clusters = merge_from or num_classes
        self.common_stride = common_stride
        self.rebalance = rebalance
        self.sinkhorn = sinkhorn
        self.similarity_weight = similarity_weight
        self.loss_weight = loss_weight
        self.ignore_value = ignore_value

        self.decoder = TopDownDecoder(input_shape, conv_dim, normalize=normalize)
        options = {"num_convs": num_proj_convs, "norm": norm, "logit_norm": logit_norm, "predictor": predictor}
        self.classifier = ClusterClassifier(conv_dim, self.num_clusters, **options)
        self.aux_classifier = ClusterClassifier(conv_dim, aux_classes, **options) if aux_classes else None
        self.merging = ClusterMerging(merge_from, num_classes) if merge_from else None

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]):
        """Read ``MODEL.SEM_SEG_HEAD``; see the constructor for what it raises."""
        head = cfg.MODEL.SEM_SEG_HEAD
        if head.PSEUDO_LABEL.LOGIT_NORM and not head.NORM:
            raise ValueError(
                "MODEL.SEM_SEG_HEAD.PSEUDO_LABEL.LOGIT_NORM is True, but MODEL.SEM_SEG_HEAD.NORM is '': name a norm, "
                "such as 'SyncBN', or set LOGIT_NORM False"
            )
        widths = {"CONVS_DIM": head.CONVS_DIM}
        if head.PSEUDO_LABEL.LOGIT_NORM:
            clusters = "PSEUDO_LABEL.MERGE_FROM" if head.PSEUDO_LABEL.MERGE_FROM else "NUM_CLASSES"
            widths |= {key: attrgetter(key)(head) for key in (clusters, "PSEUDO_LABEL.AUX_CLASSES")}
        if head.NORM == "GN" and any(width % 32 for width in widths.values()):
            named = ", ".join(f"{key} {width}" for key, width in widths.items())
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.NORM is 'GN', which needs widths divisible by 32, not {named}: "
                "use 'SyncBN' or 'BN'"
            )
        return {
            "input_shape": features_of(cfg, input_shape),
            "num_classes": head.NUM_CLASSES,
            "conv_dim": head.CONVS_DIM,
            "common_stride": head.COMMON_STRIDE,
            "norm": lambda channels: get_norm(head.NORM, channels) or nn.Identity(),
            "num_proj_convs": head.PSEUDO_LABEL.NUM_PROJ_CONVS,
            "normalize": head.PSEUDO_LABEL.NORMALIZE,
            "logit_norm": head.PSEUDO_LABEL.LOGIT_NORM,
            "predictor": head.PSEUDO_LABEL.PREDICTOR,
            "aux_classes": head.PSEUDO_LABEL.AUX_CLASSES,
            "merge_from": head.PSEUDO_LABEL.MERGE_FROM,
            "rebalance": head.PSEUDO_LABEL.REBALANCE,
            "sinkhorn": head.PSEUDO_LABEL.SINKHORN,
            "similarity_weight": head.PSEUDO_LABEL.SIMILARITY_WEIGHT,
            "loss_weight": head.LOSS_WEIGHT,
            "ignore_value": head.IGNORE_VALUE,
        }

    def forward(
        self, features: dict[str, torch.Tensor], targets: torch.Tensor | None = None
    ) -> tuple[torch.Tensor | None, dict[str, torch.Tensor]]:
        """Return the loss in training and the logits in inference, as detectron2 expects of a segmentation head.

        Args:
            features: name -> (N, C_i, h_i, w_i).
            targets: (N, H, W) labels; None in inference, and in training without labels.

        Returns:
            In training, (None, {"loss_sem_seg": weighted scalar}). In inference, (logits (N, K, H, W), {}).
        """
        z = self.layers(features)
        if self.training:
            return None, self.losses(z, targets)
        # In channels-last format detectron2's resize and the evaluator's argmax are several times faster on CPU.
        return self._upsample(z.contiguous(memory_format=torch.channels_last)), {}

    def decode(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the decoded features (N, C, h, w) that both classifiers take."""
        x = self.decoder(features)
        others = [f for name, f in features.items() if name not in self.decoder.lateral]
        return with_idle(x, others) if self.training else x

    def layers(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the logits z (N, K, h, w) of the result: the main classifier's, merged if there is ``merging``."""
        z = self.classifier(self.decode(features))
        return z if self.merging is None else self.merging(z)

    def losses(self, z: torch.Tensor, targets: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Return ``loss_sem_seg`` of logits z (N, K, h, w), with targets (N, H, W) or with pseudo labels."""
        if targets is None:
            loss = pseudo_label_loss(z, rebalance=self.rebalance)
        else:
            loss = masked_cross_entropy(self._upsample(z.float()), targets, self.ignore_value)
        # The predictor and the auxiliary classifier are not used here, but DDP waits for their gradients.
        idle = [self.classifier.predictor] + ([self.aux_classifier] if self.aux_classifier else [])
        parameters = [p for module in idle for p in module.parameters() if p.requires_grad]
        return {"loss_sem_seg": with_idle(self.loss_weight * loss, parameters)}

    def similarity_weights(self) -> tuple[float, float]:
        """Return the weights of the soft cross-entropy between views, for the main and the auxiliary classifier."""
        main, aux = clustering_weights(self.num_clusters, self.aux_classes)
        return self.similarity_weight * main, self.similarity_weight * aux

    def _upsample(self, logits: torch.Tensor) -> torch.Tensor:
        return F.interpolate(logits, scale_factor=self.common_stride, mode="bilinear", align_corners=False)

"""Modified DeepCluster: DeepCluster for pixels, the baseline of PiCIE (CVPR 2021, arXiv 2103.17070)."""

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn
from torch.func import functional_call

from densesiam_d2.geometry import overlap_grids, sample
from densesiam_d2.losses import cluster_cross_entropy
from densesiam_d2.modeling.consistency import count_winners
from densesiam_d2.modeling.meta_arch.clustering_segmentor import ClusteringSegmentor
from densesiam_d2.modeling.sem_seg import CentroidSemSegHead

__all__ = ["ModifiedDeepCluster"]


@META_ARCH_REGISTRY.register()
class ModifiedDeepCluster(ClusteringSegmentor):
    """Cluster the cells of one view, then train the network and a new linear classifier to predict the clusters.

    The view is the first one; the second is used only to log how far the clusters of both views agree. In evaluation
    the clusters are those of the classifier.

    Source: janghyuncho/PiCIE, train_mdc.py. There the classifier has an Adam optimizer of its own; here it is in the
    same optimizer, whose state of the classifier starts from zero in every epoch. This is the same.
    """

    @configurable
    def __init__(self, *, classifier: nn.Conv2d, **kwargs):
        """Store the classifier.

        Args:
            classifier: 1x1 convolution from C channels to K clusters.
            kwargs: arguments of :class:`ClusteringSegmentor`; the head must be a ``CentroidSemSegHead``.
        """
        super().__init__(**kwargs)
        self.classifier = classifier
        self.draw_classifier(torch.Generator().manual_seed(0))

    @classmethod
    def problems(cls, cfg: CfgNode) -> list[str]:
        aux = cfg.MODEL.CLUSTERING.AUX_CLASSES
        own = (
            [f"MODEL.CLUSTERING.AUX_CLASSES is {aux}; {cls.__name__} has no auxiliary clustering: set 0"] if aux else []
        )
        return super().problems(cfg) + own

    @classmethod
    def from_config(cls, cfg):
        ret, head = super().from_config(cfg), cfg.MODEL.SEM_SEG_HEAD
        ret["sem_seg_head"] = CentroidSemSegHead(cfg, ret["backbone"].output_shape(), num_views=1)
        return {**ret, "classifier": nn.Conv2d(head.CONVS_DIM, head.NUM_CLASSES, 1)}

    @torch.no_grad()
    def draw_classifier(self, generator: torch.Generator) -> None:
        """Draw the weights from N(0, 0.01^2), and set the bias to 0."""
        weight = self.classifier.weight
        weight.copy_(torch.empty(weight.shape).normal_(std=0.01, generator=generator))
        self.classifier.bias.zero_()

    def start_epoch(self, generator: torch.Generator, optimizer: torch.optim.Optimizer) -> None:
        """Start a new classifier and its state in the optimizer."""
        self.draw_classifier(generator)
        for parameter in self.classifier.parameters():
            for value in optimizer.state[parameter].values():
                value.zero_()

    def cluster_features(self, batched_inputs) -> list[torch.Tensor]:
        """Return the features (N, C, h, w) of view 1."""
        return [self.encode(self.preprocess_views(batched_inputs)[0])]

    def forward(self, batched_inputs):
        """Classify the cells of view 1 in training; segment whole images otherwise.

        Args:
            batched_inputs: as in ``PiCIE``.

        Returns:
            In training, "loss_cluster"; otherwise see :meth:`inference`.
        """
        if not self.training:
            return self.inference(batched_inputs)
        features = (f,) = self.cluster_features(batched_inputs)
        y = self.labels_of(batched_inputs, features)[:, 0, 0]  # (N, h, w)
        z = self.classifier(f)
        loss = cluster_cross_entropy(z, y, self.sem_seg_head.clusterings[0].frequency[0])
        if self.metrics_due():
            self.log_metrics(f, winners=count_winners(y))
            _, x2, boxes1, boxes2 = self.preprocess_views(batched_inputs)
            grid1, grid2, valid = overlap_grids(boxes1, boxes2, z.shape[-1])
            z2 = self.classify_without_trace(x2)
            self.log_cluster_metrics(sample(z.detach(), grid1), sample(z2, grid2), valid)
        return {"loss_cluster": loss}

    @torch.no_grad()
    def classify_without_trace(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits (N, K, h, w) of a view (N, 3, H, W); the statistics of batch norm stay as they were."""
        copies = {name: buffer.clone() for name, buffer in self.backbone.named_buffers()}
        return self.classifier(self.encode(x, lambda x: functional_call(self.backbone, copies, (x,))))

    def cell_logits(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.encode(x))

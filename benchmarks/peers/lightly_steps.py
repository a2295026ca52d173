"""Pretraining steps built from lightly's parts the way its own examples do; heads as wide as this project's."""

import copy

import torch
import torchvision
from lightly.loss import NegativeCosineSimilarity, NTXentLoss
from lightly.models.modules.heads import (
    BYOLPredictionHead,
    BYOLProjectionHead,
    DenseCLProjectionHead,
    MoCoProjectionHead,
    SimCLRProjectionHead,
    SimSiamPredictionHead,
    SimSiamProjectionHead,
)
from lightly.models.utils import deactivate_requires_grad, select_most_similar, update_momentum
from torch import nn

__all__ = ["LIGHTLY", "SimSiam"]


def _backbone(depth: int) -> tuple[nn.Module, int]:
    network = getattr(torchvision.models, f"resnet{depth}")()
    return nn.Sequential(*list(network.children())[:-2]), network.fc.in_features


class SimSiam(nn.Module):
    """lightly's SimSiam: two calls, float32, NCHW."""

    def __init__(self, depth: int):
        """Build it around torchvision's ResNet."""
        super().__init__()
        self.backbone, width = _backbone(depth)
        self.projection = SimSiamProjectionHead(width, 2048, 2048)
        self.prediction = SimSiamPredictionHead(2048, 512, 2048)
        self.criterion = NegativeCosineSimilarity()

    def forward(self, views: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        z = [self.projection(self.backbone(view).mean(dim=(2, 3))) for view in views]
        p = [self.prediction(x) for x in z]
        return (self.criterion(p[0], z[1].detach()) + self.criterion(p[1], z[0].detach())) / 2


class SimCLR(nn.Module):
    """lightly's SimCLR."""

    def __init__(self, depth: int):
        """Build it around torchvision's ResNet."""
        super().__init__()
        self.backbone, width = _backbone(depth)
        self.projection = SimCLRProjectionHead(width, 2048, 128, num_layers=3)
        self.criterion = NTXentLoss(temperature=0.1)

    def forward(self, views: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return self.criterion(*(self.projection(self.backbone(view).mean(dim=(2, 3))) for view in views))


class BYOL(nn.Module):
    """lightly's BYOL: a momentum encoder for both views."""

    def __init__(self, depth: int):
        """Build both encoders."""
        super().__init__()
        backbone, width = _backbone(depth)
        self.online = nn.Sequential(backbone, nn.AdaptiveAvgPool2d(1), nn.Flatten(), BYOLProjectionHead(width))
        self.prediction = BYOLPredictionHead()
        self.momentum = copy.deepcopy(self.online)
        deactivate_requires_grad(self.momentum)
        self.criterion = NegativeCosineSimilarity()

    def forward(self, views: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        update_momentum(self.online, self.momentum, m=0.99)
        p = [self.prediction(self.online(view)) for view in views]
        with torch.no_grad():
            z = [self.momentum(view) for view in views]
        return (self.criterion(p[0], z[1]) + self.criterion(p[1], z[0])) / 2


class MoCo(nn.Module):
    """lightly's MoCo v2: momentum encoder, queue of 65,536."""

    def __init__(self, depth: int):
        """Build both encoders."""
        super().__init__()
        backbone, width = _backbone(depth)
        head = MoCoProjectionHead(width, 2048, 128)
        self.online = nn.Sequential(backbone, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
        self.momentum = copy.deepcopy(self.online)
        deactivate_requires_grad(self.momentum)
        self.criterion = NTXentLoss(temperature=0.2, memory_bank_size=(65536, 128))

    def forward(self, views: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        update_momentum(self.online, self.momentum, m=0.999)
        query = self.online(views[0])
        with torch.no_grad():
            key = self.momentum(views[1])
        return self.criterion(query, key)


class DenseCL(nn.Module):
    """lightly's DenseCL: momentum encoder, global and local queue of 65,536."""

    def __init__(self, depth: int):
        """Build both encoders."""
        super().__init__()
        self.backbone, width = _backbone(depth)
        self.head, self.local = (DenseCLProjectionHead(width, 2048, 128) for _ in range(2))
        online = nn.ModuleList([self.backbone, self.head, self.local])
        self.momentum = copy.deepcopy(online)
        deactivate_requires_grad(self.momentum)
        self.criteria = [NTXentLoss(temperature=0.2, memory_bank_size=(65536, 128)) for _ in range(2)]
        self._online = [online]

    @staticmethod
    def _embed(modules: nn.ModuleList, view: torch.Tensor) -> tuple:
        backbone, head, local = modules
        features = backbone(view)
        flat = features.flatten(2).transpose(1, 2)  # (N, P, C)
        return head(features.mean(dim=(2, 3))), local(flat), flat

    def forward(self, views: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        update_momentum(self._online[0], self.momentum, m=0.999)
        query, query_local, query_features = self._embed(self._online[0], views[0])
        with torch.no_grad():
            key, key_local, key_features = self._embed(self.momentum, views[1])
        key_local = select_most_similar(query_features, key_features, key_local)
        local = self.criteria[1](query_local.flatten(0, 1), key_local.flatten(0, 1))
        return (self.criteria[0](query, key) + local) / 2


LIGHTLY = {method.__name__: method for method in (SimSiam, BYOL, MoCo, SimCLR, DenseCL)}

"""The released unsupervised segmentation step, written afresh from its description, for timing only.

Two calls of the backbone in NCHW and float32; crops and flips replayed image by image, on images and on feature maps;
one collective and one wait for the device per loss.
"""

import torch
import torchvision
from torch import nn
from torch.nn import functional as F

__all__ = ["ReleasedSegmentation"]


def _mlp(dim: int, out: int, convs: int = 2) -> nn.Sequential:
    layers = []
    for _ in range(convs):
        layers += [nn.Conv2d(dim, dim, 1, bias=False), nn.BatchNorm2d(dim), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Conv2d(dim, out, 1), nn.BatchNorm2d(out, affine=False))


def _predictor(dim: int, hidden: int) -> nn.Sequential:
    layers = [nn.Conv2d(dim, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Conv2d(hidden, dim, 1))


class ReleasedSegmentation(nn.Module):
    """ResNet-18, top-down decoder, 27 and 128 clusters, region loss."""

    def __init__(self):
        """Build it with random weights."""
        super().__init__()
        net = torchvision.models.resnet18()
        self.stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
        self.stages = nn.ModuleList([net.layer1, net.layer2, net.layer3, net.layer4])
        self.lateral = nn.ModuleList([nn.Conv2d(c, 128, 1) for c in (64, 128, 256, 512)])
        self.projector, self.predictor = _mlp(128, 27), _predictor(27, 128)
        self.aux_projector, self.aux_predictor = _mlp(128, 128), _predictor(128, 128)
        self.region_projector, self.region_predictor = _mlp(128, 128), _predictor(128, 128)

    def backbone(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return the outputs of the four stages."""
        outputs = [self.stem(x)]
        for stage in self.stages:
            outputs.append(stage(outputs[-1]))
        return outputs[1:]

    def decode(self, outputs: list[torch.Tensor]) -> torch.Tensor:
        """Return the map at stride 4."""
        x = self.lateral[3](outputs[3])
        for lateral, output in zip(self.lateral[2::-1], outputs[2::-1], strict=True):
            x = lateral(output) + F.interpolate(x, size=output.shape[-2:], mode="bilinear", align_corners=False)
        return x

    @staticmethod
    def replay(x: torch.Tensor, crops: torch.Tensor, flips: torch.Tensor, side: int) -> torch.Tensor:
        """Crop, resize and flip each image by its own stored parameters, (N, 3) shares of the side and (N,) bool."""
        images = []
        for image, crop, flip in zip(x, crops.cpu().numpy(), flips.cpu().numpy(), strict=True):
            left, top, size = (int(v * image.shape[-1]) for v in crop)
            image = image[None, :, top : top + size, left : left + size]
            image = F.interpolate(image, size=(side, side), mode="bilinear", align_corners=False)
            images.append(image.flip(-1) if flip else image)
        return torch.cat(images)

    def forward(self, batch: tuple) -> dict[str, torch.Tensor]:
        """Return the losses of images (N, 3, 2S, 2S) and (N, 3, S, S) with crops and flips."""
        large, small, crops, flips = batch
        side = small.shape[-1]
        f1 = self.decode(self.backbone(self.replay(large, crops, flips, side)))
        f2 = self.replay(self.decode(self.backbone(small)), crops, flips, f1.shape[-1])
        losses = {}
        z1, z2 = self.projector(f1), self.projector(f2)
        a1, a2 = self.aux_projector(f1), self.aux_projector(f2)
        losses["sim"] = self._similarity(self.predictor(z1), self.predictor(z2), z1, z2) * 0.5955
        losses["aux"] = self._similarity(self.aux_predictor(a1), self.aux_predictor(a2), a1, a2) * 0.4045
        losses["seg"] = (self._pseudo(z1) + self._pseudo(z2)) / 2
        losses["region"] = self._region(f1, f2, z1, z2) * 0.1
        self.numbers = {name: loss.item() for name, loss in losses.items()}
        return losses

    @staticmethod
    def _similarity(p1, p2, z1, z2) -> torch.Tensor:
        def one(p, z):
            return -(z.detach().softmax(dim=1) * p.log_softmax(dim=1)).sum(dim=1).mean()

        return (one(p1, z2) + one(p2, z1)) / 2

    @staticmethod
    def _pseudo(z: torch.Tensor) -> torch.Tensor:
        labels = z.detach().argmax(dim=1)
        share = torch.bincount(labels.flatten(), minlength=z.shape[1]) / labels.numel()
        return (F.cross_entropy(z, labels, reduction="none") * share[labels]).mean()

    def _region(self, f1, f2, z1, z2) -> torch.Tensor:
        zr = [
            self.region_projector(torch.einsum("nkhw,nchw->nck", z.softmax(dim=1), f)[..., None])
            for f, z in ((f1, z1), (f2, z2))
        ]
        pr = [F.normalize(self.region_predictor(z)[..., 0], dim=1) for z in zr]
        zr = [F.normalize(z[..., 0], dim=1) for z in zr]

        def one(p, z):
            logits = torch.einsum("ncm,nck->nmk", p, z) / 0.1
            return -logits.log_softmax(dim=2).diagonal(dim1=1, dim2=2).mean()

        return (one(pr[0], zr[1]) + one(pr[1], zr[0])) / 2

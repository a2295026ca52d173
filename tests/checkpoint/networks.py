"""Small real networks whose weights and batch-norm statistics are random, shared by the checkpoint tests."""

import copy
import functools

import torch
import torchvision
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone, build_model
from torch import nn


def resnet_cfg(depth=18, *, norm="BN"):
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64 if depth < 50 else 256
    cfg.MODEL.RESNETS.NORM = norm
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.PIXEL_MEAN = [123.675, 116.28, 103.53]
    cfg.MODEL.PIXEL_STD = [58.395, 57.12, 57.375]
    cfg.INPUT.FORMAT = "RGB"
    return cfg


def fpn_cfg(depth=18, **kwargs):
    cfg = resnet_cfg(depth, **kwargs)
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.FPN.OUT_CHANNELS = 8
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64], [128], [256], [512]]
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    return cfg


def randomise(model: nn.Module, seed=0) -> nn.Module:
    """Give every parameter and statistic a random value (positive for variances and scales) and freeze in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            positive = name.endswith(("running_var", "norm.weight")) or ("bn" in name and name.endswith("weight"))
            fan_in = value[0].numel() if value.dim() == 4 else 1
            drawn = torch.rand(value.shape, generator=generator) + 0.5
            if not positive:
                drawn = torch.randn(value.shape, generator=generator) / fan_in**0.5
            value.copy_(drawn)
    return model.eval()


def d2_resnet(depth=18, seed=0):
    return randomise(build_backbone(resnet_cfg(depth)), seed)


def tv_resnet(depth=18, seed=0):
    return randomise(getattr(torchvision.models, f"resnet{depth}")(weights=None), seed)


def fpn_detector(depth=18, seed=0, norm="BN"):
    return randomise(copy.deepcopy(_built_fpn_detector(depth, norm)), seed)


@functools.lru_cache
def _built_fpn_detector(depth, norm):
    return build_model(fpn_cfg(depth, norm=norm))


def prefixed(prefix: str, state: dict) -> dict:
    return {f"{prefix}{name}": value for name, value in state.items()}

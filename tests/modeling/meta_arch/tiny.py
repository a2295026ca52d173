"""A DenseSiam small enough for the CPU, and batches for it."""

import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from densesiam_d2.config import add_densesiam_config
from densesiam_d2.modeling import ClusteringSegmentor

torch.set_num_threads(1)  # small tensors: threads would only get in each other's way

WIDTH = 128  # channels of res5 below


def tiny_cfg(depth=None, **densesiam):
    """Return a pretraining config with narrow heads.

    Args:
        depth: of a full ResNet; None for one of depth 50 with a sixteenth of its channels.
        densesiam: values of MODEL.DENSESIAM's keys; "A__B" stands for A.B.
    """
    cfg = get_cfg()
    add_densesiam_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "DenseSiam"
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    resnet = cfg.MODEL.RESNETS
    if depth is None:
        resnet.STEM_OUT_CHANNELS, resnet.RES2_OUT_CHANNELS, resnet.WIDTH_PER_GROUP = 8, WIDTH // 8, 4
    else:
        resnet.DEPTH = depth
        resnet.RES2_OUT_CHANNELS = 64 if depth < 50 else 256
    resnet.OUT_FEATURES = ["res5"]
    resnet.NORM = "BN"
    cfg.MODEL.SSL.NORM = "BN"
    cfg.MODEL.SSL.ZERO_INIT_RESIDUAL = False
    cfg.MODEL.DENSESIAM.PROJ_DIMS = [16, 16, 8]
    cfg.MODEL.DENSESIAM.PRED_DIM = 8
    cfg.MODEL.DENSESIAM.GRID_SIZE = 3
    cfg.MODEL.DENSESIAM.REGION.PROJ_DIMS = [16, 16, 8]
    cfg.MODEL.DENSESIAM.REGION.PRED_DIM = 8
    cfg.MODEL.SIMSIAM.PROJ_DIMS = [16, 16, 8]
    cfg.MODEL.SIMSIAM.PRED_DIM = 8
    cfg.MODEL.BYOL.HIDDEN_DIM = 16
    cfg.MODEL.BYOL.OUT_DIM = 8
    cfg.MODEL.PIXPRO.HIDDEN_DIM = 16
    cfg.MODEL.PIXPRO.OUT_DIM = 8
    cfg.MODEL.SIMCLR.PROJ_DIMS = [16, 16, 8]
    cfg.MODEL.MOCO.PROJ_DIMS, cfg.MODEL.MOCO.QUEUE_LENGTH = [16, 8], 64
    cfg.MODEL.SLOTCON.SLOTS, cfg.MODEL.SLOTCON.HIDDEN_DIM, cfg.MODEL.SLOTCON.OUT_DIM = 12, 16, 8
    cfg.MODEL.RESIM.DIM = 8
    for key, value in densesiam.items():
        cfg.merge_from_list([f"MODEL.DENSESIAM.{key.replace('__', '.')}", value])
    return cfg


def fpn_cfg():
    """Return a pretraining config that sees a feature pyramid of 32 channels."""
    cfg = tiny_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    cfg.MODEL.FPN.NORM = "BN"
    cfg.MODEL.SSL.IN_FEATURE = "p5"
    return cfg


def tiny_sem_seg_cfg(clusters=4, aux=6, **densesiam):
    """Return the config of unsupervised segmentation: view 2 whole, features sampled, decoder of 8 channels."""
    cfg = tiny_cfg(GRID_POSITION="feature", GRID_SIZE=4, **densesiam)
    cfg.MODEL.META_ARCHITECTURE = "DenseSiamSegmentor"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    head = cfg.MODEL.SEM_SEG_HEAD
    head.NAME = "PseudoLabelSemSegHead"
    head.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    head.NUM_CLASSES = clusters
    head.CONVS_DIM = 8
    head.COMMON_STRIDE = 4
    head.NORM = "BN"
    head.PSEUDO_LABEL.AUX_CLASSES = aux
    return cfg


def method_cfg(method, depth=None, norm="BN"):
    """Return the config of a small model of any class in METHODS."""
    cfg = tiny_sem_seg_cfg() if method.output == "semantic" else tiny_cfg()
    cfg.MODEL.META_ARCHITECTURE = method.__name__
    if method.__name__ == "DetCo":
        cfg.MODEL.RESNETS.OUT_FEATURES, cfg.INPUT.SSL.PATCH_GRID = ["res2", "res3", "res4", "res5"], 3
    if issubclass(method, ClusteringSegmentor):
        cfg.MODEL.SEM_SEG_HEAD.NAME, cfg.MODEL.CLUSTERING.GRID_SIZE = "CentroidSemSegHead", 4
    if method.__name__ == "ReSim":
        cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4", "res5"]
    if method.__name__ == "IIC":
        cfg.MODEL.SEM_SEG_HEAD.NAME, cfg.MODEL.IIC.OVERCLUSTERS, cfg.MODEL.IIC.WINDOW = "IICHead", 6, 2
    if depth is not None:
        full = tiny_cfg(depth).MODEL.RESNETS
        full.OUT_FEATURES = cfg.MODEL.RESNETS.OUT_FEATURES
        cfg.MODEL.RESNETS = full
    cfg.MODEL.RESNETS.NORM = cfg.MODEL.SSL.NORM = cfg.MODEL.SEM_SEG_HEAD.NORM = norm
    return cfg


def tiny_model(cfg, seed=0):
    torch.manual_seed(seed)
    return build_model(cfg).train()


def tiny_batch(num_images=2, size=64, seed=0):
    """Return random views that overlap in different ways, one of them flipped."""
    generator = torch.Generator().manual_seed(seed)
    views = torch.randint(0, 256, (num_images, 2, 3, size, size), generator=generator, dtype=torch.uint8)
    patches = torch.randint(0, 256, (num_images, 2, 9, 3, 32, 32), generator=generator, dtype=torch.uint8)
    boxes = torch.tensor([[[0.0, 0, 64, 64], [16, 8, 80, 72]], [[100, 20, 40, 80], [30, 10, 90, 100]]])
    return {
        "views": views,
        "patches": patches,
        "view_boxes": boxes.repeat(num_images // 2 + 1, 1, 1)[:num_images],
        "file_name": [f"{i}.jpg" for i in range(num_images)],
    }


def totals_of_twenty_steps(model, batch, lr):
    """Train for twenty steps on one batch; the total losses before each."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    totals = []
    for iteration in range(20):
        with EventStorage(iteration):
            total = sum(model(batch).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    return totals


def freeze_statistics(model):
    """Let every BatchNorm use its running statistics: images no longer see each other."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def gradients(model, loss):
    """Return the gradient of a loss by parameter name, zeros where the loss does not reach."""
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    grads = torch.autograd.grad(loss, list(params.values()), allow_unused=True, retain_graph=True)
    return {
        name: torch.zeros_like(p) if grad is None else grad
        for (name, p), grad in zip(params.items(), grads, strict=True)
    }


def assert_close_gradients(actual, expected):
    """Compare dicts of gradients, each relative to the largest entry of its tensor.

    Some are zero but for rounding (a bias before a norm): there, relative to the largest entry of all.
    """
    assert actual.keys() == expected.keys()
    largest = max(grad.abs().max().item() for grad in expected.values())
    for name, grad in expected.items():
        scale = max(grad.abs().max().item(), 3e-3 * largest)
        assert torch.allclose(actual[name], grad, rtol=1e-3, atol=1e-3 * scale), name

"""What the checkpoints of many repositories look like: real networks under the names that each of them uses."""

import re

import torch

from tests.checkpoint.networks import prefixed, tv_resnet

ONLINE = tv_resnet(18, seed=1).state_dict()
OTHER = tv_resnet(18, seed=2).state_dict()
ONLINE_50 = tv_resnet(50, seed=1).state_dict()
OTHER_50 = tv_resnet(50, seed=2).state_dict()
X = torch.zeros(1)


def numbered(state, prefix=""):
    """Rename as nn.Sequential(*list(resnet.children())[:-1]) does: conv1, bn1, relu, maxpool, layer1 to layer4."""
    children = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
    parts = {name: name.partition(".") for name in state}
    return {f"{prefix}{children[p[0]]}.{p[2]}": state[name] for name, p in parts.items() if p[0] in children}


def with_stem(state, prefix, conv, bn):
    """Rename as nn.Sequential(stem, layer1, ..., layer4) does, whose stem calls its parts ``conv`` and ``bn``."""
    renamed = {re.sub(r"^layer(\d)", rf"{prefix}\1", name): value for name, value in state.items() if "fc." not in name}
    stems = ((r"^conv1", f"{prefix}0.{conv}"), (r"^bn1", f"{prefix}0.{bn}"))
    return {re.sub(*stems[1], re.sub(*stems[0], name)): value for name, value in renamed.items()}


def without_fc(state):
    return {name: value for name, value in state.items() if "fc." not in name}


def hugging_face(state):
    """Rename as ResNetModel of transformers does."""
    kinds = {"conv": "convolution", "bn": "normalization", "0": "convolution", "1": "normalization"}
    renamed = {}
    for name, value in without_fc(state).items():
        *where, layer, part = name.split(".")
        new = "embedder.embedder"
        if where:
            stage, block, *shortcut = where
            inside = "shortcut" if shortcut else f"layer.{int(layer[-1]) - 1}"
            new = f"encoder.stages.{int(stage[-1]) - 1}.layers.{block}.{inside}"
        renamed[f"{new}.{kinds[layer if layer.isdigit() else layer[:-1]]}.{part}"] = value
    return renamed


def simclr_v2(state):
    """Rename as the ResNet of Separius/SimCLRv2-Pytorch does: a convolution, then nn.Sequential(norm, ReLU), ..."""
    shortcut, stem = {"0": "projection.shortcut", "1": "projection.bn.0"}, {"conv1": "net.0.0", "bn1": "net.0.1.0"}
    inside = {"conv1": "0", "bn1": "1.0", "conv2": "2", "bn2": "3.0", "conv3": "4", "bn3": "5.0"}
    renamed = {}
    for name, value in without_fc(state).items():
        *where, layer, part = name.split(".")
        new = stem.get(layer)
        if where:
            new = f"net.{where[0][-1]}.blocks.{where[1]}.{shortcut.get(layer) or 'net.' + inside[layer]}"
        renamed[f"{new}.{part}"] = value
    return renamed


def converted(state):
    """Rename as the converters of MoCo, DenseCL, PixPro, ReSim, ... for detectron2 do, into arrays."""
    renamed = {}
    for name, value in state.items():
        new = name if "layer" in name else f"stem.{name}"
        new = re.sub(r"layer(\d)", lambda match: f"res{int(match[1]) + 1}", new)
        new = re.sub(r"bn(\d)", r"conv\1.norm", new).replace("downsample.0", "shortcut")
        renamed[new.replace("downsample.1", "shortcut.norm").replace("stem.fpn", "backbone.fpn")] = value.numpy()
    return renamed


def fpn(seed, width=8):
    """Tensors of ReSim's FPN over a ResNet-18: laterals of C5, C4 and C3, outputs of P4 and P3."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {f"fpn_lateral{i}.weight": (width, 16 * 2**i, 1, 1) for i in (5, 4, 3)}
    shapes |= {f"fpn_output{i}.weight": (width, width, 3, 3) for i in (4, 3)}
    shapes |= {name.replace("weight", "bias"): (width,) for name in shapes}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


# What each repository's checkpoints look like: where the backbone must be found, and the content of the file. The
# backbone to find is always ONLINE.
CHECKPOINTS = {
    "torchvision": ("torchvision names at the top", ONLINE),
    "torchvision, DDP": ("torchvision names below state_dict", {"state_dict": prefixed("module.", ONLINE)}),
    "timm": ("torchvision names below state_dict", {"state_dict": ONLINE, "arch": "resnet18", "version": 2}),
    "SimSiam": (
        "torchvision names below state_dict.encoder",
        {
            "state_dict": {
                **prefixed("module.encoder.", ONLINE),
                "module.encoder.fc.6.bias": X,
                "module.predictor.0.weight": X,
            },
            "epoch": 200,
            "optimizer": {"state": {0: {"momentum_buffer": X}}},
        },
    ),
    "MoCo": (
        "MoCo family (query encoder), torchvision names below state_dict.encoder_q",
        {
            "state_dict": {
                **prefixed("module.encoder_k.", OTHER),
                **prefixed("module.encoder_q.", ONLINE),
                "module.encoder_q.fc.0.weight": X,
                "module.queue": X,
                "module.queue_ptr": X,
            }
        },
    ),
    "MoCo of OpenMMLab": (
        "MoCo of OpenMMLab (query encoder), torchvision names below state_dict.backbone",
        {
            "meta": {"mmselfsup_version": "0.9.1"},
            "state_dict": {
                **prefixed("backbone.", without_fc(ONLINE)),
                **prefixed("encoder_k.module.0.", without_fc(OTHER)),
                "neck.mlp.0.weight": X,
                "encoder_k.module.1.mlp.0.weight": X,
                "queue": X,
            },
        },
    ),
    "ReSim": (
        "MoCo family (query encoder), torchvision names below state_dict.encoder_q",
        {
            "state_dict": {
                **prefixed("module.encoder_q.", {**ONLINE, **fpn(1)}),
                **prefixed("module.encoder_k.", {**OTHER, **fpn(2)}),
                "module.queue": X,
            },
            "arch": "resnet50",
        },
    ),
    "MoCo without DDP": (
        "MoCo family (query encoder), torchvision names below state_dict.encoder_q",
        {"state_dict": {**prefixed("encoder_q.", ONLINE), **prefixed("encoder_k.", OTHER), "queue": X}},
    ),
    "MoCo v3": (
        "MoCo v3 (base encoder), torchvision names below state_dict.base_encoder",
        {
            "state_dict": {
                **prefixed("module.base_encoder.", ONLINE),
                **prefixed("module.momentum_encoder.", OTHER),
                "module.predictor.0.weight": X,
            }
        },
    ),
    "PixPro": (
        "PixPro (online encoder), torchvision names below model.encoder",
        {
            "model": {
                **prefixed("module.encoder.", ONLINE),
                **prefixed("module.encoder_k.", OTHER),
                "module.projector.linear1.weight": X,
                "module.projector_k.linear1.weight": X,
            }
        },
    ),
    "SlotCon": (
        "SlotCon (teacher), torchvision names below model.encoder_k",
        {
            "model": {
                **prefixed("module.encoder_q.", OTHER),
                **prefixed("module.encoder_k.", ONLINE),
                "module.projector_k.linear1.weight": X,
                "module.grouping_k.slot_embed.weight": X,
                "module.center": X,
            }
        },
    ),
    "PiCIE": (
        "torchvision names below state_dict.backbone",
        {
            "state_dict": {**prefixed("module.backbone.", ONLINE), "module.decoder.layer1.weight": X},
            "classifier1_state_dict": {"module.weight": X},
        },
    ),
    "DenseCL, raw": (
        "MoCo family (query encoder), torchvision names below state_dict.backbone",
        {
            "state_dict": {
                **prefixed("backbone.", ONLINE),
                **prefixed("encoder_k.0.", OTHER),
                **prefixed("encoder_q.0.", ONLINE),
                "encoder_q.1.mlp2.0.weight": X,
                "queue2": X,
            }
        },
    ),
    "DenseCL": (
        "MoCo family (query encoder), torchvision names below state_dict.encoder_q.0",
        {"state_dict": {**prefixed("encoder_q.0.", ONLINE), **prefixed("encoder_k.0.", OTHER)}},
    ),
    "DenseCL, DetCo and SlotCon releases": (
        "torchvision names below state_dict",
        {"state_dict": without_fc(ONLINE), "author": "x"},
    ),
    "DenseSiam": (
        "torchvision names below state_dict.backbone",
        {
            "meta": {"epoch": 10},
            "state_dict": {
                **prefixed("backbone.", ONLINE),
                **{f"decoder.layer{i}.{part}": X for i in range(1, 5) for part in ("weight", "bias")},
                "projector.0.weight": X,
                "predictor.0.weight": X,
                "aux_projector.0.weight": X,
                "kernel_projector.0.weight": X,
                "kernel_predictor.0.weight": X,
            },
            "optimizer": {"state": {0: {"exp_avg": X}}},
        },
    ),
    "OpenMMLab SimSiam and SimCLR": (
        "torchvision names below state_dict.backbone",
        {
            "state_dict": {
                **prefixed("backbone.", without_fc(ONLINE)),
                "neck.fc0.weight": X,
                "head.predictor.fc0.weight": X,
            }
        },
    ),
    "OpenMMLab BYOL": (
        "BYOL of OpenMMLab (online network), torchvision names below state_dict.backbone",
        {"state_dict": {**prefixed("backbone.", ONLINE), **prefixed("target_net.module.0.", OTHER)}},
    ),
    "OpenSelfSup BYOL": (
        "BYOL of OpenSelfSup (online network), torchvision names below state_dict.online_net.0",
        {
            "state_dict": {
                **prefixed("online_net.0.", ONLINE),
                **prefixed("target_net.0.", OTHER),
                **prefixed("backbone.", ONLINE),
            }
        },
    ),
    "PyContrast": (
        "PyContrast (trained encoder), torchvision names below model.encoder",
        {
            "model": prefixed("module.encoder.", ONLINE),
            "model_ema": prefixed("module.encoder.", OTHER),
            "contrast": {"memory": X},
        },
    ),
    "PyContrast, one": ("torchvision names below model_ema.encoder", {"model_ema": prefixed("encoder.", ONLINE)}),
    "DINO": (
        "DINO (teacher), torchvision names below teacher.backbone",
        {
            "student": {**prefixed("module.backbone.", OTHER), "module.head.mlp.0.weight": X},
            "teacher": prefixed("backbone.", ONLINE),
            "dino_loss": {"center": X},
            "epoch": 100,
        },
    ),
    "SwAV": (
        "torchvision names below state_dict",
        {"state_dict": {**prefixed("module.", ONLINE), "module.prototypes.weight": X}},
    ),
    "Barlow Twins, VICReg": (
        "torchvision names below model.backbone",
        {"model": {**prefixed("module.backbone.", ONLINE), "module.projector.0.weight": X}},
    ),
    "byol-pytorch": (
        "BYOL (online encoder), torchvision names below online_encoder.net",
        {
            **prefixed("online_encoder.net.", ONLINE),
            **prefixed("target_encoder.net.", OTHER),
            **prefixed("net.", ONLINE),
            "online_predictor.net.0.weight": X,
        },
    ),
    "VISSL": (
        "torchvision names below classy_state_dict.base_model.model.trunk._feature_blocks",
        {
            "classy_state_dict": {
                "base_model": {
                    "model": {
                        "trunk": prefixed("_feature_blocks.", ONLINE),
                        "heads": {"0.clf.weight": X},
                    }
                }
            },
            "type": "consolidated",
        },
    ),
    "OBoW": (
        "OBoW (student), nn.Sequential with a stem names below network.feature_extractor._feature_blocks",
        {
            "network": {
                **with_stem(ONLINE, "module.feature_extractor._feature_blocks.", "Conv", "bn"),
                **with_stem(OTHER, "module.feature_extractor_teacher._feature_blocks.", "Conv", "bn"),
            }
        },
    ),
    "a stem of its own": (
        "nn.Sequential with a stem names below net",
        {"net": with_stem(ONLINE, "", "0", "1")},
    ),
    "lightly": (
        "nn.Sequential names below state_dict.backbone",
        {"state_dict": {**numbered(ONLINE, "backbone."), "projection_head.layers.0.weight": X}},
    ),
    "lightly, two networks": (
        "lightly (online backbone), nn.Sequential names below state_dict.backbone",
        {"state_dict": {**numbered(OTHER, "backbone_momentum."), **numbered(ONLINE, "backbone.")}},
    ),
    "solo-learn": (
        "solo-learn (online backbone), torchvision names below state_dict.backbone",
        {"state_dict": {**prefixed("backbone.", ONLINE), **prefixed("momentum_backbone.", OTHER)}},
    ),
    "solo-learn, older": (
        "solo-learn (online encoder), torchvision names below state_dict.encoder",
        {"state_dict": {**prefixed("encoder.", ONLINE), **prefixed("momentum_encoder.", OTHER)}},
    ),
    "Lightning Bolts BYOL": (
        "BYOL of Lightning Bolts (online network), torchvision names below state_dict.online_network.encoder",
        {
            "state_dict": {
                **prefixed("online_network.encoder.", ONLINE),
                **prefixed("target_network.encoder.", OTHER),
                "online_network.projector.model.0.weight": X,
                "predictor.model.0.weight": X,
            },
            "pytorch-lightning_version": "1.4.0",
        },
    ),
    "Hugging Face": ("Hugging Face names at the top", hugging_face(ONLINE)),
    "Hugging Face, classifier": (
        "Hugging Face names below resnet",
        {**prefixed("resnet.", hugging_face(ONLINE)), "classifier.1.weight": X, "classifier.1.bias": X},
    ),
    "torch.compile": ("torchvision names below model", {"model": prefixed("module._orig_mod.", ONLINE)}),
    "torch.compile of the parts": (
        "torchvision names below state_dict.backbone",
        {
            "state_dict": {
                re.sub(r"^(layer\d)", r"backbone.\1._orig_mod", n) if "layer" in n else f"backbone.{n}": v
                for n, v in ONLINE.items()
            }
        },
    ),
    "another key": ("torchvision names below checkpoints.0.net", {"checkpoints": [{"net": ONLINE}], "best_acc": 0.7}),
}

# The same for networks of bottlenecks; the backbone to find is ONLINE_50.
BOTTLENECKS = {
    "torchvision": ("torchvision names at the top", ONLINE_50),
    "SlotCon": (
        "SlotCon (teacher), torchvision names below model.encoder_k",
        {
            "model": {
                **prefixed("module.encoder_q.", without_fc(OTHER_50)),
                **prefixed("module.encoder_k.", without_fc(ONLINE_50)),
                "module.grouping_k.slot_embed.weight": X,
            }
        },
    ),
    "Hugging Face": ("Hugging Face names below resnet", prefixed("resnet.", hugging_face(ONLINE_50))),
    "SimCLRv2-Pytorch": (
        "SimCLRv2-Pytorch names below resnet",
        {"resnet": {**simclr_v2(ONLINE_50), "fc.weight": X}, "head": {"layers.0.weight": X}},
    ),
}

# Files that the authors' own converters for detectron2 wrote; the backbone to find is ONLINE.
CONVERTED = {
    "MoCo and others, converted": (
        "detectron2 names below model",
        {
            "model": converted({**without_fc(ONLINE), "fc.0.weight": X, "fc.2.weight": X}),
            "__author__": "MOCO",
            "matching_heuristics": True,
        },
    ),
    "torchvision, converted by detectron2": (
        "detectron2 names below model",
        {"model": converted(ONLINE), "__author__": "torchvision", "matching_heuristics": True},
    ),
    "ReSim, backbone": (
        "detectron2 names below model",
        {"model": converted({**ONLINE, **fpn(1)}), "__author__": "MOCO", "matching_heuristics": True},
    ),
}

r"""DenseSiam R50 on ImageNet, 200 epochs, for users of detectron2's LazyConfig.

Command (the script is in detectron2's repository):
    python tools/lazyconfig_train_net.py --config-file configs/lazy/pretrain_R50.py --num-gpus 8
    python -m densesiam_d2.tools.export_backbone --input output/lazy_pretrain/model_final.pth --output backbone.pkl \
        --config-file configs/pretrain.yaml
Your images: ... 'dataloader.train.dataset.names=["folder:/data/mine"]' train.max_iter=20000
Hardware: 8 GPUs, 64 images each. Time: not measured. Expected: not yet run.
Source: configs/pretrain.yaml, with the same model and views, built from this project's classes.
Departures from it: the predictors' learning rate falls like all others. The run has only detectron2's hooks: an
    unreadable image stops it, and a resumed run does not go on with the same images.
"""

from functools import partial

from detectron2.config import LazyCall as L
from detectron2.data import build_detection_train_loader
from detectron2.data.transforms import AugmentationList
from detectron2.layers import get_norm
from detectron2.model_zoo import get_config
from detectron2.modeling.backbone import BasicStem, ResNet
from fvcore.common.param_scheduler import CosineParamScheduler

from densesiam_d2.data import (
    ColorJitter,
    RandomGaussianBlur,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomResizedCrop,
    TwoViewDatasetMapper,
    load_records,
)
from densesiam_d2.layers import ProjectorPredictor
from densesiam_d2.modeling.consistency import RegionSim
from densesiam_d2.modeling.meta_arch import DenseSiam

norm = partial(get_norm, "SyncBN")

model = L(DenseSiam)(
    backbone=L(ResNet)(
        stem=L(BasicStem)(in_channels=3, out_channels=64, norm="SyncBN"),
        stages=L(ResNet.make_default_stages)(depth=50, norm="${..stem.norm}"),
        out_features=["res5"],
    ),
    in_feature="res5",
    pixel_mean=[123.675, 116.28, 103.53],
    pixel_std=[58.395, 57.12, 57.375],
    zero_init_residual=True,
    grid_size=7,
    sample_features=False,
    dense_heads=L(ProjectorPredictor)(in_dim=2048, proj_dims=[512, 512, 256], pred_dim=128, norm=norm),
    region_heads=L(RegionSim)(in_dim=2048, proj_dims=[512, 512, 256], pred_dim=128, norm=norm),
    region_weight=0.1,
)


def _geometric():
    return L(AugmentationList)(
        augs=[L(RandomResizedCrop)(size=224, scale=[0.2, 1.0]), L(RandomHorizontalFlip)(prob=0.5)]
    )


def _photometric():
    return L(AugmentationList)(
        augs=[
            L(ColorJitter)(strengths=[0.4, 0.4, 0.4, 0.1], prob=0.8),
            L(RandomGrayscale)(prob=0.2),
            L(RandomGaussianBlur)(sigma=[0.1, 2.0], prob=0.5),
        ]
    )


dataloader = {
    "train": L(build_detection_train_loader)(
        dataset=L(load_records)(names=["imagenet_train"]),
        mapper=L(TwoViewDatasetMapper)(
            pre_crop=[],
            geometric=[_geometric(), _geometric()],  # of view 1 and of view 2
            photometric=[_photometric(), _photometric()],
            min_overlap=0.01,
        ),
        total_batch_size=512,
        aspect_ratio_grouping=False,
        num_workers=8,
    )
}

optimizer = get_config("common/optim.py").SGD
optimizer.lr = 0.1
optimizer.params.weight_decay_norm = 1e-4
lr_multiplier = L(CosineParamScheduler)(start_value=1.0, end_value=0.0)

train = get_config("common/train.py").train
train.output_dir = "output/lazy_pretrain"
train.max_iter = 500456  # 200 epochs of 1,281,167 images
train.checkpointer.period = 2500

"""A linear head on frozen features, trained by SGD.

Shape shorthand: h,w cells, D channels, K classes.

Source: MkuuWaUjinga/leopart, experiments/linear_probing/linear_finetune.py, configs/pascal/densecl.yml. Differences:

- Batches of small sets are smaller: an epoch has at least 20 steps if there are as many images. The released batches of
  60 would leave 10 images with 25 steps in all.
- The head is applied to the cells, and its scores are enlarged to 100 x 100. The result is the same as that of the
  released order (enlarge the features, then apply the head), because both are linear and the weights of a bilinear
  interpolation sum to 1. It takes D / K times less memory.
- The whole test set is scored (the released training script scores 8 batches).
- The features are those asked for. The published results have res5 alone, with its stride removed (2,048 channels of a
  ResNet-50 at stride 16): ``--features res5 --size 448 MODEL.RESNETS.RES5_DILATION 2`` comes close, but detectron2 then
  dilates the first of the stage's 3 x 3 convolutions too (there: the second and third only).
- Labels are resized once, from their own size to 100 x 100 (there: to 448, then to 100); the head starts at zeros; an
  epoch's last, smaller batch is used too.

Features are not standardised, as released: those of very small scale, such as a random network's in evaluation mode,
are hardly learned from.
"""

import time
from collections.abc import Sequence

import numpy as np
import torch
from detectron2.data import transforms as T
from torch import nn
from torch.nn import functional as F

from densesiam_d2.data.augmentation import RandomHorizontalFlip, RandomResizedCrop
from densesiam_d2.evaluation.confusion import confusion_matrix, scores
from densesiam_d2.evaluation.sem_seg import predicted_labels
from densesiam_d2.labels import IGNORE
from densesiam_d2.probe.features import FrozenFeatures
from densesiam_d2.probe.passes import Images, augmented, bar, named_scores, resize_labels, squared

__all__ = ["EPOCHS", "SIDE", "batches", "crops", "probe_linear"]

EPOCHS, DECAY_AT = 25, 0.8  # of the epochs: 20 of 25
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.1, 0.9, 1e-4
BATCH, STEPS_PER_EPOCH = 60, 20
SIDE = 100  # of the maps on which the head is trained and scored


def probe_linear(
    features: FrozenFeatures,
    train: Images,
    test: Images,
    classes: Sequence[str],
    *,
    epochs: int = EPOCHS,
    seed: int,
) -> dict:
    """Train a linear head on random crops, and score it on whole test images, resized to squares.

    Memory does not grow with the number of images: features are computed again in every epoch, one image at a time.

    Args:
        features: the network.
        train, test: at least one image each.
        classes: names of the K classes.
        epochs: passes over the training images.
        seed: of the order of the images and of the crops.

    Returns:
        Scores in percent at 100 x 100 pixels ("mIoU", "pACC", "IoU" of each class), "steps" and "seconds".

    Raises:
        ValueError: the head diverged, or an image or its labels cannot be read.
    """
    start = time.perf_counter()
    head, steps = _fit(features, train, len(classes), epochs, seed)
    matrix = np.zeros((len(classes), len(classes)), np.int64)
    for index in bar(range(len(test)), "scoring the linear head"):
        image, truth = test[index]
        with torch.no_grad():
            pixels = _scores(head, features(squared(image, features.side)))
        truth = resize_labels(truth, SIDE)
        matrix += confusion_matrix(truth, predicted_labels(pixels[0]), len(classes), len(classes), IGNORE)
    seconds = round(time.perf_counter() - start, 1)
    return {**named_scores(scores(matrix), classes), "steps": steps, "seconds": seconds}


def batches(count: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Return the indices of the images of each step of an epoch: at most 60, fewer for sets of less than 1,200."""
    order = np.random.default_rng([seed, epoch]).permutation(count)
    return np.array_split(order, max(-(-count // BATCH), min(STEPS_PER_EPOCH, count)))


def crops(side: int) -> list[T.Augmentation]:
    """Return the augmentations of training: a crop of 0.8 to 1 of the area, resized to a square, and a flip."""
    return [RandomResizedCrop(side, (0.8, 1.0)), RandomHorizontalFlip(prob=0.5)]


def _fit(features: FrozenFeatures, train: Images, num_classes: int, epochs: int, seed: int) -> tuple[nn.Module, int]:
    """Return the trained head, a 1 x 1 convolution from D to K channels, and the number of steps."""
    head = nn.Conv2d(features.channels, num_classes, 1).to(features.device)
    for parameter in head.parameters():
        nn.init.zeros_(parameter)  # the loss is convex
    optimizer = torch.optim.SGD(head.parameters(), LEARNING_RATE, MOMENTUM, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [round(DECAY_AT * epochs)], gamma=0.1)
    augmentations, steps = crops(features.side), 0
    for epoch in bar(range(epochs), "training the linear head"):
        for batch in batches(len(train), seed, epoch):
            optimizer.zero_grad()
            pixels = 0
            for index in batch.tolist():  # the gradient of the batch is the sum over its images
                image, labels = augmented(*train[index], augmentations, [seed, epoch, index])
                labels = torch.from_numpy(resize_labels(labels, SIDE)).long().to(features.device)
                F.cross_entropy(
                    _scores(head, features(image)), labels[None], ignore_index=IGNORE, reduction="sum"
                ).backward()
                pixels += int((labels != IGNORE).sum())
            for parameter in head.parameters():
                parameter.grad /= max(pixels, 1)
            optimizer.step()
            steps += 1
        schedule.step()
    if not all(parameter.isfinite().all() for parameter in head.parameters()):
        raise ValueError("the linear head diverged: its features are too large for a learning rate of 0.1")
    return head, steps


def _scores(head: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return (1, K, 100, 100) scores of features (D, h, w)."""
    return F.interpolate(head(x[None]), size=(SIDE, SIDE), mode="bilinear", align_corners=False)

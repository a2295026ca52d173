"""The loader of pretraining: images of any dataset, without their annotations, as batches of two views."""

import logging
import os
from collections.abc import Callable, Sequence

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, build_detection_train_loader
from detectron2.data.samplers import TrainingSampler
from torch.utils.data import DataLoader, Dataset, Sampler

from .image_folders import register_path_datasets
from .two_view_mapper import TwoViewDatasetMapper, collate_views

__all__ = ["ImageFiles", "build_two_view_train_loader"]


class ImageFiles(Dataset):
    """A long list of file names in two arrays: 65 bytes an image, shared by all workers, where dicts would take 350."""

    def __init__(self, names: Sequence[str]):
        """Pack the names."""
        encoded = [os.fsencode(name) for name in names]
        self._bytes = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self._ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> dict:
        start = self._ends[index - 1] if index else 0
        return {"file_name": os.fsdecode(self._bytes[start : self._ends[index]].tobytes())}


def build_two_view_train_loader(
    cfg: CfgNode, mapper: Callable[[dict], dict] | None = None, *, sampler: Sampler | None = None
) -> DataLoader:
    """Build an endless loader of batches of two views.

    All images of DATASETS.TRAIN count, with or without annotations; these are dropped. Workers stack the batches.

    Args:
        cfg: a config; DATASETS.TRAIN, DATALOADER.NUM_WORKERS, SOLVER.IMS_PER_BATCH and INPUT are read. Names may be
            those of registered datasets, ``folder:/path`` and ``list:/path.txt``.
        mapper: instead of :class:`TwoViewDatasetMapper`.
        sampler: instead of detectron2's ``TrainingSampler``, an endless random order.

    Returns:
        A loader of dicts as :func:`collate_views` makes them, SOLVER.IMS_PER_BATCH / number of processes images each.

    Raises:
        ValueError: there is no dataset or no image, or a sampler is configured that needs annotations.
        FileNotFoundError: a path dataset does not exist.
    """
    names = cfg.DATASETS.TRAIN
    if not names:
        raise ValueError("DATASETS.TRAIN is empty: name a dataset, folder:/path or list:/path.txt")
    if sampler is None and cfg.DATALOADER.SAMPLER_TRAIN != "TrainingSampler":
        raise ValueError(
            f"DATALOADER.SAMPLER_TRAIN {cfg.DATALOADER.SAMPLER_TRAIN!r} needs annotations; pretraining has "
            "'TrainingSampler' only"
        )
    register_path_datasets(names)
    dataset = ImageFiles([record["file_name"] for name in names for record in DatasetCatalog.get(name)])
    if not len(dataset):
        raise ValueError(f"DATASETS.TRAIN {tuple(names)} has no images")

    logger = logging.getLogger(__name__)
    epochs = cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH / len(dataset)
    logger.info("Pretraining on %d images of %s, %.1f epochs", len(dataset), ", ".join(names), epochs)
    if len(dataset) < cfg.SOLVER.IMS_PER_BATCH:
        logger.warning("%d images are fewer than SOLVER.IMS_PER_BATCH %d", len(dataset), cfg.SOLVER.IMS_PER_BATCH)
    return build_detection_train_loader(
        dataset,
        mapper=TwoViewDatasetMapper(cfg) if mapper is None else mapper,
        sampler=TrainingSampler(len(dataset)) if sampler is None else sampler,
        total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
        aspect_ratio_grouping=False,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=collate_views,
        pin_memory=cfg.MODEL.DEVICE.startswith("cuda"),
    )

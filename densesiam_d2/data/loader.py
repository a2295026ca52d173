"""Loaders of training: batches that depend on the seed and their number only, and that survive unreadable images."""

import faulthandler
import functools
import hashlib
import logging
import multiprocessing
import os
import signal
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetFromList, MetadataCatalog, build_detection_train_loader
from detectron2.data.samplers import TrainingSampler
from detectron2.utils import comm
from torch.utils.data import ConcatDataset, DataLoader, Dataset

from densesiam_d2.processes import end_with_parent

from .datasets import check_records
from .image_index import ImageFiles
from .image_io import UnreadableImageError
from .image_listing import index_if_large, open_index
from .order import EndlessBatches, mixed_seeds, seeded
from .path_datasets import FOLDER_PREFIX, register_path_datasets
from .quarantine import Quarantine
from .two_view_mapper import TwoViewDatasetMapper, collate_views
from .white_level import warn_of_dark_images

__all__ = ["TrainLoader", "build_labelled_train_loader", "build_two_view_train_loader"]

MAX_SUBSTITUTES = 20  # for one image; so many unreadable ones in a row are a broken disk

logger = logging.getLogger(__name__)


class SeededSamples(Dataset):
    """What a mapper makes of the records, each under its own seed.

    An item is asked for by (record, seed) and is the mapper's result with a list of (file, reason) of what was
    unreadable on the way to it.
    """

    def __init__(self, records: Sequence[dict], mapper: Callable[[dict], Any], *, substitute: bool):
        """Store the parts.

        Args:
            records: detectron2's dataset dicts.
            mapper: of one record.
            substitute: take another image, drawn by the seed, for one that cannot be read; False raises, with the
                file's name.
        """
        self.records = records
        self._mapper = mapper
        self._substitute = substitute

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Any, list[tuple[str, str]]]:
        index, seed = key
        unreadable = []
        while True:
            record = self.records[index]
            try:
                with seeded(seed):
                    return self._mapper(record), unreadable
            except (UnreadableImageError, FileNotFoundError) as error:
                if not self._substitute:
                    raise
                unreadable.append((record["file_name"], str(error)))
                if len(unreadable) == MAX_SUBSTITUTES:
                    raise UnreadableImageError(
                        f"{MAX_SUBSTITUTES} images in a row cannot be read, the last {record['file_name']}: {error}"
                    ) from error
            except Exception as error:
                if record["file_name"] in str(error):
                    raise
                raise RuntimeError(f"{record['file_name']}: {type(error).__name__}: {error}") from error
            index = int(mixed_seeds(seed, len(unreadable))[0] % np.uint64(len(self.records)))


class TrainLoader:
    """An endless loader whose batch ``i`` depends on the seed and ``i`` only.

    Attributes:
        batches: the :class:`EndlessBatches`; set its ``start`` and ``seed`` to go on where a run stopped.
        dataset: the :class:`SeededSamples`.
    """

    def __init__(
        self,
        dataset: SeededSamples,
        batches: EndlessBatches,
        *,
        num_workers: int = 0,
        collate_fn: Callable[[list], Any] = list,
        pin_memory: bool = False,
        quarantine: Quarantine | None = None,
    ):
        """Store the parts; workers are started by iterating.

        Args:
            dataset: where samples come from.
            batches: which samples make a batch.
            num_workers: loader processes; 0 loads in this one.
            collate_fn: of the samples of a batch, in the worker.
            pin_memory: for CUDA.
            quarantine: told about unreadable files.
        """
        self.dataset, self.batches = dataset, batches
        self._quarantine = quarantine
        self._options = {"num_workers": num_workers, "pin_memory": pin_memory}
        self._collate = functools.partial(_collate, collate_fn)

    def __iter__(self) -> Iterator[Any]:
        batches = self._load()
        Finalize(None, _end_workers, args=(weakref.ref(batches),), exitpriority=10)  # before they are waited for
        return batches

    def _load(self) -> Iterator[Any]:
        loader = DataLoader(
            self.dataset,
            batch_sampler=self.batches,
            collate_fn=self._collate,
            worker_init_fn=_prepare_worker,
            generator=torch.Generator(),  # or starting the workers would draw from the model's
            **self._options,
        )
        for batch, num_samples, unreadable in loader:
            if self._quarantine:
                self._quarantine.add(num_samples, unreadable)
            yield batch


def _collate(collate_fn: Callable[[list], Any], items: list[tuple]) -> tuple[Any, int, list]:
    unreadable = [entry for _, entries in items for entry in entries]
    return collate_fn([sample for sample, _ in items]), len(items), unreadable


def _end_workers(batches: Callable[[], Generator | None]) -> None:
    """When the process exits, close its loader and kill what is left, for workers ignore SIGTERM."""
    if batches() is not None:
        batches().close()
        for child in multiprocessing.active_children():
            if child.daemon:
                child.kill()


def _prepare_worker(worker_id: int) -> None:
    """Let a worker end with its parent, whatever happens, and not before."""
    cv2.setNumThreads(0)  # workers are processes already; more threads would only get in each other's way
    faulthandler.enable(2)  # SIGABRT, from the watchdog, shows where a worker hangs
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # sent to a whole job, they ask the main process to save and leave
    end_with_parent()


def _run_seed(cfg: CfgNode) -> int:
    return cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()


def build_two_view_train_loader(cfg: CfgNode, mapper: Callable[[dict], dict] | None = None) -> TrainLoader:
    """Build an endless loader of batches of two views.

    All images of DATASETS.TRAIN count, with or without annotations; these are dropped. Workers stack the batches. For
    an image that cannot be read another one is taken, and ``OUTPUT_DIR/quarantine.jsonl`` says so.

    Args:
        cfg: a config; DATASETS.TRAIN, DATALOADER, SOLVER.IMS_PER_BATCH, SEED, RUN and INPUT are read. Names may be
            those of registered datasets, ``folder:/path``, ``list:/path.txt`` and ``index:/path.index``. A folder of
            more than DATALOADER.INDEX_ABOVE images is listed once, into an index in OUTPUT_DIR.
        mapper: instead of :class:`TwoViewDatasetMapper`.

    Returns:
        A loader of dicts as :func:`collate_views` makes them, SOLVER.IMS_PER_BATCH / number of processes images each.

    Raises:
        ValueError: there is no dataset or no image, or a sampler is configured that needs annotations.
        FileNotFoundError: a path dataset does not exist.
    """
    names = cfg.DATASETS.TRAIN
    if not names:
        raise ValueError("DATASETS.TRAIN is empty: name a dataset, folder:/path or list:/path.txt")
    if cfg.DATALOADER.SAMPLER_TRAIN != "TrainingSampler":
        raise ValueError(
            f"DATALOADER.SAMPLER_TRAIN {cfg.DATALOADER.SAMPLER_TRAIN!r} needs annotations; pretraining has "
            "'TrainingSampler' only"
        )
    register_path_datasets(names)
    parts = [_load_files(name, cfg) for name in names]
    files = parts[0] if len(parts) == 1 else ConcatDataset(parts)
    if not len(files):
        raise ValueError(f"DATASETS.TRAIN {tuple(names)} has no images")
    total = cfg.SOLVER.IMS_PER_BATCH
    epochs = cfg.SOLVER.MAX_ITER * total / len(files)
    logger.info("Pretraining on %d images of %s, %.1f epochs", len(files), ", ".join(names), epochs)
    if len(files) < total:
        logger.warning("%d images are fewer than SOLVER.IMS_PER_BATCH %d", len(files), total)
    warn_of_dark_images(files, cfg.INPUT.WHITE_LEVEL, cfg.DATASETS.ACCEPT)
    mapper = TwoViewDatasetMapper(cfg) if mapper is None else mapper
    return TrainLoader(
        SeededSamples(files, mapper, substitute=True),
        EndlessBatches(
            len(files),
            total,
            _run_seed(cfg),
            freeze=cfg.INPUT.SSL.FREEZE_VIEWS,
            rank=comm.get_rank(),
            world_size=comm.get_world_size(),
        ),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=collate_views,
        pin_memory=cfg.MODEL.DEVICE.startswith("cuda"),
        quarantine=Quarantine(Path(cfg.OUTPUT_DIR) / "quarantine.jsonl", max_share=cfg.RUN.MAX_UNREADABLE),
    )


def _load_files(name: str, cfg: CfgNode) -> ImageFiles:
    root = MetadataCatalog.get(name).get("image_root")
    if name.startswith(FOLDER_PREFIX) and root:
        index = Path(cfg.OUTPUT_DIR) / f"images-{hashlib.sha256(os.fsencode(root)).hexdigest()[:8]}.index"
        if index_if_large(Path(root), index, cfg.DATALOADER.INDEX_ABOVE):
            return open_index(index)
    records = DatasetCatalog.get(name)
    if isinstance(records, ImageFiles):
        return records
    check_records([name], records)
    return ImageFiles([record["file_name"] for record in records])


def build_labelled_train_loader(cfg: CfgNode, mapper: Callable[[dict], dict] | None = None):
    """Build detectron2's training loader, with batches that depend on the seed and their number only.

    An image that cannot be read is an error that names it: a labelled set is no place for silent gaps.

    Args:
        cfg: a config; DATASETS, DATALOADER, SOLVER.IMS_PER_BATCH, SEED and INPUT are read.
        mapper: instead of detectron2's ``DatasetMapper``.

    Returns:
        A :class:`TrainLoader` of lists of dicts; for samplers other than "TrainingSampler" detectron2's own loader,
        which starts anew after a resume.

    Raises:
        ValueError: a category does not exist, a file name leads out of its dataset, or no annotation can be used.
    """
    names = cfg.DATASETS.TRAIN
    try:
        parts = build_detection_train_loader.from_config(cfg, mapper=mapper)
    except AssertionError as error:
        if "No valid data" not in str(error):
            raise
        raise ValueError(f"DATASETS.TRAIN {tuple(names)}: no image has an annotation that counts (no crowd)") from error
    records = parts["dataset"]
    boxes = cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN"
    check_records(names, records, cfg.MODEL.ROI_HEADS.NUM_CLASSES if boxes else None)
    if boxes and cfg.MODEL.MASK_ON and not any(a.get("segmentation") for r in records for a in r["annotations"]):
        raise ValueError(f"DATASETS.TRAIN {tuple(names)}: no annotation has a mask; set MODEL.MASK_ON False")
    if not boxes:  # whose mapper refuses 16-bit images
        warn_of_dark_images(records, cfg.INPUT.WHITE_LEVEL, cfg.DATASETS.ACCEPT)
    if type(parts["sampler"]) is not TrainingSampler:
        logger.warning(
            "DATALOADER.SAMPLER_TRAIN %s: --resume starts the order of images anew", cfg.DATALOADER.SAMPLER_TRAIN
        )
        return build_detection_train_loader(cfg, mapper=mapper)
    groups = None
    if parts["aspect_ratio_grouping"]:
        if all("width" in record and "height" in record for record in records):
            groups = [record["width"] > record["height"] for record in records]
        else:
            logger.info("DATALOADER.ASPECT_RATIO_GROUPING is left out: the records have no sizes")
    sharing = {"rank": comm.get_rank(), "world_size": comm.get_world_size()}
    batches = EndlessBatches(len(records), parts["total_batch_size"], _run_seed(cfg), groups=groups, **sharing)
    return TrainLoader(
        SeededSamples(DatasetFromList(records, copy=False), parts["mapper"], substitute=False),
        batches,
        num_workers=parts["num_workers"],
    )

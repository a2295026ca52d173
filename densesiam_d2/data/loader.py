"""Training loaders: batch ``i`` depends on the seed and ``i`` only; unreadable images are replaced in pretraining."""

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
from detectron2.data.common import AspectRatioGroupedDataset
from detectron2.data.samplers import TrainingSampler
from detectron2.utils import comm
from torch.utils.data import ConcatDataset, DataLoader, Dataset

from densesiam_d2.image_io import UnreadableImageError
from densesiam_d2.processes import STOP_SIGNALS, end_with_parent

from .datasets import check_records
from .image_index import ImageFiles
from .image_listing import index_if_large, open_index
from .order import EndlessBatches, SampleKey, mixed_seeds, seeded
from .path_datasets import FOLDER_PREFIX, register_path_datasets
from .quarantine import Quarantine
from .two_view_mapper import TwoViewDatasetMapper, collate_views
from .white_level import warn_of_dark_images

__all__ = ["TrainLoader", "build_labelled_train_loader", "build_two_view_train_loader", "protect_workers"]

MAX_SUBSTITUTES = 20  # for one image; so many unreadable images in a row mean that the disk is broken

logger = logging.getLogger(__name__)


class SeededSamples(Dataset):
    """A dataset whose item is the mapper's result, a dict, for one record, drawn under a given seed.

    The key of an item is a :class:`SampleKey`. The item is a pair: the mapper's result, and a list of (file, reason) of
    the unreadable files for which it is the substitute. The key's position is added to the result as "position"; a
    substitute has the position of the file that it replaces.
    """

    def __init__(self, records: Sequence[dict], mapper: Callable[[dict], dict], *, substitute: bool):
        """Store the parts.

        Args:
            records: detectron2's dataset dicts.
            mapper: function of one record.
            substitute: replace an unreadable image by another one, drawn by the seed; False raises an error that names
                the file.
        """
        self.records = records
        self._mapper = mapper
        self._substitute = substitute

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: SampleKey) -> tuple[dict, list[tuple[str, str]]]:
        index, seed, position = key
        unreadable = []
        while True:
            record = self.records[index]
            try:
                with seeded(seed):
                    sample = self._mapper(record)
                return {**sample, "position": position}, unreadable
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
        batches: the :class:`EndlessBatches`; set its ``start`` and ``seed`` to continue a stopped run.
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
        """Store the parts; iterating starts the workers.

        Args:
            dataset: the samples.
            batches: the keys of the samples of each batch.
            num_workers: number of loader processes; 0 loads in this process.
            collate_fn: function of the samples of a batch, which runs in the worker.
            pin_memory: copy batches to pinned memory, for faster transfers to CUDA devices.
            quarantine: records the unreadable files.
        """
        self.dataset, self.batches = dataset, batches
        self._quarantine = quarantine
        self._options = {"num_workers": num_workers, "pin_memory": pin_memory}
        self._collate = functools.partial(_collate, collate_fn)

    def __iter__(self) -> Iterator[Any]:
        batches = self._load()
        # At exit this runs before multiprocessing closes its queues (priority 10), which tell the workers to end.
        Finalize(None, _end_workers, args=(weakref.ref(batches),), exitpriority=20)
        return batches

    def _load(self) -> Iterator[Any]:
        loader = DataLoader(
            self.dataset,
            batch_sampler=self.batches,
            collate_fn=self._collate,
            worker_init_fn=prepare_worker,
            generator=torch.Generator(),  # without it, starting the workers would draw from torch's global generator
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
    """At the exit of the process, close its loader and kill the remaining workers, because they ignore SIGTERM."""
    if batches() is not None:
        batches().close()
        _kill_workers()


def protect_workers(loader: DataLoader) -> DataLoader:
    """Let the workers of detectron2's loader ignore the signals that ask a job to stop, as those of TrainLoader do."""
    loader.worker_init_fn = functools.partial(prepare_worker, first=loader.worker_init_fn)
    _kill_workers_at_exit()
    return loader


@functools.cache
def _kill_workers_at_exit() -> None:
    """Make sure, once, that multiprocessing does not wait at the exit for workers that ignore SIGTERM."""
    Finalize(None, _kill_workers, exitpriority=20)


def _kill_workers() -> None:
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def prepare_worker(worker_id: int, first: Callable[[int], None] | None = None) -> None:
    """Prepare a new worker: it ends when its parent ends, and ignores the signals that ask a job to stop."""
    cv2.setNumThreads(0)  # loader workers run in parallel already; threads inside each would slow all of them down
    faulthandler.enable(2)  # on SIGABRT, which the watchdog sends, the worker prints where it hangs
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # sent to all processes of a job; only the main process must react
    end_with_parent()
    if first is not None:
        first(worker_id)


def _run_seed(cfg: CfgNode) -> int:
    return cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()


def build_two_view_train_loader(cfg: CfgNode) -> TrainLoader:
    """Build an endless loader of batches of two views.

    All images of DATASETS.TRAIN are used, with or without annotations; annotations are dropped. An unreadable image is
    replaced by another one and recorded in ``OUTPUT_DIR/quarantine.jsonl``.

    Args:
        cfg: a config that :func:`~densesiam_d2.config_checks.check_config` accepts; DATASETS.TRAIN, DATALOADER,
            SOLVER.IMS_PER_BATCH, SEED, RUN and INPUT are read. DATASETS.TRAIN has names of registered datasets,
            ``folder:/path``, ``list:/path.txt`` or ``index:/path.index``. A folder with more than
            DATALOADER.INDEX_ABOVE images is indexed once, in OUTPUT_DIR.

    Returns:
        A loader of dicts made by :func:`collate_views` from N = SOLVER.IMS_PER_BATCH / number of processes images each.
        They also hold "position": (N,) int64, the place of each sample in the endless sequence of epochs. Position
        ``p`` belongs to epoch ``p // number of images``. With the same seed, a position always has the same image and
        the same views.

    Raises:
        ValueError: DATASETS.TRAIN has no images.
        FileNotFoundError: a folder, list or index does not exist.
    """
    names = cfg.DATASETS.TRAIN
    register_path_datasets(names)
    parts = [_load_files(name, cfg) for name in names]
    if not any(map(len, parts)):
        raise ValueError(f"DATASETS.TRAIN {tuple(names)} has no images")
    files = parts[0] if len(parts) == 1 else ConcatDataset(parts)
    total = cfg.SOLVER.IMS_PER_BATCH
    epochs = cfg.SOLVER.EPOCHS or cfg.SOLVER.MAX_ITER * total / len(files)
    logger.info("Pretraining on %d images of %s, %.1f epochs", len(files), ", ".join(names), epochs)
    if len(files) < total:
        logger.warning("%d images are fewer than SOLVER.IMS_PER_BATCH %d", len(files), total)
    warn_of_dark_images(files, cfg.INPUT.WHITE_LEVEL, cfg.DATASETS.ACCEPT)
    return TrainLoader(
        SeededSamples(files, TwoViewDatasetMapper(cfg), substitute=True),
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


def build_labelled_train_loader(cfg: CfgNode, mapper: Callable[[dict], dict] | None = None, *, instances: bool = True):
    """Build detectron2's training loader, but batch ``i`` depends on the seed and ``i`` only.

    An unreadable image stops the run with an error that names it, because labelled images should not be lost unnoticed.

    Args:
        cfg: a config; DATASETS, DATALOADER, SOLVER.IMS_PER_BATCH, SEED and INPUT are read.
        mapper: instead of detectron2's ``DatasetMapper``.
        instances: whether the model learns boxes (and masks, with MODEL.MASK_ON), or label maps.

    Returns:
        A :class:`TrainLoader` of lists of dicts. With another sampler than "TrainingSampler", detectron2's own loader,
        whose order of images starts again after a resume.

    Raises:
        ValueError: a category does not exist, a file name points outside its dataset, or no annotation can be used.
    """
    names = cfg.DATASETS.TRAIN
    try:
        parts = build_detection_train_loader.from_config(cfg, mapper=mapper)
    except AssertionError as error:
        if "No valid data" not in str(error):
            raise
        raise ValueError(f"DATASETS.TRAIN {tuple(names)}: no image has an annotation that counts (no crowd)") from error
    records = parts["dataset"]
    check_records(names, records, cfg.MODEL.ROI_HEADS.NUM_CLASSES if instances else None)
    if instances and cfg.MODEL.MASK_ON and not any(a.get("segmentation") for r in records for a in r["annotations"]):
        raise ValueError(f"DATASETS.TRAIN {tuple(names)}: no annotation has a mask; set MODEL.MASK_ON False")
    warn_of_dark_images(records, cfg.INPUT.WHITE_LEVEL, cfg.DATASETS.ACCEPT)
    if type(parts["sampler"]) is not TrainingSampler:
        logger.warning(
            "DATALOADER.SAMPLER_TRAIN %s: the order of images starts again after --resume", cfg.DATALOADER.SAMPLER_TRAIN
        )
        loader = build_detection_train_loader(cfg, mapper=mapper)
        protect_workers(loader.dataset if isinstance(loader, AspectRatioGroupedDataset) else loader)
        return loader
    groups = None
    if parts["aspect_ratio_grouping"]:
        if all("width" in record and "height" in record for record in records):
            groups = [record["width"] > record["height"] for record in records]
        else:
            logger.info("DATALOADER.ASPECT_RATIO_GROUPING has no effect: the records have no image sizes")
    sharing = {"rank": comm.get_rank(), "world_size": comm.get_world_size()}
    batches = EndlessBatches(len(records), parts["total_batch_size"], _run_seed(cfg), groups=groups, **sharing)
    return TrainLoader(
        SeededSamples(DatasetFromList(records, copy=False), parts["mapper"], substitute=False),
        batches,
        num_workers=parts["num_workers"],
    )

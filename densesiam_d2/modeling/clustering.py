"""The hook of methods that cluster all images at the start of each epoch, and store a label for each point.

An epoch is a fixed number of iterations, ``round(images / batch)``. Its batches are replayed twice before it: once to
cluster their features, once to label them. A loader's position always has the same image and the same views, so the
labels are those of the views that the epoch trains on.
"""

import hashlib
import logging
import math
import re
import time
from collections.abc import Callable, Iterator
from copy import copy
from datetime import timedelta
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from detectron2.engine.train_loop import HookBase
from detectron2.utils import comm
from torch import nn

from densesiam_d2.atomic import atomic_write
from densesiam_d2.layers import MiniBatchKMeans, gather, world_size
from densesiam_d2.modeling.label_file import LabelFile

__all__ = ["ClusteringHook", "random_points", "replay"]

LOG_SECONDS = 30
MAX_POINTS = 1_000_000  # 3.8 GB for 960 channels

logger = logging.getLogger(__name__)


class ClusteringHook(HookBase):
    """Cluster and label before each epoch, with files in a folder; a killed run goes on inside either pass.

    ``clusters.pth`` holds the centroids and the model's buffers after some batches of the clustering pass; the labels
    are in :class:`LabelFile`. Both name the state of the model at the start of the epoch by its hash, and are made anew
    if it is another.

    The model has ``sem_seg_head.clusterings``, ``cluster_features(batch)`` -> one (N, C, h, w) per clustered view,
    ``start_epoch(generator, optimizer)``, and ``labels``, which this hook sets to a function of positions.
    """

    save_seconds = 60.0  # between saves inside a pass

    def __init__(self, model: nn.Module, folder: Path, *, total_batch: int, first: int, iterations: int, train: bool):
        """Store the settings.

        Args:
            model: the method, without DDP.
            folder: for the files, in OUTPUT_DIR.
            total_batch: images per batch of all processes.
            first: batches whose features plain k-means clusters together; each later one is a mini-batch.
            iterations: of plain k-means.
            train: extract the features to be clustered in training mode.
        """
        self._model, self._folder, self._total_batch = model, folder, total_batch
        self._first, self._iterations, self._train = first, iterations, train
        self._epoch, self._fingerprint = -1, ""

    def state_dict(self) -> dict:
        return {"fingerprint": self._fingerprint}

    def load_state_dict(self, state: dict) -> None:
        self._fingerprint = state["fingerprint"]

    def before_step(self) -> None:
        """Prepare the epoch that starts now, or find its labels after a resume."""
        loader = self.trainer.data_loader
        self._length = max(1, round(len(loader.dataset) / self._total_batch))
        epoch, inside = divmod(self.trainer.iter, self._length)
        if epoch == self._epoch:
            return
        self._epoch, self._seed = epoch, loader.batches.seed
        self._num = min(self._length, self.trainer.max_iter - epoch * self._length)  # batches that will be trained on
        if not inside:
            self._prepare()
        elif not all(comm.all_gather(self._label_file().num_batches(self._num) >= self._num)):
            logger.warning(
                "%s has no labels of epoch %d for this checkpoint: clustering again with the present weights, so the "
                "result will not be that of an undisturbed run",
                self._folder,
                epoch,
            )
            self._prepare()
        self._model.labels = self._labels_by_position()

    def _label_file(self) -> LabelFile:
        return LabelFile(self._folder, self._epoch, self._fingerprint, save_seconds=self.save_seconds)

    def _prepare(self) -> None:
        self._fingerprint = comm.all_gather(_fingerprint(self._model, self._epoch))[0]
        with torch.no_grad():
            self._cluster()
            self._label()
        self._set_frequencies()
        generator = torch.Generator().manual_seed(self._seed_of("epoch"))
        self._model.start_epoch(generator, self.trainer.optimizer)
        # Keep the labels of epochs from which the last two checkpoints can go on.
        names = (re.fullmatch(r"model_(\d{7,})", path.stem) for path in self._folder.parent.glob("model_*.pth"))
        saved = sorted(int(name[1]) + 1 for name in names if name)[-2:]
        LabelFile.remove_before(self._folder, min([self._epoch, *(number // self._length for number in saved)]))

    def _seed_of(self, *what) -> int:
        """Return a seed in [0, 2**31) for one purpose in this epoch."""
        return int(hashlib.sha256(repr((self._seed, self._epoch, *what)).encode()).hexdigest()[:8], 16) >> 1

    def _cluster(self) -> None:
        """Set the centroids. In training mode this also moves the statistics of batch norm."""
        model, path = self._model, self._folder / "clusters.pth"
        clusterings = model.sem_seg_head.clusterings
        views = range(len(clusterings[0].weight))
        found = {
            (view, i): MiniBatchKMeans(
                clustering.weight.shape[1],
                iterations=self._iterations,
                seed=self._seed_of(view, i),
                device=model.device,
            )
            for view in views
            for i, clustering in enumerate(clusterings)
        }
        num, done = min(self._length, self.trainer.max_iter), 0  # a short trial clusters the batches that it uses
        first, kept, saved = min(self._first, num), [[] for _ in views], time.monotonic()
        state = comm.all_gather(_load(path, self._fingerprint))[0]
        if state:
            done = state["batches"]
            for name, buffer in model.named_buffers():
                buffer.copy_(state["buffers"][name])
            for kmeans, content in zip(found.values(), state["kmeans"], strict=True):
                kmeans.load_state_dict(content)
        model.train(self._train)
        for number, batch in self._replay("clustering", done, num):
            for view, f in enumerate(model.cluster_features(batch)):
                points, mine = f.permute(0, 2, 3, 1), [found[view, i] for i in range(len(clusterings))]  # (N, h, w, C)
                if number > first:
                    for kmeans in mine:
                        kmeans.update(points.flatten(0, 2))
                    continue
                points = all_rows(points).flatten(0, 2)
                kept[view] += [points.cpu()] if comm.is_main_process() else []
                if number == first:
                    together = torch.cat(kept[view]) if kept[view] else points
                    kept[view].clear()
                    for kmeans in mine:
                        kmeans.fit(together, points.shape[1])
            due = number == num or (number >= first and time.monotonic() - saved > self.save_seconds)
            if due and comm.is_main_process():
                self._save(path, number, list(found.values()))
                saved = time.monotonic()
        for (view, i), kmeans in found.items():
            clusterings[i].weight[view].copy_(kmeans.centroids)

    def _save(self, path: Path, num_batches: int, found: list[MiniBatchKMeans]) -> None:
        """Save the clusterings of a number of batches, from which :meth:`_cluster` goes on."""
        state = {"batches": num_batches, "kmeans": [kmeans.state_dict() for kmeans in found]}
        buffers = dict(self._model.named_buffers())
        with atomic_write(path) as file:
            torch.save({"fingerprint": self._fingerprint, "buffers": buffers, **state}, file)

    def _label(self) -> None:
        """Label the positions of this process, in evaluation mode."""
        file, clusterings = self._label_file(), self._model.sem_seg_head.clusterings
        sizes = {"num_batches": self._num, "num_clusters": max(c.weight.shape[1] for c in clusterings)}
        self._model.eval()
        for number, batch in self._replay("labelling", file.num_batches(self._num), self._num):
            features = self._model.cluster_features(batch)
            labels = torch.stack([c.label(f, view) for view, f in enumerate(features) for c in clusterings], dim=1)
            file.write(number - 1, labels, **sizes)
        self._model.train()

    def _set_frequencies(self) -> None:
        """Count the labels of all processes, and set the share of each."""
        stored, clusterings = self._label_file().read(), self._model.sem_seg_head.clusterings
        for column in range(stored.shape[1]):
            view, i = divmod(column, len(clusterings))
            frequency = clusterings[i].frequency[view]
            counts = sum(np.bincount(labels.ravel(), minlength=len(frequency)) for labels in stored[:, column])
            counts = gather(torch.from_numpy(counts)[None].to(frequency.device)).sum(dim=0)
            frequency.copy_(counts / counts.sum())
            used, largest = int((counts > 0).sum()), 100 * frequency.max().item()
            logger.info("view %d: %d of %d clusters used, largest %.1f %%", view + 1, used, len(counts), largest)

    def _labels_by_position(self):
        stored, first = self._label_file().read(), self._epoch * self._length * self._total_batch
        num_clusterings, num_processes = len(self._model.sem_seg_head.clusterings), comm.get_world_size()

        def labels(positions: torch.Tensor) -> torch.Tensor:
            """Return the labels (N, views, clusterings, h, w) int64 of positions (N,) of this process."""
            rows = stored[(positions.cpu().numpy() - first) // num_processes]
            return torch.from_numpy(rows.astype(np.int64)).unflatten(1, (-1, num_clusterings))

        return labels

    def _replay(self, name: str, done: int, num: int) -> Iterator[tuple[int, dict]]:
        """Yield the number, from 1, and the content of this epoch's batches after the first ``done``, and log."""
        if done < num:
            logger.info("epoch %d: %s, %d batches%s", self._epoch, name, num, f", {done} are done" if done else "")
        begin = logged = time.monotonic()
        batches = replay(self.trainer.data_loader, self._epoch * self._length + done, num - done)
        for number, batch in enumerate(batches, start=done + 1):
            torch.manual_seed(self._seed_of(name, number, comm.get_rank()))  # for dropout, also after a resume
            yield number, batch
            now = time.monotonic()
            if now - logged > LOG_SECONDS:
                left = timedelta(seconds=round((now - begin) / (number - done) * (num - number)))
                logger.info("epoch %d: %s, %d of %d batches, eta %s", self._epoch, name, number, num, left)
                logged = now


def replay(loader, first: int, num: int) -> Iterator[dict]:
    """Yield ``num`` batches of a ``TrainLoader`` from batch ``first`` on, with loader workers of its own."""
    if num <= 0:
        return
    loader = copy(loader)
    loader.batches = copy(loader.batches)
    loader.batches.start = first
    batches = iter(loader)
    try:
        yield from islice(batches, num)
    finally:
        batches.close()


def random_points(features: Callable, loader, total_batch: int, per_image: int) -> torch.Tensor:
    """Return the features of random cells of every image: (n, C) on the CPU of the main process, (0,) in the others.

    Args:
        features: batch of the loader -> (N, C, h, w).
        loader: a ``TrainLoader``.
        total_batch: images per batch of all processes.
        per_image: cells of each image, drawn by the loader's seed and the image's position; fewer, but at least one,
            where all images together would have more than ``MAX_POINTS``.
    """
    per_image = min(per_image, max(1, MAX_POINTS // len(loader.dataset)))
    kept, seed = [], loader.batches.seed
    for batch in replay(loader, 0, math.ceil(len(loader.dataset) / total_batch)):
        points = features(batch).flatten(2).transpose(1, 2)  # (N, h * w, C)
        chosen = [
            of_image[np.random.default_rng((seed, position)).permutation(len(of_image))[:per_image]]
            for of_image, position in zip(points, batch["position"].tolist(), strict=True)
        ]
        rows = all_rows(torch.stack(chosen)).flatten(0, 1)
        if comm.is_main_process():
            kept.append(rows.cpu())
    if not kept:
        return torch.empty(0)
    return torch.cat(kept)[: len(loader.dataset) * len(chosen[0])]  # the last batch goes on with the next epoch


def all_rows(x: torch.Tensor) -> torch.Tensor:
    """Return the rows (n, ...) of all processes in the order of positions; a batch is dealt out row by row."""
    return gather(x).unflatten(0, (world_size(), -1)).transpose(0, 1).flatten(0, 1)


def _fingerprint(model: nn.Module, epoch: int) -> str:
    digest = hashlib.sha256(str(epoch).encode())
    for tensor in model.state_dict().values():
        digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _load(path: Path, fingerprint: str) -> dict | None:
    """Return the content of ``clusters.pth`` in the main process, if it belongs to this epoch."""
    if not comm.is_main_process() or not path.is_file():
        return None
    state = torch.load(path, map_location="cpu", weights_only=True)
    return state if state["fingerprint"] == fingerprint else None

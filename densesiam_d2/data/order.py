"""The order of images is a function of seed and position only, so a resumed run needs no stored state."""

import contextlib
import itertools
import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Sampler, get_worker_info

__all__ = ["EndlessBatches", "SampleKey", "mixed_seeds", "seeded", "shuffled"]

ROUNDS = 6
MIN_BITS = 3  # of each half of a number; with fewer bits, a few items would have too few different permutations
BLOCK = 4096  # positions that are shuffled at once, for speed


def mixed_seeds(seed: int, *numbers) -> np.ndarray:
    """Return a pseudorandom seed for each combination of ``seed`` and ``numbers``.

    Args:
        seed: of the run, >= 0.
        numbers: integers >= 0, or arrays of them that all have the same shape.

    Returns:
        uint64 of the arrays' shape, at least 1-d.

    Source: the finaliser of SplitMix64 (Steele, Lea and Flood 2014), applied after each number.
    """
    mixed = np.full(1, seed, dtype=np.uint64)
    for number in numbers:
        number = np.atleast_1d(np.asarray(number, dtype=np.uint64))  # 1-d, because NumPy warns of overflow of scalars
        mixed = mixed + np.uint64(0x9E3779B97F4A7C15) * (number + np.uint64(1))
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed = mixed ^ (mixed >> np.uint64(31))
    return mixed


def shuffled(positions: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Return the items at some positions of an endless sequence of epochs, each a permutation of all items.

    No table is stored: a Feistel network permutes the numbers below a power of four, and a result that is not below
    ``size`` is permuted again until it is.

    Args:
        positions: (n,) integers >= 0; position ``p`` belongs to epoch ``p // size``.
        size: number of items.
        seed: of the run.

    Returns:
        (n,) int64 in [0, size).

    Source: Black and Rogaway 2002, "Ciphers with arbitrary finite domains", for both steps.
    """
    epochs, numbers = np.divmod(np.asarray(positions, dtype=np.uint64), np.uint64(size))
    bits = np.uint64(max(MIN_BITS, (int(size - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << bits) - np.uint64(1)
    todo = np.arange(len(numbers))
    while len(todo):
        left, right = numbers[todo] >> bits, numbers[todo] & mask
        for number in range(ROUNDS):
            left, right = right, left ^ (mixed_seeds(seed, epochs[todo], np.full(len(todo), number), right) & mask)
        numbers[todo] = left << bits | right
        todo = todo[numbers[todo] >= size]
    return numbers.astype(np.int64)


class SampleKey(NamedTuple):
    """What a loader asks its dataset for.

    Attributes:
        index: number of the image in the list of images.
        seed: of the sample's random draws, in [0, 2**32).
        position: place of the sample in the endless sequence of epochs (see :func:`shuffled`), which identifies it.
    """

    index: int
    seed: int
    position: int


class EndlessBatches(Sampler):
    """Endless batches of :class:`SampleKey`: batch ``i`` is the same for any number of processes and workers.

    Batch ``i`` of all processes together holds the positions ``i * total`` to ``(i + 1) * total - 1`` of
    :func:`shuffled`, so no image comes twice in an epoch, even if the number of processes changes after a resume. With
    ``groups``, all images of a batch are of one group: each group collects its images in their order until a batch is
    full.

    Attributes:
        start: the first batch to yield; set it before iterating.
        seed: of the run.
    """

    def __init__(
        self,
        size: int,
        total_batch_size: int,
        seed: int,
        *,
        groups: Sequence[int] | None = None,
        freeze: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ):
        """Store what defines the order.

        Args:
            size: number of images.
            total_batch_size: images per batch of all processes together.
            seed: of the run, the same in all processes.
            groups: the group of each image, such as 0 for portrait and 1 for landscape.
            freeze: give an image the same seed in every epoch.
            rank: of this process.
            world_size: number of processes.

        Raises:
            ValueError: there are no images, or the batch cannot be shared evenly.
        """
        if size < 1:
            raise ValueError("there are no images to draw from")
        if total_batch_size < 1 or total_batch_size % world_size:
            raise ValueError(f"a batch of {total_batch_size} images cannot be shared among {world_size} processes")
        self.start, self.seed = 0, seed
        self._size, self._total = size, total_batch_size
        self._groups = None if groups is None else np.asarray(groups)
        self._freeze = freeze
        self._rank, self._world_size = rank, world_size

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for batches in self._plain() if self._groups is None else self._grouped():
            share = batches[:, self._rank :: self._world_size]
            indices = shuffled(share.ravel(), self._size, self.seed).reshape(share.shape)
            seeds = mixed_seeds(self.seed, indices if self._freeze else share) >> np.uint64(32)  # NumPy takes 32 bits
            for row in zip(indices.tolist(), seeds.tolist(), share.tolist(), strict=True):
                yield list(map(SampleKey, *row))

    def epoch_of(self, batch: int) -> int:
        """Return the epoch, from 0 on, to which the first image of a batch belongs; without ``groups`` only."""
        return batch * self._total // self._size

    def _plain(self) -> Iterator[np.ndarray]:
        """Yield the positions of several batches at once, (batches, total)."""
        together = max(1, BLOCK * self._world_size // self._total)
        for first in itertools.count(self.start, together):
            yield np.arange(first * self._total, (first + together) * self._total).reshape(together, self._total)

    def _grouped(self) -> Iterator[np.ndarray]:
        """Yield the positions of each full batch, (1, total); batches before ``start`` are filled and then skipped."""
        waiting = {int(group): [] for group in np.unique(self._groups)}
        finished = 0
        for first in itertools.count(0, BLOCK):
            positions = np.arange(first, first + BLOCK)
            groups = self._groups[shuffled(positions, self._size, self.seed)]
            for position, group in zip(positions.tolist(), groups.tolist(), strict=True):
                waiting[group].append(position)
                if len(waiting[group]) == self._total:
                    finished += 1
                    if finished > self.start:
                        yield np.array([waiting[group]])
                    waiting[group] = []


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed Python's, NumPy's and torch's CPU generators; outside of loader workers, restore their states afterwards.

    Args:
        seed: in [0, 2**32).
    """
    in_worker = get_worker_info() is not None  # nothing else draws there, and saving the states would take 100 us
    states = None if in_worker else (random.getstate(), np.random.get_state(), torch.default_generator.get_state())
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        if states:
            random.setstate(states[0])
            np.random.set_state(states[1])
            torch.default_generator.set_state(states[2])

"""Subsets: random ones that are nested (with one seed, 10 images are among the 25), and evenly spaced ones."""

from collections.abc import Sequence

import numpy as np

__all__ = ["evenly_spaced", "subset_of"]


def subset_of(count: int, number: int, seed: int) -> list[int]:
    """Draw ``number`` of ``count`` indices, sorted; a larger number with the same seed holds them all.

    Args:
        count: how many there are.
        number: how many to draw, from 1 to ``count``.
        seed: of the draw.

    Raises:
        ValueError: there are not so many.
    """
    if not 1 <= number <= count:
        raise ValueError(f"subset={number}: there are {count} annotated images to draw from")
    return sorted(np.random.default_rng(seed).permutation(count)[:number].tolist())


def evenly_spaced(items: Sequence, number: int | None) -> list:
    """Return ``number`` items at equal distances from the first to the last; all if there are fewer, or for None."""
    number = len(items) if number is None else min(number, len(items))
    return [items[i] for i in np.linspace(0, len(items) - 1, number).round().astype(int).tolist()]

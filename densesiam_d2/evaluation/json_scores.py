"""Write scores as JSON, with null for NaN, which JSON does not have."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

from densesiam_d2.atomic import atomic_write

__all__ = ["write_json"]


def write_json(path: Path, scores: Mapping) -> None:
    """Write nested dicts of scores to a file, with null for NaN; missing folders are created."""
    text = json.dumps(_without_nan(scores), indent=2, allow_nan=False)
    with atomic_write(path, many_writers=True) as file:
        file.write(text.encode())


def _without_nan(value):
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value

"""Write scores as JSON, with null for NaN, which JSON does not have."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

__all__ = ["write_json"]


def write_json(path: Path, scores: Mapping) -> None:
    """Write nested dicts of scores to a file, with null for NaN; missing folders are created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_without_nan(scores), indent=2, allow_nan=False))


def _without_nan(value):
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value

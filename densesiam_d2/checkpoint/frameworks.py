"""Refuse weights of TensorFlow and JAX, and say where to get PyTorch's from."""

import re
from pathlib import Path
from typing import Any

__all__ = ["refuse_jax", "refuse_tensorflow"]

# Every index of a TensorFlow checkpoint, and every old checkpoint in one file, is a table that ends in this number.
_TABLE_END = bytes.fromhex("57fb808b247547db")


def refuse_tensorflow(path: Path) -> None:
    """Raise an error if a path is a TensorFlow checkpoint: one of its files, the start of their names, or their folder.

    Raises:
        ValueError: it is one.
    """
    if path.is_dir():
        # Not deeper: the folder may hold all images of a user.
        found = any(next(path.glob(name), None) for name in ("*.index", "saved_model.pb", "*/saved_model.pb"))
    else:
        start = re.sub(r"\.(index|meta|data-\d{5}-of-\d{5})$", "", path.name)
        found = path.with_name(f"{start}.index").is_file() or path.name == "saved_model.pb" or path.name != start
        if path.is_file() and not found:
            with path.open("rb") as file:
                file.seek(max(path.stat().st_size - len(_TABLE_END), 0))
                found = file.read() == _TABLE_END
    if found:
        raise ValueError(
            f"cannot read weights from {path}: this is a checkpoint of TensorFlow, such as Google's SimCLR. Convert it "
            "to PyTorch first: SimCLR with tonylins/simclr-converter, SimCLR v2 with Separius/SimCLRv2-Pytorch (both "
            "on GitHub), and give the result"
        )


def refuse_jax(content: Any) -> None:
    """Raise an error if the content of a file is DeepMind's BYOL.

    Source: google-deepmind/deepmind-research byol/utils/checkpointing.py and byol_experiment.py (names only).

    Raises:
        ValueError: it is.
    """
    if isinstance(content, dict) and "experiment_state" in content:
        raise ValueError(
            "this is a checkpoint of JAX, DeepMind's BYOL. Its convolutions pad more on the right and below, as no "
            "PyTorch ResNet does, so that renaming is not enough: take another BYOL, such as OpenMMLab's (MMSelfSup)"
        )

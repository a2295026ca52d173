"""Weights that trainings start from: their names, and whether they fit a config."""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.modeling import build_model

from densesiam_d2.checkpoint import CheckedCheckpointer, expected_metadata
from densesiam_d2.grid.cells import check_folder_name

__all__ = ["SCRATCH", "Start", "check_starts", "on_cpu", "parse_starts", "quiet", "split_name"]

SCRATCH = "scratch"

# File names that say nothing: the start is named after the file's folder.
_PLAIN_NAMES = ("backbone", "model_best", "model_final")


@dataclass(frozen=True)
class Start:
    """What MODEL.WEIGHTS is at the beginning of a training.

    Attributes:
        name: in tables, plots and names of folders.
        weights: MODEL.WEIGHTS; "" for random weights.
    """

    name: str
    weights: str


def parse_starts(words: Sequence[str]) -> list[Start]:
    """Return the starts that the words of ``--starts`` name.

    Args:
        words: "scratch", FILE or NAME=FILE. Without NAME, a start is named after its file, or after its folder if the
            file is called backbone, model_best or model_final.

    Raises:
        ValueError: two starts have one name, or a name cannot be that of a folder.
    """
    starts = []
    for word in words:
        name, file = split_name(word)
        if name:
            starts.append(Start(name, file))
        elif word == SCRATCH:
            starts.append(Start(SCRATCH, ""))
        else:
            path = Path(word.partition("?")[0])
            name = path.absolute().parent.name if path.stem in _PLAIN_NAMES else path.stem
            name = re.sub(r"[^\w.+-]", "_", name)
            check_folder_name(name, f"{word}: name it by NAME=FILE")
            starts.append(Start(name, word))
    names = [start.name for start in starts]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ValueError(f"two starts are called {twice}: name them by NAME=FILE")
    return starts


def split_name(word: str) -> tuple[str | None, str]:
    """Split NAME=FILE; the name is None for FILE alone.

    Raises:
        ValueError: the name cannot be that of a folder.
    """
    named = re.fullmatch(r"([\w.+-]+)=(.+)", word)
    if not named:
        return None, word
    check_folder_name(named[1], word)
    return named[1], named[2]


def check_starts(cfg: CfgNode, starts: Sequence[Start]) -> None:
    """Load every start into the model of a config as a training does, before any training begins.

    Args:
        cfg: the config of the trainings; it is not changed.
        starts: the starts.

    Raises:
        ValueError: files do not exist, cannot be read or do not fit the model; one message lists them all.
    """
    cfg, problems = on_cpu(cfg), []
    with quiet():
        model = build_model(cfg)
        for start in starts:
            checkpointer = CheckedCheckpointer(
                model, expect=expected_metadata(cfg), strict=cfg.MODEL.WEIGHTS_STRICT, save_to_disk=False
            )
            try:
                checkpointer.resume_or_load(start.weights, resume=False)
            except (ValueError, OSError) as error:
                problems.append(f"  {start.name}: {error}")
    if problems:
        raise ValueError("\n".join([f"these starts cannot be used ({SCRATCH} is random weights):", *problems]))


def on_cpu(cfg: CfgNode) -> CfgNode:
    """Return a copy of a config whose model can be built in this process, without a GPU."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    return cfg


@contextmanager
def quiet() -> Iterator[None]:
    """Keep back the log of building and loading; the trainings log the same."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)

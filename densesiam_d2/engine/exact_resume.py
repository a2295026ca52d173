"""Exact resume. RNG state is not saved; every draw follows from seed and iteration."""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch.utils.data import ConcatDataset

import densesiam_d2
from densesiam_d2.checkpoint.loading import WeightsError
from densesiam_d2.data.image_index import ImageFiles
from densesiam_d2.data.loader import TrainLoader
from densesiam_d2.data.order import mixed_seeds
from densesiam_d2.text_lines import read_json_lines

__all__ = ["ExactResumeHook"]

logger = logging.getLogger(__name__)

# Keys that may change on resume without a warning: paths, devices, speed.
PLACES = (
    "DATALOADER.INDEX_ABOVE",
    "DATALOADER.NUM_WORKERS",
    "DATASETS",  # the images are compared instead of the names
    "MODEL.DEVICE",
    "MODEL.SSL.CHECKPOINT_STAGES",
    "MODEL.WEIGHTS",
    "MODEL.WEIGHTS_STRICT",
    "OUTPUT_DIR",
    "RUN",
    "SOLVER.CHECKPOINT_KEEP_EVERY",
    "SOLVER.CHECKPOINT_KEEP_LAST",
    "SOLVER.CHECKPOINT_PERIOD",
    "TEST",
    "VERSION",
    "VIS_PERIOD",
)
# Keys whose change stops a resume, as a change of the images does: the result would be that of another training.
IDENTITY = ("SEED", "MODEL", "INPUT", "SOLVER.IMS_PER_BATCH", "SOLVER.OPTIMIZER")


class ExactResumeHook(HookBase):
    """Make randomness a function of (seed, position) and (seed, iteration, rank), and compare settings on resume.

    With a :class:`~densesiam_d2.data.loader.TrainLoader`, a run that was killed and resumed ends with the same weights
    as an uninterrupted run: bit by bit on the CPU with the same number of processes and any number of workers. The
    exception is plain "BN" in several processes, because only the statistics of the main process are saved.

    A checkpoint stores the seed, the config and a hash of the list of images. A resumed run logs all differences. Other
    images, batch size, seed, model or augmentation stop the run, unless ``RUN.ALLOW_MISMATCH`` is set.
    """

    def __init__(self, cfg: CfgNode):
        """Store what the hook needs of the run's config."""
        self._config, self._allow = cfg.dump(), cfg.RUN.ALLOW_MISMATCH
        self._metrics = Path(cfg.OUTPUT_DIR) / "metrics.json"
        self._seed_given = cfg.SEED >= 0
        self._own: dict | None = None

    def before_train(self) -> None:
        loader = self._loader()
        if loader:
            loader.batches.start = self.trainer.start_iter
        elif self.trainer.start_iter:
            logger.warning("this loader cannot go on where the run stopped: the order of images starts anew")
        if comm.is_main_process():
            cut_metrics(self._metrics, self.trainer.start_iter)

    def before_step(self) -> None:
        loader = self._loader()
        if loader:
            torch.manual_seed(int(mixed_seeds(loader.batches.seed, self.trainer.iter, comm.get_rank())[0]) >> 1)

    def state_dict(self) -> dict:
        return self._fingerprint()

    def load_state_dict(self, state: dict) -> None:
        """Compare the checkpoint with this run, and use the seed that the first part of the run drew.

        Raises:
            WeightsError: the checkpoint is of a training with other data or settings.
        """
        loader, own = self._loader(), self._fingerprint()
        stops, notes = compare(state, own)
        if loader and not self._seed_given:
            loader.batches.seed, self._own = state["seed"], None
        for line in notes + (stops if self._allow else []):
            logger.warning("resumed with another setting: %s", line)
        if stops and not self._allow:
            raise WeightsError(
                "--resume: the checkpoint is of another training (RUN.ALLOW_MISMATCH True goes on all the same, unless "
                "the model's parameters have changed):\n  " + "\n  ".join(stops)
            )

    def _loader(self) -> TrainLoader | None:
        loader = self.trainer.data_loader
        return loader if isinstance(loader, TrainLoader) else None

    def _fingerprint(self) -> dict:
        if self._own is None:
            loader = self._loader()
            records = loader.dataset.records if loader else []
            self._own = {
                "seed": loader.batches.seed if loader else -1,
                "world_size": comm.get_world_size(),
                "config": self._config,
                "images": len(records),
                "images_sha256": _digest(records),
                "versions": {"torch": str(torch.__version__), "densesiam_d2": densesiam_d2.__version__},
            }
        return self._own


def compare(stored: dict, own: dict) -> tuple[list[str], list[str]]:
    """Return one line per difference between two fingerprints: first those that stop the run, then the others."""
    stops, notes = [], []
    if (stored["images"], stored["images_sha256"]) != (own["images"], own["images_sha256"]):
        names = "" if stored["images"] != own["images"] else ", of other names"
        stops.append(f"DATASETS.TRAIN had {stored['images']} images and has {own['images']}{names}")
    was, now = (_flat(yaml.safe_load(fingerprint["config"])) for fingerprint in (stored, own))
    for key in sorted(was.keys() | now.keys()):
        if was.get(key) == now.get(key) or _is_in(key, PLACES) or (key == "SEED" and own["seed"] == stored["seed"]):
            continue
        both_know_it = key in was and key in now  # a key may be newer than the checkpoint, or removed
        other_training = _is_in(key, IDENTITY) and both_know_it
        (stops if other_training else notes).append(f"{key} was {was.get(key)} and is {now.get(key)}")
    if stored["world_size"] != own["world_size"]:
        notes.append(f"there were {stored['world_size']} processes and are {own['world_size']}: weights will differ")
    notes += [
        f"{name} was {version} and is {own['versions'].get(name)}"
        for name, version in stored["versions"].items()
        if version != own["versions"].get(name)
    ]
    return stops, notes


def cut_metrics(path: Path, iteration: int) -> None:
    """Remove the rows from ``iteration`` on, which will be written again, and incomplete rows of a killed run."""
    if not path.is_file():
        return
    rows = ((row.get("iteration", -1), row) for row in read_json_lines(path))
    kept = [json.dumps(row) + "\n" for number, row in rows if isinstance(number, int) and number < iteration]
    try:
        with path.open("r+b") as file:  # not a new file: detectron2's writer may have this one open already
            file.write("".join(kept).encode())
            file.truncate()
    except OSError as error:
        logger.warning("cannot rewrite %s, which will have iterations twice: %s", path, error)


def _is_in(key: str, prefixes: Sequence[str]) -> bool:
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes)


def _flat(config: dict, prefix: str = "") -> dict:
    flat = {}
    for name, value in config.items():
        flat.update(_flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
    return flat


def _digest(records: Sequence[dict]) -> str:
    """Return a hash of the image names; names are relative to the common folder of each dataset."""
    if isinstance(records, ConcatDataset):
        return hashlib.sha256("".join(map(_digest, records.datasets)).encode()).hexdigest()
    if not isinstance(records, ImageFiles):
        records = ImageFiles([record["file_name"] for record in records])
    return records.digest()

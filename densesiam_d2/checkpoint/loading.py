"""Load MODEL.WEIGHTS, and stop the run if the file does not fill the backbone, instead of training from scratch."""

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from detectron2.utils import comm
from torch import distributed as dist
from torch import nn

from densesiam_d2.atomic import atomic_write
from densesiam_d2.checkpoint.comparing import (
    backbone_names,
    bare_names,
    contradictions,
    unused_statistics,
    why_missing,
)
from densesiam_d2.checkpoint.export import TORCHVISION_METADATA, from_a_converter, is_ours, known_metadata
from densesiam_d2.checkpoint.files import read_checkpoint, require_weight_file
from densesiam_d2.checkpoint.layouts import exported, recognise
from densesiam_d2.checkpoint.names import further_blocks
from densesiam_d2.checkpoint.own_names import named_backbone, under_own_names
from densesiam_d2.checkpoint.resuming import TAG, newest_valid, own_checkpoints
from densesiam_d2.checkpoint.tensors import as_array, bare_name, is_tensor, refuse_quantized
from densesiam_d2.text_lines import listed

__all__ = ["CheckedCheckpointer", "WeightsError"]

logger = logging.getLogger(__name__)


class WeightsError(ValueError):
    """MODEL.WEIGHTS, or a checkpoint to resume from, cannot be read or does not fit the config."""


class CheckedCheckpointer(DetectionCheckpointer):
    """A ``DetectionCheckpointer`` that checks what MODEL.WEIGHTS fills, and runs no code from files.

    When it starts from MODEL.WEIGHTS (``resume_or_load`` that does not resume), it counts how many of the model's
    backbone tensors the file fills, and compares the file's metadata (written by ``save_backbone`` or :meth:`save`)
    with the config. Checkpoints of other layouts (torchvision, MoCo, our pretraining, ...) are converted while loading.
    When it resumes, it makes none of these checks, and the file may hold only tensors and plain values.

    Args:
        model: the model, DDP-wrapped or not.
        save_dir: directory of the run's own checkpoints.
        expect: facts to compare with the file's metadata, from ``expected_metadata``; None compares nothing.
        strict: raise an error for an unfilled tensor or a contradiction; False logs a warning instead.
        whole_model: check every tensor of the model, not only those of the backbone; used for evaluation.
        save_to_disk: whether :meth:`save` writes; None means only in the main process.
        checkpointables: as in detectron2.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        expect: Mapping[str, Any] | None = None,
        strict: bool = True,
        whole_model: bool = False,
        save_to_disk: bool | None = None,
        **checkpointables: Any,
    ) -> None:
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self._expect = dict(expect or {})
        self._strict = strict
        self._whole_model = whole_model
        self._weights_path = ""  # set while MODEL.WEIGHTS is being loaded

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Resume from the last checkpoint in ``save_dir`` if there is one, else load and check MODEL.WEIGHTS.

        Args:
            path: MODEL.WEIGHTS; empty means random weights.
            resume: whether to resume when ``save_dir`` has a checkpoint; False always loads MODEL.WEIGHTS.

        Returns:
            The content of the checkpoint without model and checkpointables.

        Raises:
            FileNotFoundError: there is no such local file.
            WeightsError: the file is damaged, holds NaN, does not fill the whole backbone, or its metadata contradicts
                the config.
        """
        if resume and self.has_checkpoint():
            return super().resume_or_load(path, resume=True)
        if not path:
            logger.info("MODEL.WEIGHTS is empty: random weights")
            return {}
        # Only the main process needs the file: load() sends it to machines that do not have it.
        if "://" not in path and not comm.all_gather(Path(path.partition("?")[0]).is_file())[0]:
            require_weight_file(Path(path.partition("?")[0]), "MODEL.WEIGHTS: file")
            raise FileNotFoundError(f"MODEL.WEIGHTS: file {path} does not exist in the main process")
        if "://" in path:
            self._fetch(path.partition("?")[0])
        self._weights_path = path
        try:
            return self.load(path, checkpointables=[])
        finally:
            self._weights_path = ""
            self._parsed_url_during_load = None  # detectron2 does not reset it after an error

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load a file; processes that do not have it, on other machines, get it from the main process.

        Args:
            path: the file or address; empty loads nothing.
            checkpointables: names of what to load beside the model; None means everything.

        Returns:
            The content without model and checkpointables.
        """
        file, mark, query = path.partition("?")
        found = comm.all_gather(Path(file).is_file())
        if not found[0] or all(found):
            return super().load(path, checkpointables)
        content = [Path(file).read_bytes() if comm.is_main_process() else None]
        dist.broadcast_object_list(content)
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / Path(file).name
            copy.write_bytes(content[0])
            return super().load(f"{copy}{mark}{query}", checkpointables)

    def _fetch(self, path: str) -> None:
        try:
            local = self.path_manager.get_local_path(path)
        except (OSError, ValueError) as error:  # unknown name, or the download failed
            raise WeightsError(f"MODEL.WEIGHTS {path}: {error}") from error
        except (KeyError, RuntimeError) as error:
            raise WeightsError(
                f"MODEL.WEIGHTS {path}: detectron2's catalog has no such file: check the name"
            ) from error
        if local == path:
            raise WeightsError(f"MODEL.WEIGHTS {path}: such addresses are not fetched: download it, and name the file")

    def save(self, name: str, *, tag: bool = True, **kwargs: Any) -> None:
        """Write ``save_dir/name.pth``, then the tag file that names it; after a crash each file is either old or new.

        The file holds what detectron2 saves, and the metadata that :meth:`resume_or_load` compares with the config.

        Args:
            name: name of the file, without suffix.
            tag: whether a resumed run starts from this file.
            kwargs: further content.

        Raises:
            OSError: the file could not be written; no partial file is left.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        states = {key: checkpointable.state_dict() for key, checkpointable in self.checkpointables.items()}
        metadata = {"method": type(self.model).__name__, **self._expect} if self._expect else {}
        if hasattr(self.model, "exports"):
            metadata["exports"] = self.model.exports
        path = Path(self.save_dir) / f"{name}.pth"
        logger.info("Saving checkpoint to %s", path)
        content = {"model": self.model.state_dict(), **states, "metadata": metadata, **kwargs}
        try:
            with atomic_write(path) as file:
                torch.save(content, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # torch hides it: "unexpected pos"
                raise error.__context__ from None
            raise
        if tag:
            self.tag_last_checkpoint(path.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Write the name of the newest checkpoint into the tag file."""
        with atomic_write(Path(self.save_dir) / TAG) as file:
            file.write(last_filename_basename.encode())

    def has_checkpoint(self) -> bool:
        """Tell whether the main process has a checkpoint or a tag file in ``save_dir``; call it in all processes."""
        here = bool(self.save_dir) and (Path(self.save_dir, TAG).exists() or bool(own_checkpoints(self.save_dir)))
        return comm.all_gather(here)[0]

    def get_checkpoint_file(self) -> str:
        """Return the checkpoint to resume from, chosen by the main process; call it in all processes.

        Raises:
            WeightsError: there are checkpoints, but all are damaged; a new start would overwrite them.
        """
        path, rejected = newest_valid(self.save_dir) if comm.is_main_process() else (None, [])
        for line in rejected:
            logger.warning("cannot resume from %s", line)
        chosen = comm.all_gather(str(path) if path else "")[0]
        if not chosen:
            lines = "; ".join(rejected)
            raise WeightsError(f"--resume: no whole checkpoint in {self.save_dir} ({lines}): move what is there away")
        return chosen

    def _load_file(self, filename: str) -> dict[str, Any]:
        """Read ``.safetensors`` and every format that detectron2 reads, without running code from a pickle."""
        try:
            content = read_checkpoint(filename, foreign=bool(self._weights_path))
        except ValueError as error:
            raise WeightsError(str(error)) from error
        if filename.endswith(".safetensors") and "metadata" in content:  # from save_safetensors: no prefixes
            content["matching_heuristics"] = True
        if filename.endswith(".pkl") and _is_caffe2(content):
            blobs = content.get("blobs", content)  # detectors have "blobs", ImageNet models do not
            blobs = {n: value for n, value in blobs.items() if is_tensor(value) and not n.endswith("_momentum")}
            facts = {"__author__": "Caffe2", "matching_heuristics": True, "metadata": _caffe2_facts(blobs)}
            return {"model": blobs, **facts}
        if filename.endswith(".pyth") and isinstance(content.get("model_state"), Mapping):
            state = {n: v for n, v in content["model_state"].items() if not n.endswith("num_batches_tracked")}
            return {"model": state, "__author__": "pycls", "matching_heuristics": True}
        query = parse_qs(self._parsed_url_during_load.query) if self._parsed_url_during_load else {}
        if query.pop("matching_heuristics", None) == ["True"]:
            content["matching_heuristics"] = True
        if query:
            address = self._parsed_url_during_load.geturl()
            raise WeightsError(f"MODEL.WEIGHTS: unknown query {sorted(query)} in {address}: leave it out")
        if self._weights_path:
            content = self._converted(content)
        return content if "model" in content else {"model": content}

    def _converted(self, content: dict[str, Any]) -> dict[str, Any]:
        """Return a checkpoint's tensors, or only its backbone, renamed, if its names are not those of the model."""
        key = next((key for key in ("model", "state_dict") if isinstance(content.get(key), Mapping)), None)
        state = {n: value for n, value in (content[key] if key else content).items() if is_tensor(value)}
        as_it_is = {"model": state, **({"__author__": content["__author__"]} if "__author__" in content else {})}
        if is_ours(content.get("metadata")):
            as_it_is["metadata"] = content["metadata"]
        named = named_backbone(self.model)
        if content.get("matching_heuristics") and not named:
            facts = {"metadata": TORCHVISION_METADATA} if from_a_converter(content) else {}
            return {**facts, **as_it_is, "matching_heuristics": True}
        # Compare names of convolutions only: old files with frozen batch norm lack statistics, which detectron2 adds.
        convolutions = {n for n in backbone_names(self.model) if n.endswith(".weight") and ".norm." not in n}
        unwrapped = {bare_name(name): value for name, value in state.items()}
        shared = f"{next(iter(unwrapped), '').partition('.')[0]}."  # such as Lightning's "model."
        if not convolutions <= unwrapped.keys() and all(name.startswith(shared) for name in unwrapped):
            unwrapped = {name.removeprefix(shared): value for name, value in unwrapped.items()}
        other_network = exported(content) not in (None, "model.backbone") and not hasattr(self.model, "exports")
        if convolutions <= unwrapped.keys() and len(unwrapped) == len(state) and not other_network:
            parts = {name: part for name, part in content.items() if name != key and isinstance(part, Mapping)}
            others = [name for name, part in parts.items() if convolutions & part.keys()]
            if others:  # such as a running average
                text = "%s: taking %r, not %s, which has such weights, too"
                logger.warning(text, self._weights_path, key, listed(others))
            return {**as_it_is, "model": unwrapped}
        try:
            if named:
                return self._for_named(content, *named)
            found = recognise(content)
            metadata = known_metadata(content, found)
            wanted, given = (
                any(name.endswith("running_mean") for name in names)
                for names in (backbone_names(self.model), found.state)
            )
            if wanted and not given and found.torchvision:  # detectron2's FrozenBN would take means of 0
                raise ValueError(
                    "its norms have no running statistics: set MODEL.RESNETS.NORM GN for group norm; weights of batch "
                    "norm were saved without their buffers: save the state_dict()"
                )
        except ValueError as error:
            self._complain(f"MODEL.WEIGHTS {self._weights_path}: {error}")
            return as_it_is
        logger.info("%s: taking the backbone only, layout %s", self._weights_path, found.layout)
        model = {**found.state, **found.fpn}
        return {"model": model, "__author__": found.layout, "matching_heuristics": True, "metadata": metadata}

    def _for_named(self, content: dict[str, Any], prefix: str, backbone: nn.Module) -> dict[str, Any]:
        state, metadata, where = under_own_names(content, backbone)
        logger.info("%s: taking the backbone only, %s", self._weights_path, where)
        return {"model": {prefix + name: value for name, value in state.items()}, "metadata": metadata}

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        if not self._weights_path:
            return super()._load_model(checkpoint)
        state = {name: tuple(value.shape) for name, value in checkpoint["model"].items()}
        metadata = checkpoint.get("metadata")
        self._check_metadata(_statistics_of_images(checkpoint["model"]) | dict(metadata or {}))
        if checkpoint.get("matching_heuristics") and hasattr(self.model, "exports"):
            self._match_backbone(checkpoint)
        try:
            refuse_quantized({n: value for n, value in checkpoint["model"].items() if n.endswith("weight")})
        except ValueError as error:
            raise WeightsError(f"MODEL.WEIGHTS {self._weights_path}: {error}") from error
        incompatible = super()._load_model(checkpoint)
        self._check_finite(incompatible.missing_keys)
        self._check_filled(incompatible.missing_keys, state)
        if self._whole_model and incompatible.missing_keys:
            missing = incompatible.missing_keys
            self._complain(
                f"MODEL.WEIGHTS {self._weights_path} lacks {len(missing)} tensors of the model to be evaluated, "
                f"such as {missing[0]}: give the file of a trained model, such as OUTPUT_DIR/model_final.pth"
            )
        return incompatible

    def _match_backbone(self, checkpoint: dict[str, Any]) -> None:
        """Rename a checkpoint's tensors to those of the model's backbone.

        detectron2 would compare the ends of names, and those of the teacher's backbone are the same.
        """
        own = {name: value for name, value in self.model.state_dict().items() if name.startswith("backbone.")}
        self._convert_ndarray_to_tensor(checkpoint["model"])
        is_caffe2 = checkpoint.get("__author__") == "Caffe2"
        checkpoint["model"] = align_and_update_state_dicts(own, checkpoint["model"], c2_conversion=is_caffe2)
        checkpoint["matching_heuristics"] = False

    def _check_finite(self, missing_keys: list[str]) -> None:
        """Raise an error for loaded weights that are not finite: the first loss would be NaN."""
        for name, value in self.model.state_dict().items():
            if name not in missing_keys and not torch.isfinite(value).all():
                raise WeightsError(
                    f"MODEL.WEIGHTS {self._weights_path} fills {name} with NaN or infinite values: the training "
                    "diverged; give a checkpoint from before"
                )

    def _check_metadata(self, metadata: Mapping[str, Any]) -> None:
        if self._expect and "pixel_format" not in metadata:
            logger.warning(
                "MODEL.WEIGHTS %s does not say which images it takes: compare INPUT.FORMAT, MODEL.PIXEL_MEAN, "
                "MODEL.PIXEL_STD and MODEL.RESNETS.STRIDE_IN_1X1 with those of its training (most of detectron2's "
                "model zoo: BGR, deviations of 1, and True)",
                self._weights_path,
            )
        problems = contradictions(metadata, self._expect)
        if problems:
            self._complain(f"MODEL.WEIGHTS {self._weights_path} contradicts the config: {'; '.join(problems)}")

    def _check_filled(self, missing_keys: list[str], state: Mapping[str, tuple]) -> None:
        expected = backbone_names(self.model)
        if not expected:
            logger.warning("the model has no tensors named backbone.*: cannot check what MODEL.WEIGHTS fills")
            return
        missing = sorted(set(expected) & set(missing_keys))
        filled = f"backbone: {len(expected) - len(missing)} of {len(expected)} tensors filled from {self._weights_path}"
        if not missing:
            logger.info(filled)
            further = further_blocks(bare_names(expected), bare_names(state))
            if further:
                self._complain(
                    f"MODEL.WEIGHTS {self._weights_path} holds a deeper network than the config's, which has no "
                    f"{listed(further, 5)}: check MODEL.RESNETS.DEPTH"
                )
            if unused := unused_statistics(bare_names(expected), bare_names(state)):
                self._complain(
                    f"MODEL.WEIGHTS {self._weights_path} has statistics of batch norm, such as {unused[0]}, which the "
                    "config's backbone does not have: set MODEL.RESNETS.NORM to BN, SyncBN or FrozenBN"
                )
            return
        self._complain(f"{filled}; missing {listed(missing)}. {why_missing(missing, state, self.model)}")

    def _complain(self, message: str) -> None:
        if self._strict:
            raise WeightsError(f"{message} (MODEL.WEIGHTS_STRICT False makes this a warning)")
        logger.warning(message)


def _statistics_of_images(state: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return the mean and deviation of images that models of early versions of detectron2 saved with their weights."""
    found = {name: as_array(state[name]).ravel().tolist() for name in ("pixel_mean", "pixel_std") if name in state}
    return {name: values for name, values in found.items() if len(values) == 3}


def _is_caffe2(content: Mapping[str, Any]) -> bool:
    """Tell whether a .pkl is from Caffe2: it has no author, and Caffe2's name of the first convolution."""
    return "__author__" not in content and "conv1_w" in content.get("blobs", content)


def _caffe2_facts(blobs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the images that a backbone of Caffe2 takes.

    Source: detectron2, detectron2/config/defaults.py (MSRA's ResNets have the standard deviation in their first layer)
    and configs/*X_101_32x8d*.yaml.
    """
    first, second = (np.shape(blobs.get(f"res2_0_branch2{letter}_w", ())) for letter in "ab")
    grouped = len(first) == len(second) == 4 and second[1] < first[0]
    std = [57.375, 57.12, 58.395] if grouped else [1.0, 1.0, 1.0]
    facts = {"pixel_format": "BGR", "pixel_mean": [103.53, 116.28, 123.675], "pixel_std": std}
    # Basic blocks, which have no branch2c, have no convolution of size 1 to place the stride in.
    return {**facts, "stride_in_1x1": not grouped} if "res2_0_branch2c_w" in blobs else facts

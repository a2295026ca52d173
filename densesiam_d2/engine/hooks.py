"""Hooks of the training loop that all methods share; a method's ``build_hooks`` returns its own hooks."""

import logging
from pathlib import Path

from detectron2.engine import HookBase, hooks
from detectron2.utils import comm

from densesiam_d2.checkpoint.export import backbone_metadata, backbone_state, save_backbone, save_safetensors
from densesiam_d2.layers import unwrap

__all__ = ["ExportBackboneHook", "PreciseBNHook", "ProgressHook", "export_backbone"]


class ProgressHook(HookBase):
    """Before each step, set ``model.progress`` to the share of training that is done, in [0, 1]."""

    def before_step(self) -> None:
        unwrap(self.trainer.model).progress = self.trainer.iter / self.trainer.max_iter


class PreciseBNHook(hooks.PreciseBN):
    """detectron2's ``PreciseBN``, with the same batches at every call, so that a resumed run is exact.

    The statistics go into the tensors that the model has, because dropped steps restore these.
    """

    def update_stats(self) -> None:
        before = dict(self._model.named_buffers())
        super().update_stats()
        self._data_iter = None
        for name, buffer in list(self._model.named_buffers()):
            if buffer is not before[name]:
                module, _, own_name = name.rpartition(".")
                setattr(self._model.get_submodule(module), own_name, before[name].copy_(buffer))


def export_backbone(cfg, model, path: Path, iteration: int) -> None:
    """Write the backbone of a model, DDP-wrapped or not, as ``.pkl`` and ``.safetensors``.

    Args:
        cfg: the config, for the files' metadata.
        model: the model.
        path: of the ``.pkl``; the other file lies beside it.
        iteration: number of finished iterations.
    """
    state = backbone_state(model)
    metadata = backbone_metadata(cfg, iteration=iteration)
    save_backbone(path, state, metadata)
    save_safetensors(path.with_suffix(".safetensors"), state, metadata)
    logging.getLogger(__name__).info("Wrote the pretrained backbone to %s and .safetensors", path)


class ExportBackboneHook(HookBase):
    """Write the backbone as ``backbone.pkl`` and ``backbone.safetensors`` into a folder when training is complete."""

    def __init__(self, cfg, output_dir: str):
        """Store the folder, and the config for the file's metadata."""
        self._cfg = cfg
        self._path = Path(output_dir) / "backbone.pkl"

    def after_train(self) -> None:
        # Also called when training fails or is asked to stop; an incomplete pretraining must not be exported.
        if comm.is_main_process() and self.trainer.iter >= self.trainer.max_iter:
            done = max(self.trainer.start_iter, self.trainer.max_iter)  # a resumed run may be longer than it should be
            export_backbone(self._cfg, self.trainer.model, self._path, done)

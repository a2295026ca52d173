"""Training: set-up, trainer, hooks, launcher."""

from densesiam_d2.engine.hooks import ExportBackboneHook, ProgressHook
from densesiam_d2.engine.launch import launch
from densesiam_d2.engine.setup import argument_parser, load_config, prepare, setup
from densesiam_d2.engine.trainer import Trainer

__all__ = [
    "ExportBackboneHook",
    "ProgressHook",
    "Trainer",
    "argument_parser",
    "launch",
    "load_config",
    "prepare",
    "setup",
]

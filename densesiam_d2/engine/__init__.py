"""Training: set-up, trainer, hooks, launcher."""

from densesiam_d2.engine.dry_run import dry_run
from densesiam_d2.engine.exact_resume import ExactResumeHook
from densesiam_d2.engine.hooks import ExportBackboneHook, ProgressHook
from densesiam_d2.engine.launch import launch
from densesiam_d2.engine.run_lock import claim_folder
from densesiam_d2.engine.setup import argument_parser, check_evaluators, checked_config, load_config, setup
from densesiam_d2.engine.trainer import Trainer

__all__ = [
    "ExactResumeHook",
    "ExportBackboneHook",
    "ProgressHook",
    "Trainer",
    "argument_parser",
    "check_evaluators",
    "checked_config",
    "claim_folder",
    "dry_run",
    "launch",
    "load_config",
    "setup",
]

"""DenseSiam and related methods as a detectron2 extension.

from detectron2.config import get_cfg
from densesiam_d2 import add_densesiam_config

cfg = get_cfg()
add_densesiam_config(cfg)
"""

import importlib
import logging
import warnings

# Hide torch's warnings about detectron2's code: every command would print them, and users cannot fix them.
warnings.filterwarnings("ignore", message="`torch.jit.script", category=FutureWarning)
warnings.filterwarnings("ignore", message="torch.meshgrid", category=UserWarning)
logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)

__version__ = "0.1.0"

# Public name -> module. A name is imported when it is first used, so that `densesiam_d2.geometry`, `.losses` and
# `.layers` work without detectron2.
_EXPORTS = {
    "add_densesiam_config": "config",
    "check_config": "config_checks",
    "DenseSiam": "modeling.meta_arch",
    "PseudoLabelSemSegHead": "modeling",
    "ExactResumeHook": "engine",
    "ExportBackboneHook": "engine",
    "ProgressHook": "engine",
    "Trainer": "engine",
    "TwoViewDatasetMapper": "data",
    "build_lr_scheduler": "solver",
    "build_optimizer": "solver",
    "build_two_view_train_loader": "data",
    "register_path_datasets": "data",
    "set_epochs": "solver",
}
__all__ = [*_EXPORTS, "__version__"]


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module 'densesiam_d2' has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f"densesiam_d2.{_EXPORTS[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name != "detectron2":
            raise
        raise ModuleNotFoundError(
            "densesiam_d2 needs detectron2, which has no release on the package index: see 'Install' in README.md",
            name="detectron2",
        ) from None

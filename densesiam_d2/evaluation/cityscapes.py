"""Cityscapes instance AP by the official scripts, on both builds of detectron2.

Since December 2024 detectron2's main branch imports the scripts from ``deeplearning.projects.cityscapesApi``, a package
that exists only inside Meta; earlier sources import ``cityscapesscripts``. Here the former name is made an alias of the
installed ``cityscapesscripts``, so that detectron2's own loader and evaluators run unchanged on either.
"""

import importlib
import importlib.util
import sys
from collections.abc import Iterable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from unittest import mock

from detectron2.data import MetadataCatalog
from detectron2.evaluation import CityscapesInstanceEvaluator as _CityscapesInstanceEvaluator

__all__ = ["CityscapesInstanceEvaluator", "ensure_cityscapes_api"]

_ALIAS = "deeplearning.projects.cityscapesApi.cityscapesscripts"


class _CityscapesAlias(MetaPathFinder, Loader):
    """Importer under which ``deeplearning.projects.cityscapesApi.cityscapesscripts.x`` is ``cityscapesscripts.x``."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        below = name.startswith(f"{_ALIAS}.")
        above = f"{_ALIAS}.".startswith(f"{name}.") and PathFinder.find_spec(name, path) is None  # a real one wins
        return ModuleSpec(name, self, is_package=True) if above or below else None

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        # The parents (deeplearning, ...) stay empty packages. The alias and what is below it put the real module in
        # their place, which the import system allows and which keeps one copy of the scripts' global settings.
        name = module.__name__
        if name == _ALIAS or name.startswith(f"{_ALIAS}."):
            sys.modules[name] = importlib.import_module(f"cityscapesscripts{name.removeprefix(_ALIAS)}")


def ensure_cityscapes_api(dataset_names: Iterable[str] | None = None) -> None:
    """Make detectron2's Cityscapes instance loader and evaluators work, or say what is missing.

    Call it once at setup, before datasets are loaded; calling it again is harmless. Processes that are started afresh
    (not forked) need their own call.

    Args:
        dataset_names: datasets of the run; nothing is done unless one of them has Cityscapes instances. None: always.

    Raises:
        ImportError: cityscapesscripts or shapely is not installed.
    """
    if dataset_names is not None and not any(
        MetadataCatalog.get(name).get("evaluator_type") == "cityscapes_instance" for name in dataset_names
    ):
        return
    missing = [name for name in ("cityscapesscripts", "shapely") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"Cityscapes instances need {' and '.join(missing)}: pip install 'densesiam_d2[cityscapes]'")
    if not any(isinstance(finder, _CityscapesAlias) for finder in sys.meta_path):
        # First: the path finder would load second copies of the scripts through the real package's __path__.
        sys.meta_path.insert(0, _CityscapesAlias())


class CityscapesInstanceEvaluator(_CityscapesInstanceEvaluator):
    """detectron2's evaluator of instance AP and AP50, after :func:`ensure_cityscapes_api`.

    All ranks write their predictions into one temporary directory and the main process scores them, so it works in
    several processes of one machine, not on several machines (detectron2 checks this).

    Args:
        dataset_name: a dataset with metadata ``thing_classes`` and ``gt_dir``.
    """

    def __init__(self, dataset_name: str) -> None:
        ensure_cityscapes_api()
        super().__init__(dataset_name)

    def evaluate(self) -> dict | None:
        """Return {"segm": {"AP", "AP50"}} in percent in the main process, None in the others."""
        # Loaded here: the scripts read the environment at import.
        script = importlib.import_module("cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling")
        # It would leave a "matches.json" that nobody reads in the current directory, or fail where that is read-only.
        with mock.patch.object(script, "writeDict2JSON"):
            return super().evaluate()

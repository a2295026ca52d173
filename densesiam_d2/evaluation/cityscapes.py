"""Cityscapes instance AP by the official scripts, on both builds of detectron2.

Since December 2024 detectron2's main branch imports the scripts from ``deeplearning.projects.cityscapesApi``, a package
that exists only inside Meta; earlier sources import ``cityscapesscripts``. Here the former name is made an alias of the
installed ``cityscapesscripts``, so that detectron2's own loader and evaluators run unchanged on either.
"""

import importlib
import importlib.util
import math
import sys
from collections.abc import Iterable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from unittest import mock

import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import CityscapesInstanceEvaluator as _CityscapesInstanceEvaluator
from detectron2.structures import Instances

from densesiam_d2.evaluation.names import check_predicted_classes, warn_of_absent

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

    Attributes:
        absent_classes: after :meth:`evaluate`, names of the classes without an instance that counts.
    """

    def __init__(self, dataset_name: str, order: Sequence[int] | None = None) -> None:
        """Load the official scripts.

        Args:
            dataset_name: a dataset with metadata ``thing_classes`` and ``gt_dir``.
            order: the dataset's number of each class of the model; None where both count alike.
        """
        ensure_cityscapes_api()
        super().__init__(dataset_name)
        self._dataset_name = dataset_name
        self._order = None if order is None else torch.as_tensor(order)
        self.absent_classes = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Write the predictions of one batch, with the class numbers of the dataset.

        Raises:
            ValueError: a class is predicted that the dataset does not have.
        """
        for output in outputs:
            if "instances" in output:
                check_predicted_classes(self._dataset_name, output["instances"], len(self._metadata.thing_classes))
        super().process(inputs, outputs if self._order is None else [self._in_order(output) for output in outputs])

    def _in_order(self, output: dict) -> dict:
        """Return an output with the class numbers of the dataset."""
        if "instances" not in output:
            return output
        instances = Instances(output["instances"].image_size, **output["instances"].get_fields())
        instances.pred_classes = self._order[instances.pred_classes.cpu()]
        return {**output, "instances": instances}

    def evaluate(self) -> dict | None:
        """Return {"segm": {"AP", "AP50"}} in percent in the main process, None in the others."""
        # Loaded here: the scripts read the environment at import.
        script = importlib.import_module("cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling")
        averages, compute_averages = {}, script.computeAverages

        def keep_averages(*args):
            averages.update(compute_averages(*args))
            return averages

        with (
            # It would leave a "matches.json" that nobody reads in the current directory, or fail where that is
            # read-only.
            mock.patch.object(script, "writeDict2JSON"),
            mock.patch.object(script, "computeAverages", keep_averages),
        ):
            results = super().evaluate()
        if results is not None:
            by_class = averages["classes"]
            self.absent_classes = [name for name in by_class if math.isnan(by_class[name]["ap"])]
            warn_of_absent(self._dataset_name, self.absent_classes, "instance")
        return results

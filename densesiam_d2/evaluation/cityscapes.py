"""Cityscapes instance AP by the official scripts, on both builds of detectron2.

Since December 2024 detectron2's main branch imports the scripts from ``deeplearning.projects.cityscapesApi``, a package
that exists only inside Meta; earlier sources import ``cityscapesscripts``. Here the installed modules are registered
under both names, so that detectron2's own loader and evaluators run unchanged on either.
"""

import copy
import importlib
import importlib.util
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType

import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import CityscapesInstanceEvaluator as _CityscapesInstanceEvaluator
from detectron2.structures import Instances
from detectron2.utils import comm

from densesiam_d2.evaluation.names import check_predicted_classes, warn_of_absent

__all__ = ["CityscapesInstanceEvaluator", "ensure_cityscapes_api"]

_PARENTS = ("deeplearning", "deeplearning.projects", "deeplearning.projects.cityscapesApi")
# What detectron2 imports, and the packages around it.
_MODULES = (
    "cityscapesscripts",
    "cityscapesscripts.helpers",
    "cityscapesscripts.helpers.labels",
    "cityscapesscripts.evaluation",
    "cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling",
    "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling",
)


def ensure_cityscapes_api(dataset_names: Iterable[str] | None = None) -> None:
    """Make detectron2's Cityscapes instance loader and evaluators work, or say what is missing.

    Call it once at setup, before datasets are loaded; calling it again is harmless. Processes that are spawned instead
    of forked need their own call.

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
    for name in _PARENTS:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            sys.modules[name] = ModuleType(name)
    for name in _MODULES:
        sys.modules[f"{_PARENTS[-1]}.{name}"] = importlib.import_module(name)


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
            order: the dataset's number of each class of the model; None if both have the same order.
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
        """Return {"segm": {"AP", "AP50"}} in percent in the main process, None in the others.

        Calls the parts of the official ``evaluateImgLists``, which itself would leave a file "matches.json" in the
        current directory.

        Raises:
            FileNotFoundError: there is no ground truth.
        """
        comm.synchronize()
        if not comm.is_main_process():
            return None
        script = importlib.import_module("cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling")
        truth = [str(path) for path in Path(self._metadata.gt_dir).glob("*/*_gtFine_instanceIds.png")]
        if not truth:
            raise FileNotFoundError(f"{self._metadata.gt_dir} has no files */*_gtFine_instanceIds.png to evaluate with")
        args = copy.copy(script.args)
        args.predictionPath, args.predictionWalk = str(Path(self._temp_dir).absolute()), None
        args.gtInstancesFile = str(Path(self._temp_dir, "gtInstances.json"))
        args.colorized = False
        script.setInstanceLabels(args)
        predicted = [script.getPrediction(path, args) for path in truth]
        matches = script.matchGtWithPreds(predicted, truth, script.getGtInstances(truth, args), args)
        averages = script.computeAverages(script.evaluateMatches(matches, args), args)
        script.printResults(averages, args)
        self._working_dir.cleanup()
        by_class = averages["classes"]
        self.absent_classes = [name for name in by_class if math.isnan(by_class[name]["ap"])]
        warn_of_absent(self._dataset_name, self.absent_classes, "instance")
        return {"segm": {"AP": averages["allAp"] * 100, "AP50": averages["allAp50%"] * 100}}

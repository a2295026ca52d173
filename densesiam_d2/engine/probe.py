"""Score the backbone on a labelled set during pretraining, without any influence on the training."""

import logging
import time

from detectron2.config import CfgNode
from detectron2.engine import hooks
from detectron2.utils import comm

from densesiam_d2.config_checks import ConfigError
from densesiam_d2.data.order import seeded
from densesiam_d2.layers import unwrap
from densesiam_d2.probe.features import FrozenFeatures, build_random_features
from densesiam_d2.probe.run import probe
from densesiam_d2.probe.truth import labelled_pair

__all__ = ["ProbeHook"]

LARGE_SHARE = 0.05  # of the time of the training; above it, a larger period is proposed

logger = logging.getLogger(__name__)


class ProbeHook(hooks.EvalHook):
    """Every ``TEST.PROBE.PERIOD`` iterations and at the end, log the ridge probe as probe/mIoU and probe/pACC.

    The numbers are those of ``tools.probe`` for the backbone that the method exports. A new run is also scored before
    its first step, as probe/start_mIoU and probe/start_pACC; mistakes in the data are found then. A probe that fails
    later, perhaps because a file cannot be read any more, is reported, and training goes on.

    The probe has a network of its own, into which it copies the weights. Only the main process computes; the others
    wait at a barrier, so RUN.DIST_TIMEOUT_SECONDS must be longer than a probe. The watchdog does not count this time.
    """

    def __init__(self, cfg: CfgNode):
        """Read the labels and build the network in the main process; call it in all processes.

        Raises:
            LabelsError: labels cannot be used; raised in all processes.
            ValueError: the two sets have different classes, or the backbone has no such features; likewise.
        """
        super().__init__(cfg.TEST.PROBE.PERIOD, self._score_or_report)
        problem = None
        if comm.is_main_process():
            try:
                self._features, self._sets = _prepare(cfg)
            except (ValueError, OSError) as error:  # the others wait for a result, so send them the error
                problem = error
        problem = comm.all_gather(problem)[0]
        if problem:
            raise problem
        self._seed = max(cfg.SEED, 0)
        self._ended: float | None = None  # when the last probe ended

    def before_train(self) -> None:
        if self.trainer.start_iter == 0:
            if comm.is_main_process():
                start = {f"probe/start_{name}": value for name, value in self._score().items()}
                self.trainer.storage.put_scalars(**start, smoothing_hint=False)
            comm.synchronize()

    def _score_or_report(self) -> dict[str, dict[str, float]]:
        """Return {"probe": scores} in the main process, an empty dict in the others and after an error."""
        try:
            return {"probe": self._score()} if comm.is_main_process() else {}
        except (ValueError, OSError, RuntimeError) as error:
            logger.error("The probe failed, and training goes on: %s", error)
            return {}

    def _score(self) -> dict[str, float]:
        """Return the scores of the exported backbone."""
        began = time.perf_counter()
        model = unwrap(self.trainer.model)
        weights = model.get_submodule(model.exports).state_dict()
        frozen = self._features.backbone
        frozen.load_state_dict({name: weights[name] for name in frozen.state_dict()})
        train, test = self._sets
        result = probe(self._features, train, test, train.classes, ks=(), knn_cells=0, seed=self._seed)
        scores = {name: result["ridge"][name] for name in ("mIoU", "pACC")}
        logger.info("Probe on %s: mIoU %.2f, pACC %.2f, %s s", test.name, *scores.values(), result["seconds"])
        self._compare_times(began, time.perf_counter())
        return scores

    def _compare_times(self, began: float, ended: float) -> None:
        """Log a warning if the probe takes a large share of the time."""
        if self._ended is not None and self.trainer.iter < self.trainer.max_iter:
            own, others = ended - began, began - self._ended
            if own > LARGE_SHARE * others:
                logger.warning(
                    "The probe took %.1f s, the %d iterations before it %.1f s: set TEST.PROBE.PERIOD %d or more, or "
                    "use fewer images",
                    own,
                    self._period,
                    others,
                    self._period * own / others / LARGE_SHARE,
                )
        self._ended = ended


def _prepare(cfg: CfgNode) -> tuple[FrozenFeatures, tuple]:
    settings = cfg.TEST.PROBE
    sets = labelled_pair(settings.TRAIN, settings.TEST, white_level=cfg.INPUT.WHITE_LEVEL)
    with seeded(0):  # building a network draws random numbers
        try:
            features = build_random_features(cfg, settings.FEATURES, size=settings.SIZE, seed=0)
        except ValueError as error:
            raise ConfigError(f"TEST.PROBE.FEATURES: {error}") from error
    return features, sets

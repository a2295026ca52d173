"""The trainer of every stage: pretraining, unsupervised segmentation, transfer."""

import contextlib
import functools
import logging
import os
import re
import signal
import traceback
import weakref
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from detectron2.data import MetadataCatalog, build_detection_test_loader
from detectron2.engine import DefaultTrainer, hooks
from detectron2.engine.train_loop import TrainerBase
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset, verify_results
from detectron2.layers import FrozenBatchNorm2d
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, JSONWriter, TensorboardXWriter
from fvcore.common.history_buffer import HistoryBuffer
from torch.nn.parallel import DistributedDataParallel

from densesiam_d2.checkpoint.export import expected_metadata
from densesiam_d2.checkpoint.loading import CheckedCheckpointer
from densesiam_d2.config_checks import ConfigError
from densesiam_d2.data.datasets import check_records
from densesiam_d2.data.detection_mapper import DetectionDatasetMapper
from densesiam_d2.data.loader import (
    TrainLoader,
    build_labelled_train_loader,
    build_two_view_train_loader,
    protect_workers,
)
from densesiam_d2.data.sem_seg_mapper import SemSegDatasetMapper
from densesiam_d2.engine.collapse import CollapseMonitor
from densesiam_d2.engine.early_stop import EarlyStopHook, LeaveLoopHook, StoppedEarly
from densesiam_d2.engine.exact_resume import ExactResumeHook
from densesiam_d2.engine.hooks import ExportBackboneHook, PreciseBNHook, ProgressHook, export_backbone
from densesiam_d2.engine.probe import ProbeHook
from densesiam_d2.engine.saving import BestCheckpointHook, CheckpointHook, best_period
from densesiam_d2.engine.setup import record_config, with_cpu_norms
from densesiam_d2.engine.signals import handle_stop_signals
from densesiam_d2.engine.step import StepTrainer
from densesiam_d2.engine.training_pictures import TrainingPicturesHook
from densesiam_d2.engine.watchdog import WatchdogHook
from densesiam_d2.engine.writers import SafeWriter, SSLMetricPrinter
from densesiam_d2.evaluation.build import build_evaluator
from densesiam_d2.evaluation.clusters import ClusterSemSegEvaluator
from densesiam_d2.evaluation.json_scores import write_json
from densesiam_d2.evaluation.sem_seg import SemSegConfusionEvaluator
from densesiam_d2.layers import unwrap
from densesiam_d2.modeling import BASELINES, model_output, trains_on_views
from densesiam_d2.processes import PREEMPTED
from densesiam_d2.reporting.evaluation_pictures import write_evaluation_pictures
from densesiam_d2.solver import build_lr_scheduler, build_optimizer, set_epochs

__all__ = ["Trainer"]

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """detectron2's default trainer with this project's loaders, optimizer, checkpointer, evaluators and hooks."""

    def __init__(self, cfg):
        """Build everything from a config, which :func:`densesiam_d2.check_config` can check beforehand.

        ``DefaultTrainer.__init__`` is not called: it pins every process to a GPU and checks no weights.
        """
        TrainerBase.__init__(self)
        scaled = in_this_many_processes(cfg)
        with _one_line("the training images cannot be loaded"):
            data_loader = self.build_train_loader(scaled)
        cfg = in_iterations(cfg, data_loader) if cfg.SOLVER.EPOCHS > 0 or cfg.SOLVER.WARMUP_EPOCHS > 0 else scaled
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        model = distribute(model)
        precision = cfg.SOLVER.AMP.PRECISION if cfg.SOLVER.AMP.ENABLED else "fp32"
        options = {"max_dropped": cfg.RUN.MAX_DROPPED_STEPS, "accumulate": cfg.SOLVER.ACCUMULATE}
        self._trainer = StepTrainer(model, data_loader, optimizer, precision=precision, **options)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = CheckedCheckpointer(
            model,
            cfg.OUTPUT_DIR,
            expect=expected_metadata(cfg),
            strict=cfg.MODEL.WEIGHTS_STRICT,
            trainer=weakref.proxy(self),
        )
        self.start_iter = 0
        self._past_last_step = False
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        super().resume_or_load(resume)
        if self.start_iter or self.cfg.MODEL.WEIGHTS:
            return
        if not trains_on_views(self.cfg):
            logger.warning("MODEL.WEIGHTS is empty: this model is trained from random weights")
        elif any(isinstance(module, FrozenBatchNorm2d) for module in self.model.modules()):
            logger.warning(
                "MODEL.WEIGHTS is empty, so FrozenBN has no statistics to keep, and does nothing: set SyncBN in "
                "MODEL.TORCHVISION.NORM or MODEL.RESNETS.NORM"
            )

    def state_dict(self) -> dict:
        """Return what detectron2 saves of a trainer, and the names of the model's classes for ``--eval-only``."""
        return {**super().state_dict(), "classes": list(self.cfg.MODEL.CLASS_NAMES)}

    def build_hooks(self) -> list:
        """Return detectron2's hooks, with the watchdog and exact resume before them and our own checkpoint hook.

        For a method that trains on views, ProgressHook and the method's own hooks come first, so that the watchdog does
        not count their time; the collapse monitor and the export of the backbone come last. With TEST.BEST_METRIC the
        scores come before the checkpoints.
        """
        cfg, solver = self.cfg, self.cfg.SOLVER
        stock = [h for h in super().build_hooks() if h and not isinstance(h, hooks.PeriodicCheckpointer)]
        stock = [
            PreciseBNHook(h._period, h._model, h._data_loader, h._num_iter) if isinstance(h, hooks.PreciseBN) else h
            for h in stock
        ]
        keep = {"keep_last": solver.CHECKPOINT_KEEP_LAST, "keep_every": solver.CHECKPOINT_KEEP_EVERY}
        checkpoints = CheckpointHook(self.checkpointer, solver.CHECKPOINT_PERIOD, **keep)
        evaluation = next(i for i, h in enumerate(stock) if isinstance(h, hooks.EvalHook))
        scores = [stock[evaluation]]
        if cfg.TEST.MONITOR.DATASET:
            scores.append(hooks.EvalHook(cfg.TEST.MONITOR.PERIOD, self._score_monitor))
        if cfg.TEST.PROBE.TRAIN:
            scores.append(ProbeHook(cfg))
        if cfg.TEST.BEST_METRIC:
            # A checkpoint then knows the comparison of its own iteration, which a resumed run does not repeat.
            stock[evaluation : evaluation + 1] = [*scores, *self._build_best_hooks(), checkpoints]
        else:
            stock[evaluation : evaluation + 1] = [checkpoints, *scores]
        if cfg.VIS_PERIOD > 0 and model_output(cfg) in ("features", "semantic") and comm.is_main_process():
            stock.insert(0, TrainingPicturesHook(cfg))  # detectron2's detectors make theirs themselves
        ret = [WatchdogHook(cfg.RUN.WATCHDOG_SECONDS), ExactResumeHook(cfg), *stock]
        if trains_on_views(cfg):
            watch = CollapseMonitor(stop=cfg.RUN.STOP_ON_COLLAPSE)
            model = unwrap(self._trainer.model)
            ret = [ProgressHook(), *model.build_hooks(cfg), *ret, watch]
            if not isinstance(model, BASELINES):  # their backbone has not learned
                ret.append(ExportBackboneHook(cfg, cfg.OUTPUT_DIR))
        return ret + [LeaveLoopHook(hook) for hook in stock if isinstance(hook, EarlyStopHook)]

    def _build_best_hooks(self) -> list:
        """Return the hooks that keep the best model, with its backbone in a pretraining, and stop when it is old."""
        cfg, options = self.cfg, {}
        model = unwrap(self._trainer.model)
        if trains_on_views(cfg) and not isinstance(model, BASELINES):
            path = Path(cfg.OUTPUT_DIR) / "backbone_best.pkl"
            options["on_best"] = functools.partial(export_backbone, cfg, model, path)
        best = BestCheckpointHook(best_period(cfg), self.checkpointer, cfg.TEST.BEST_METRIC, **options)
        return [best, EarlyStopHook(best, best_period(cfg), cfg.TEST.PATIENCE)] if cfg.TEST.PATIENCE else [best]

    def build_writers(self) -> list:
        folder = self.cfg.OUTPUT_DIR
        return [
            CommonMetricPrinter(self.max_iter),
            SafeWriter(lambda: JSONWriter(str(Path(folder) / "metrics.json"))),
            # TensorBoard hides what a killed run wrote after its last checkpoint.
            SafeWriter(lambda: TensorboardXWriter(folder, purge_step=self.start_iter)),
            SSLMetricPrinter(),
        ]

    def before_train(self) -> None:
        # Keep 1,000 values per metric: a million of each would take a gigabyte, and nothing reads older values.
        self.storage._history.default_factory = functools.partial(HistoryBuffer, max_length=1000)
        super().before_train()

    def train(self):
        """Write config.yaml and run training; on SIGTERM, SIGUSR1 or Ctrl-C save and exit with code 75."""
        record_config(self.cfg)
        if any(isinstance(hook, EarlyStopHook) and hook.exhausted() for hook in self._hooks):
            logger.info("This run has ended by TEST.PATIENCE %d: nothing is left to train", self.cfg.TEST.PATIENCE)
            self.max_iter = self.start_iter
        elif self.start_iter >= self.max_iter:
            logger.info("This run has ended: %d of %d iterations are done", self.start_iter, self.max_iter)
        with handle_stop_signals(self._ask_to_stop):
            with contextlib.suppress(StoppedEarly):
                TrainerBase.train(self, self.start_iter, self.max_iter)
            # As DefaultTrainer.train does, which an early stop would leave.
            results = getattr(self, "_last_eval_results", None)
            self.check_expected_results(self.cfg, results)
            return results

    @staticmethod
    def check_expected_results(cfg, results: dict | None) -> None:
        """Exit with code 1 if results, the dict of ``test``, are not TEST.EXPECTED_RESULTS; scores may be missing."""
        if comm.is_main_process():
            verify_results(cfg, defaultdict(dict, results or {}))

    def after_step(self) -> None:
        super().after_step()
        if not comm.is_main_process():
            self.storage.clear_images()  # detectron2's detectors put them there in all processes

    def after_train(self) -> None:
        self._past_last_step = True
        super().after_train()

    def _ask_to_stop(self, number: int) -> None:
        if self._past_last_step:
            os.write(2, b"asked to stop: leaving what follows training; --resume does it again\n")
            raise SystemExit(PREEMPTED)
        self._trainer.stop_requested = True
        again = b" (Ctrl-C again: at once, without saving)" if number == signal.SIGINT else b""
        os.write(2, b"asked to stop: saving after this step, then leaving%b\n" % again)  # a handler must not log

    @classmethod
    def build_model(cls, cfg):
        with _one_line("the model cannot be built"):
            model = super().build_model(with_cpu_norms(cfg))
        # Convolutions are faster in this memory format: a little on the CPU, much more on tensor cores.
        return model.to(memory_format=torch.channels_last)

    build_optimizer = staticmethod(build_optimizer)
    build_lr_scheduler = staticmethod(build_lr_scheduler)

    @classmethod
    def build_train_loader(cls, cfg):
        if trains_on_views(cfg):
            return build_two_view_train_loader(cfg)
        if model_output(cfg) == "semantic":
            return build_labelled_train_loader(cfg, SemSegDatasetMapper(cfg, True, cfg.DATASETS.TRAIN), instances=False)
        return build_labelled_train_loader(cfg, DetectionDatasetMapper(cfg, True))

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        instances = model_output(cfg) == "instances"
        mapper = DetectionDatasetMapper(cfg, False) if instances else SemSegDatasetMapper(cfg, False, [dataset_name])
        parts = build_detection_test_loader.from_config(cfg, dataset_name, mapper=mapper)
        check_records([dataset_name], parts["dataset"])
        return protect_workers(build_detection_test_loader(**parts))

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        folder = cls._inference_folder(cfg, dataset_name)
        return build_evaluator(cfg, dataset_name, folder, semantic=model_output(cfg) == "semantic")

    @staticmethod
    def _inference_folder(cfg, dataset_name: str) -> Path:
        """Return where the evaluator of a test set writes; several test sets have a folder each."""
        folder = Path(cfg.OUTPUT_DIR) / "inference"
        return folder if len(cfg.DATASETS.TEST) < 2 else folder / re.sub(r"[^\w.-]+", "_", dataset_name)

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        """Evaluate on every test set, and also write scores and pictures to OUTPUT_DIR.

        ``results.json`` has the scores and how they were computed. Beside the evaluator's own file of a set with label
        maps are ``confusion.png`` and ``contact_sheet.png``.
        """
        names = cfg.DATASETS.TEST
        if evaluators is None:
            evaluators = [cls.build_evaluator(cfg, name) for name in names]
        elif isinstance(evaluators, DatasetEvaluator):
            evaluators = [evaluators]
        cls._fit_matchings(cfg, model, evaluators)
        results = super().test(cfg, model, evaluators)
        if comm.is_main_process() and names:
            per_dataset = {names[0]: results} if len(names) == 1 else dict(results)
            for name, evaluator in zip(names, evaluators, strict=True):
                if getattr(evaluator, "absent_classes", None):  # detectron2's hooks accept only numbers
                    per_dataset[name] = {**per_dataset[name], "absent_classes": evaluator.absent_classes}
                if isinstance(evaluator, SemSegConfusionEvaluator):
                    per_dataset[name] = {**per_dataset[name], "protocol": evaluator.protocol}
                    _write_pictures(evaluator, name, cls._inference_folder(cfg, name))
            path = Path(cfg.OUTPUT_DIR) / "results.json"
            write_json(path, per_dataset)
            logger.info("Results are in %s", path)
        return results

    @classmethod
    def _fit_matchings(cls, cfg, model, evaluators) -> None:
        """Match clusters with classes on TEST.SEM_SEG_MATCHING_FIT, for evaluators of clusters."""
        name = cfg.TEST.SEM_SEG_MATCHING_FIT
        of_clusters = [evaluator for evaluator in evaluators if isinstance(evaluator, ClusterSemSegEvaluator)]
        if not name or not of_clusters:
            return
        fitted = build_evaluator(cfg, name, semantic=True)
        inference_on_dataset(model, cls.build_test_loader(cfg, name), fitted)
        for evaluator in of_clusters:
            evaluator.fit(fitted)

    def _score_monitor(self) -> dict[str, dict[str, float]]:
        """Return {"monitor": scores} of TEST.MONITOR.DATASET in the main process, without those of single classes."""
        name = self.cfg.TEST.MONITOR.DATASET
        evaluator = build_evaluator(self.cfg, name, semantic=True)
        results = inference_on_dataset(self.model, self.build_test_loader(self.cfg, name), evaluator)
        scores = results.get("sem_seg", {})
        return (
            {"monitor": {key: value for key, value in scores.items() if not key.startswith("IoU-")}} if scores else {}
        )


@contextlib.contextmanager
def _one_line(what: str) -> Iterator[None]:
    """Turn errors about values of the config into a ConfigError; detectron2's own have often neither text nor key."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(f"{what}: {error}") from error
    except (KeyError, AssertionError, AttributeError) as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__} {error}".strip()
        raise ConfigError(f"{what}: {text} in {place.filename}, line {place.lineno}: {place.line}") from error


def _write_pictures(evaluator: SemSegConfusionEvaluator, name: str, folder: Path) -> None:
    """Write the pictures of an evaluated test set."""
    metadata = MetadataCatalog.get(name)
    colors = metadata.get("stuff_colors")
    colors = None if colors is None else np.array(colors, np.uint8)
    matched = evaluator.cluster_classes, evaluator.examples, colors
    write_evaluation_pictures(folder, evaluator.confusion, metadata.stuff_classes, *matched)


def in_iterations(cfg, data_loader):
    """Return a config with epochs as iterations, scaled to this number of processes.

    Raises:
        ConfigError: the loader is not one of this project, so the number of images is not known.
    """
    if not isinstance(data_loader, TrainLoader):
        raise ConfigError(
            f"SOLVER.EPOCHS and WARMUP_EPOCHS need DATALOADER.SAMPLER_TRAIN TrainingSampler, not "
            f"{cfg.DATALOADER.SAMPLER_TRAIN}: set them to 0, and SOLVER.MAX_ITER"
        )
    cfg = cfg.clone()
    cfg.defrost()
    set_epochs(cfg, len(data_loader.dataset))
    cfg.freeze()
    return in_this_many_processes(cfg)


def in_this_many_processes(cfg):
    """Return a config scaled from SOLVER.REFERENCE_WORLD_SIZE processes to those of this run.

    detectron2 rounds short periods to 0, which would turn evaluation off, and checkpoints into a division by zero, and
    leaves the last rate of the cosine as it is.
    """
    scaled = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
    if scaled is not cfg:
        scaled.defrost()
        scaled.SOLVER.BASE_LR_END *= scaled.SOLVER.BASE_LR / cfg.SOLVER.BASE_LR
        scaled.SOLVER.CHECKPOINT_PERIOD = max(1, scaled.SOLVER.CHECKPOINT_PERIOD)
        scaled.TEST.EVAL_PERIOD = max(min(1, cfg.TEST.EVAL_PERIOD), scaled.TEST.EVAL_PERIOD)
        scaled.freeze()
    return scaled


def distribute(model):
    """Wrap a model for data-parallel training on CUDA or CPU; in a single process return it unchanged.

    ``detectron2.engine.create_ddp_model`` works only with one GPU per process.
    """
    if comm.get_world_size() == 1:
        return model
    on_gpu = next(model.parameters()).is_cuda
    return DistributedDataParallel(
        model, device_ids=[comm.get_local_rank()] if on_gpu else None, broadcast_buffers=False
    )

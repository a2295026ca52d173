"""The trainer of every stage: pretraining, unsupervised segmentation, transfer."""

import logging
import weakref
from pathlib import Path

import torch
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.engine import DefaultTrainer, SimpleTrainer
from detectron2.engine.train_loop import TrainerBase
from detectron2.modeling import META_ARCH_REGISTRY, SemanticSegmentor
from detectron2.utils import comm
from torch.nn.parallel import DistributedDataParallel

from densesiam_d2.checkpoint.export import expected_metadata
from densesiam_d2.checkpoint.loading import CheckedCheckpointer
from densesiam_d2.data.loader import build_two_view_train_loader
from densesiam_d2.data.sem_seg_mapper import SemSegDatasetMapper
from densesiam_d2.engine.amp import MixedPrecisionTrainer
from densesiam_d2.engine.hooks import ExportBackboneHook, ProgressHook, SSLMetricPrinter
from densesiam_d2.evaluation.build import build_evaluator
from densesiam_d2.evaluation.json_scores import write_json
from densesiam_d2.modeling import DenseSiam, trains_on_views
from densesiam_d2.solver import build_lr_scheduler, build_optimizer

__all__ = ["Trainer"]

logger = logging.getLogger(__name__)


def _meta_arch(cfg) -> type:
    return META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)


class Trainer(DefaultTrainer):
    """detectron2's default trainer with this project's loaders, optimizer, checkpointer, evaluators and hooks."""

    def __init__(self, cfg):
        """Build everything from a config.

        ``DefaultTrainer.__init__`` is not called: it pins every process to a GPU and checks no weights.
        """
        TrainerBase.__init__(self)
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        model = distribute(model)
        if cfg.SOLVER.AMP.ENABLED:
            amp = {"device": torch.device(cfg.MODEL.DEVICE).type, "precision": cfg.SOLVER.AMP.PRECISION}
            self._trainer = MixedPrecisionTrainer(model, data_loader, optimizer, **amp)
        else:
            self._trainer = SimpleTrainer(model, data_loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = CheckedCheckpointer(
            model,
            cfg.OUTPUT_DIR,
            expect=expected_metadata(cfg),
            strict=cfg.MODEL.WEIGHTS_STRICT,
            trainer=weakref.proxy(self),
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    def build_hooks(self) -> list:
        """Return detectron2's hooks, preceded by the time and followed by the export for two-view methods."""
        ret = super().build_hooks()
        if trains_on_views(self.cfg):
            ret = [ProgressHook(), *ret, ExportBackboneHook(self.cfg, self.cfg.OUTPUT_DIR)]
        return ret

    def build_writers(self) -> list:
        return [*super().build_writers(), SSLMetricPrinter()]

    @classmethod
    def build_model(cls, cfg):
        model = super().build_model(cfg)
        # Convolutions are faster in this memory order: a little on the CPU, far more on tensor cores.
        return model.to(memory_format=torch.channels_last)

    @classmethod
    def build_optimizer(cls, cfg, model):
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg, optimizer):
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg):
        if trains_on_views(cfg):
            return build_two_view_train_loader(cfg)
        if issubclass(_meta_arch(cfg), SemanticSegmentor):
            return build_detection_train_loader(cfg, mapper=SemSegDatasetMapper(cfg, True, cfg.DATASETS.TRAIN))
        return build_detection_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        if issubclass(_meta_arch(cfg), SemanticSegmentor | DenseSiam):
            mapper = SemSegDatasetMapper(cfg, False, [dataset_name])
            return build_detection_test_loader(cfg, dataset_name, mapper=mapper)
        return build_detection_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        return build_evaluator(cfg, dataset_name, Path(cfg.OUTPUT_DIR) / "inference")

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        """Evaluate on every test set, and keep the numbers in ``OUTPUT_DIR/results.json`` as well."""
        results = super().test(cfg, model, evaluators)
        if comm.is_main_process() and cfg.DATASETS.TEST:
            per_dataset = {cfg.DATASETS.TEST[0]: results} if len(cfg.DATASETS.TEST) == 1 else results
            path = Path(cfg.OUTPUT_DIR) / "results.json"
            write_json(path, per_dataset)
            logger.info("Results are in %s", path)
        return results


def distribute(model):
    """Wrap a model for data parallel training on CUDA or CPU; one process needs no wrapper.

    ``detectron2.engine.create_ddp_model`` asks for a GPU per process.
    """
    if comm.get_world_size() == 1:
        return model
    on_gpu = next(model.parameters()).is_cuda
    return DistributedDataParallel(
        model, device_ids=[comm.get_local_rank()] if on_gpu else None, broadcast_buffers=False
    )

"""Run every stage of a training once and briefly: training, saving, loading, evaluation."""

import argparse
import logging
import tempfile
import time

import torch
from detectron2.config import CfgNode
from detectron2.engine import hooks
from detectron2.utils import comm

from densesiam_d2.engine.saving import BestCheckpointHook
from densesiam_d2.engine.setup import check_evaluators, setup
from densesiam_d2.engine.trainer import Trainer

__all__ = ["dry_run"]

ITERATIONS = 2


def dry_run(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Do two iterations (or the only one), save, load what was saved, and evaluate one batch of each test set.

    Args:
        cfg: the checked config; instead of its OUTPUT_DIR a temporary folder is used and removed.
        args: the parsed command line.
    """
    with tempfile.TemporaryDirectory(prefix="dry_run_", ignore_cleanup_errors=True) as folder:
        cfg = cfg.clone()
        cfg.OUTPUT_DIR, cfg.TEST.EXPECTED_RESULTS = folder, []
        cfg = setup(cfg, args)
        check_evaluators(cfg)
        start = time.perf_counter()
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=False)
        trainer.max_iter = iterations = min(ITERATIONS, trainer.max_iter)
        trainer._hooks = [h for h in trainer._hooks if not isinstance(h, hooks.EvalHook | BestCheckpointHook)]
        trainer.train()
        trained = time.perf_counter()
        comm.synchronize()  # wait until the main process has written its file
        trainer.resume_or_load(resume=True)
        for name in cfg.DATASETS.TEST:
            _evaluate_one_batch(cfg, name, trainer.model)
        comm.synchronize()
    text = f"{iterations} iteration{'s' * (iterations > 1)} in {trained - start:.1f} s with the start, saved, loaded"
    if torch.cuda.is_available():
        text += f", {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB of GPU memory at most"
    if cfg.DATASETS.TEST:
        text += f", one batch each of {', '.join(cfg.DATASETS.TEST)} evaluated"
    logging.getLogger(__name__).info("Dry run: everything worked. %s", text)


def _evaluate_one_batch(cfg: CfgNode, name: str, model: torch.nn.Module) -> None:
    evaluator = Trainer.build_evaluator(cfg, name)
    evaluator.reset()
    batch = next(iter(Trainer.build_test_loader(cfg, name)), None)
    if batch is None:  # fewer images than processes
        return
    model.eval()
    with torch.no_grad():
        evaluator.process(batch, model(batch))

#!/usr/bin/env python3
"""Pretrain, segment without labels, fine-tune and evaluate: one entrypoint.

python train_net.py --config-file configs/pretrain.yaml --num-gpus 8
python train_net.py --config-file configs/transfer/coco_mask_rcnn_R50_FPN_1x.yaml --num-gpus 8 \
    MODEL.WEIGHTS output/pretrain/backbone.pkl
python train_net.py --config-file ... --eval-only MODEL.WEIGHTS output/.../model_final.pth
python train_net.py --config-file ... --seeds 3  # SEED, SEED + 1, SEED + 2; mean and deviation in results.json
"""

import sys
from pathlib import Path

import densesiam_d2  # noqa: F401  first, because it hides torch's warnings about detectron2's code

try:
    import detectron2  # noqa: F401
except ImportError:
    sys.exit(
        "detectron2 is not installed in this environment: `make demo` installs a tested set (then: source "
        ".venv/bin/activate); for a GPU server see README.md, 'Install'"
    )

from densesiam_d2.checkpoint.export import expected_metadata
from densesiam_d2.checkpoint.loading import CheckedCheckpointer
from densesiam_d2.engine import (
    Trainer,
    argument_parser,
    check_evaluators,
    checked_config,
    claim_folder,
    dry_run,
    launch,
    setup,
)
from densesiam_d2.grid.seeds import run_seeds


def main(cfg, args):
    """Run one process of a training or evaluation.

    Args:
        cfg: the checked config.
        args: the parsed command line.
    """
    if args.dry_run:
        return dry_run(cfg, args)
    cfg = setup(cfg, args)
    check_evaluators(cfg)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        CheckedCheckpointer(
            model, cfg.OUTPUT_DIR, expect=expected_metadata(cfg), strict=cfg.MODEL.WEIGHTS_STRICT, whole_model=True
        ).resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume != "never")
        results = Trainer.test(cfg, model)
        Trainer.check_expected_results(cfg, results)
        return results
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume != "never")
    return trainer.train()


def run(main=main, words=None):
    """Do what a command line says, with ``main`` in each process."""
    args = argument_parser().parse_args(words)
    try:
        cfg = checked_config(args)
        lock = claim_folder(cfg, args)  # noqa: F841 held until this function ends
        if args.seeds and not args.dry_run:
            # A script of the user's, which registers data sets and calls run(), is started again for each seed.
            script = Path(__file__ if words is not None else sys.argv[0]).absolute()
            sys.exit(run_seeds(script, cfg, args))
    except (ValueError, OSError, ImportError) as error:
        print(f"train_net.py: {error}", file=sys.stderr)
        sys.exit(2)
    launch(main, cfg, args)


if __name__ == "__main__":
    run()

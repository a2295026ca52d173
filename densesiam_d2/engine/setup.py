"""Turn a command line into a checked, frozen config."""

import argparse
import logging
import os
import resource
import sys
import time
from itertools import chain
from operator import attrgetter
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from densesiam_d2.atomic import atomic_write
from densesiam_d2.checkpoint.files import require_weight_file
from densesiam_d2.checkpoint.resuming import newest_valid, own_checkpoints
from densesiam_d2.config import all_keys
from densesiam_d2.config_checks import ConfigError, check_config, check_values, without_effect
from densesiam_d2.data.datasets import check_datasets, scored_sets, used_sets
from densesiam_d2.data.path_datasets import register_path_datasets
from densesiam_d2.engine.config_file import load_config
from densesiam_d2.engine.labels import settle_labels
from densesiam_d2.engine.launch import under_torchrun
from densesiam_d2.evaluation.build import require_evaluator
from densesiam_d2.evaluation.cityscapes import ensure_cityscapes_api

__all__ = [
    "argument_parser",
    "checked_config",
    "load_config",
    "load_trained_config",
    "record_config",
    "with_cpu_norms",
    "setup",
]


RESUME_MODES = ("must", "auto", "never")


class _Parser(argparse.ArgumentParser):
    """A parser that accepts ``--resume`` without a mode, even if another word follows it."""

    def parse_known_args(self, args=None, namespace=None):
        words = list(sys.argv[1:] if args is None else args)
        for i, word in enumerate(words):
            if word == "--resume" and words[i + 1 : i + 2] not in [[mode] for mode in RESUME_MODES]:
                words[i] = "--resume=must"
        return super().parse_known_args(words, namespace)


def argument_parser() -> argparse.ArgumentParser:
    """Return detectron2's parser with a free port, modes of ``--resume``, ``--dry-run`` and ``--seeds``."""
    parser = _Parser(parents=[default_argument_parser()], add_help=False, conflict_handler="resolve")
    # detectron2's default is one fixed port per user, so that a second run on the same machine would fail.
    parser.set_defaults(dist_url="auto")
    parser.add_argument(
        "--resume",
        choices=RESUME_MODES,
        default="never",
        help="go on with the run in OUTPUT_DIR; without one 'auto' starts it, and 'must' (or --resume alone) stops",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="try two iterations, one save, one load and one batch of evaluation; leaves nothing behind",
    )
    parser.add_argument(
        "--seeds",
        type=_positive,
        metavar="N",
        help="train N times, with SEED, SEED + 1, ... in OUTPUT_DIR/seed_<seed>, and write mean and deviation of the "
        "scores to OUTPUT_DIR/results.json; the same command goes on where it stopped; --dry-run tries one seed",
    )
    return parser


def _positive(word: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word} is not a number above 0")
    return int(word)


def load_trained_config(config_file: str, weights: str, opts: list[str] = ()) -> CfgNode:
    """Return :func:`load_config` for applying trained weights in one process; it raises the same errors."""
    cfg = load_config(config_file, opts)
    check_values(cfg)
    cfg.MODEL.WEIGHTS = weights
    return cfg


def with_cpu_norms(cfg: CfgNode) -> CfgNode:
    """Return the config to build a model from; in a process group on the CPU, another norm replaces "SyncBN".

    ``nn.SyncBatchNorm`` refuses CPU tensors there; without a group it is plain batch norm. detectron2's "naiveSyncBN_N"
    also weighs each process by its batch size. It differs in two points: its running variance lacks the factor
    n / (n - 1), and a variance is the mean of the squares minus the square of the mean, which is inaccurate where a
    channel's mean is a thousand times its deviation.
    """
    replaced = [key for key in all_keys(cfg) if key.endswith("NORM") and attrgetter(key)(cfg) == "SyncBN"]
    if cfg.MODEL.DEVICE != "cpu" or not torch.distributed.is_initialized() or not replaced:
        return cfg
    cfg = cfg.clone()
    cfg.defrost()
    cfg.merge_from_list([word for key in replaced for word in (key, "naiveSyncBN_N")])
    cfg.freeze()
    logging.getLogger("densesiam_d2").info("CPU: naiveSyncBN_N instead of SyncBN for %s", ", ".join(replaced))
    return cfg


def checked_config(args: argparse.Namespace) -> CfgNode:
    """Return the checked config of a run, and set its number of processes; call it before the processes are started.

    Args:
        args: the parsed command line; without a GPU ``num_gpus`` becomes 1, unless it sets MODEL.DEVICE cpu.

    Returns:
        The config; MODEL.DEVICE is "cuda" or "cpu".

    Raises:
        ValueError: the config cannot work; one message lists all problems.
        FileNotFoundError: the yaml, the data or the weights do not exist.
        ImportError: a package that the data needs is not installed.
    """
    cfg = load_config(args.config_file, args.opts)
    if args.dry_run and args.eval_only:
        raise ValueError("--dry-run tries a training: leave out --eval-only, or evaluate without --dry-run")
    if under_torchrun():
        world_size = int(os.environ["WORLD_SIZE"])
    else:
        _settle_processes(cfg, args)
        world_size = args.num_gpus * args.num_machines
    check_config(cfg, world_size=world_size, eval_only=args.eval_only)
    _check_weights(cfg, args)
    used = cfg.clone()
    if args.eval_only:
        used.DATASETS.TRAIN = ()
    check_datasets(used)
    ensure_cityscapes_api(chain.from_iterable(used_sets(used).values()))
    return cfg


def _check_weights(cfg: CfgNode, args: argparse.Namespace) -> None:
    weights, earlier = cfg.MODEL.WEIGHTS, own_checkpoints(cfg.OUTPUT_DIR)
    if earlier and args.resume != "never":
        return
    on_first_machine = int(os.environ.get("GROUP_RANK", args.machine_rank)) == 0  # only it needs the files
    if args.resume == "must" and on_first_machine:
        raise ValueError(
            f"--resume: OUTPUT_DIR {cfg.OUTPUT_DIR} holds no checkpoint; check the path, or start by --resume auto"
        )
    if earlier and not (args.eval_only or args.dry_run):
        raise ValueError(
            f"OUTPUT_DIR {cfg.OUTPUT_DIR} holds an earlier run ({earlier[-1].name}): go on with it by --resume, "
            "or name another OUTPUT_DIR"
        )
    if args.eval_only and not weights and "MODEL.WEIGHTS" not in args.opts:
        raise ValueError("--eval-only needs MODEL.WEIGHTS FILE (MODEL.WEIGHTS '' if random weights are meant)")
    if weights and "://" not in weights and on_first_machine:
        require_weight_file(Path(weights.partition("?")[0]), "MODEL.WEIGHTS: file")


def _settle_processes(cfg: CfgNode, args: argparse.Namespace) -> None:
    if min(args.num_gpus, args.num_machines) < 1:
        raise ValueError(f"--num-gpus {args.num_gpus} --num-machines {args.num_machines}: both must be above 0")
    if not 0 <= args.machine_rank < args.num_machines:
        raise ValueError(f"--machine-rank {args.machine_rank}: of --num-machines {args.num_machines} the first is 0")
    if args.num_machines > 1 and args.dist_url == "auto":
        raise ValueError("--num-machines above 1 needs --dist-url tcp://HOST:PORT, an address of the first machine")
    asked = dict(zip(args.opts[::2], args.opts[1::2], strict=True)).get("MODEL.DEVICE")
    if cfg.MODEL.DEVICE.startswith("cuda"):
        available = torch.cuda.device_count()
        if args.num_gpus > available:
            raise ValueError(f"--num-gpus {args.num_gpus}, but this machine has {available}")
    elif not (torch.cuda.is_available() or asked == "cpu"):
        instead = f" instead of --num-gpus {args.num_gpus}" if args.num_gpus > 1 else ""
        print(
            f"No GPU found: running on the CPU, in one process{instead}. "
            "(For N CPU processes: --num-gpus N ... MODEL.DEVICE cpu)"
        )
        if args.num_gpus > 1 and not (args.eval_only or cfg.SOLVER.REFERENCE_WORLD_SIZE):
            print(
                f"This process has all {cfg.SOLVER.IMS_PER_BATCH} images of a batch: if its memory is too small, lower "
                f"SOLVER.IMS_PER_BATCH, or set SOLVER.REFERENCE_WORLD_SIZE {args.num_gpus}, which divides it by "
                f"{args.num_gpus}"
            )
        args.num_gpus = 1


def setup(cfg: CfgNode, args: argparse.Namespace) -> CfgNode:
    """Start logging and adapt the config to this run's processes and labels; call it in every process.

    config.yaml of OUTPUT_DIR stays as it is; :func:`record_config` writes it when the training begins.

    Args:
        cfg: the result of :func:`checked_config`; it is not changed.
        args: the parsed command line.

    Returns:
        The frozen config.

    Raises:
        LabelsError: labels cannot be used.
    """
    cfg = cfg.clone()
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="densesiam_d2")
    used = used_sets(cfg) | ({"DATASETS.TRAIN": []} if args.eval_only else {})
    names = list(chain.from_iterable(used.values()))
    register_path_datasets(names)
    ensure_cityscapes_api(names)
    resumes = args.eval_only and args.resume != "never" and comm.is_main_process()  # which alone reads the weights
    weights = (newest_valid(cfg.OUTPUT_DIR)[0] if resumes else None) or cfg.MODEL.WEIGHTS
    useless = without_effect(cfg, args.opts[::2])
    if useless:
        model = f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE}, MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME}"
        logging.getLogger("densesiam_d2").warning("without effect with %s: %s", model, ", ".join(useless))
    settle_labels(cfg, fixed=args.opts[::2], eval_only=args.eval_only, weights=weights)
    cfg.freeze()
    _raise_file_limit()
    path = Path(cfg.OUTPUT_DIR) / "config.yaml"
    earlier = path.read_bytes() if comm.is_main_process() and path.is_file() else None
    default_setup(cfg, args)  # writes config.yaml, also if the run is refused later
    if earlier is not None:
        with atomic_write(path) as file:
            file.write(earlier)
    elif comm.is_main_process() and not args.eval_only:
        path.unlink()
    return cfg


def check_evaluators(cfg: CfgNode) -> None:
    """Raise a ConfigError now, not after the training, if a set to be scored has no evaluator."""
    for name in scored_sets(cfg):
        try:
            require_evaluator(name)
        except ValueError as error:
            raise ConfigError(str(error)) from error


def record_config(cfg: CfgNode) -> None:
    """Make a config the config.yaml of OUTPUT_DIR; an earlier, different one is renamed by its date.

    Call it when a training is sure to begin: a run that is refused, or that evaluates only, leaves the file as it is.
    """
    path = Path(cfg.OUTPUT_DIR) / "config.yaml"
    if not comm.is_main_process() or (path.is_file() and path.read_text() == cfg.dump()):
        return
    if path.is_file():
        path.rename(path.with_suffix(time.strftime(".%Y%m%d-%H%M%S.yaml", time.localtime(path.stat().st_mtime))))
    with atomic_write(path) as file:
        file.write(cfg.dump().encode())


def _raise_file_limit() -> None:
    """Raise the limit of open files to the system's maximum, because loader workers pass tensors as files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

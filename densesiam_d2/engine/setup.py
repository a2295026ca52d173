"""From a command line to a checked, frozen config."""

import argparse
import difflib
import logging
import os
import re
from operator import attrgetter
from pathlib import Path

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import default_argument_parser, default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from densesiam_d2.check_config import check_config
from densesiam_d2.checkpoint.resuming import own_checkpoints
from densesiam_d2.config import add_densesiam_config
from densesiam_d2.data.datasets import check_datasets
from densesiam_d2.data.image_folders import register_path_datasets
from densesiam_d2.engine.launch import under_torchrun
from densesiam_d2.evaluation.cityscapes import ensure_cityscapes_api

__all__ = ["argument_parser", "load_config", "prepare", "replace_sync_bn", "setup"]


def argument_parser() -> argparse.ArgumentParser:
    """Return detectron2's parser, with a free port for runs on one machine."""
    parser = default_argument_parser()
    # The stock default is one port per user: two runs on one machine would meet there.
    parser.set_defaults(dist_url="auto")
    return parser


def load_config(config_file: str, opts: list[str] = ()) -> CfgNode:
    """Read a yaml and ``KEY VALUE`` pairs over the defaults, and make them fit this machine.

    Args:
        config_file: path of a yaml.
        opts: alternating keys and values.

    Raises:
        ValueError: a key does not exist, or a value is of the wrong type; the message names it and the nearest key.
        FileNotFoundError: there is no such yaml.
    """
    cfg = get_cfg()
    add_densesiam_config(cfg)
    if not config_file:
        raise ValueError("--config-file is missing, such as --config-file configs/pretrain.yaml")
    if not Path(config_file).is_file():
        raise FileNotFoundError(f"--config-file {config_file}: no such file")
    if len(opts) % 2:
        raise ValueError(f"options must be KEY VALUE pairs, but there are {len(opts)} words: {' '.join(opts)}")
    try:
        cfg.merge_from_file(config_file, allow_unsafe=False)
        cfg.merge_from_list(list(opts))
    except (KeyError, AssertionError, ValueError) as error:
        raise ValueError(_explain(error, cfg, config_file)) from error
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    return cfg


def _explain(error: Exception, cfg: CfgNode, config_file: str) -> str:
    text = str(error.args[0]) if error.args else str(error)
    unknown = re.search(r"Non-existent (?:config )?key: ([\w.]+)", text)
    if not unknown:
        tuples = "; data sets are a tuple, such as DATASETS.TRAIN \"('folder:/data/mine',)\""
        return f"{config_file} or the command line: {text}{tuples if 'DATASETS.' in text else ''}"
    key = unknown.group(1)
    near = difflib.get_close_matches(key, _all_keys(cfg), n=1)
    return f"no config key {key}" + (f"; did you mean {near[0]}?" if near else "")


def _all_keys(cfg: CfgNode, prefix: str = "") -> list[str]:
    keys = []
    for name, value in cfg.items():
        keys.append(prefix + name)
        if isinstance(value, CfgNode):
            keys += _all_keys(value, f"{prefix}{name}.")
    return keys


def replace_sync_bn(cfg: CfgNode) -> None:
    """On the CPU, replace every "SyncBN" by a norm that computes the same there, and say so once.

    ``nn.SyncBatchNorm`` refuses CPU tensors. In one process plain BN is the same; in several, detectron2's own
    implementation over all-reduce is, in the mode that weighs processes by what they hold.
    """
    if cfg.MODEL.DEVICE != "cpu":
        return
    substitute = "naiveSyncBN_N" if comm.get_world_size() > 1 else "BN"
    replaced = [key for key in _all_keys(cfg) if key.endswith("NORM") and attrgetter(key)(cfg) == "SyncBN"]
    if replaced:
        cfg.merge_from_list([word for key in replaced for word in (key, substitute)])
        logging.getLogger("densesiam_d2").info("CPU: %s instead of SyncBN for %s", substitute, ", ".join(replaced))


def prepare(args: argparse.Namespace) -> str:
    """Check a run before its processes are started, and settle its device.

    Args:
        args: the parsed command line; without a GPU ``num_gpus`` becomes 1, unless the CPU was asked for by name.

    Returns:
        The device, "cuda" or "cpu".

    Raises:
        ValueError: the config cannot work; all problems in one message.
        FileNotFoundError: the yaml or the data is not there.
        ImportError: a package that the data needs is not installed.
    """
    cfg = load_config(args.config_file, args.opts)
    if under_torchrun():
        world_size = int(os.environ["WORLD_SIZE"])
    else:
        _settle_processes(cfg, args)
        world_size = args.num_gpus * args.num_machines
    check_config(cfg, world_size=world_size, eval_only=args.eval_only)
    _check_weights(cfg, args)
    if args.eval_only:
        cfg.DATASETS.TRAIN = ()
    check_datasets(cfg)
    ensure_cityscapes_api([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
    return cfg.MODEL.DEVICE


def _check_weights(cfg: CfgNode, args: argparse.Namespace) -> None:
    weights, earlier = cfg.MODEL.WEIGHTS, own_checkpoints(cfg.OUTPUT_DIR)
    if args.resume and earlier:
        return
    if earlier and not args.eval_only:
        raise ValueError(
            f"OUTPUT_DIR {cfg.OUTPUT_DIR} holds an earlier run ({earlier[-1].name}): go on with it by --resume, "
            "or name another OUTPUT_DIR"
        )
    if args.eval_only and not weights and "MODEL.WEIGHTS" not in args.opts:
        raise ValueError("--eval-only needs MODEL.WEIGHTS FILE (MODEL.WEIGHTS '' if random weights are meant)")
    on_first_machine = int(os.environ.get("GROUP_RANK", args.machine_rank)) == 0  # under torchrun; its weights count
    if weights and "://" not in weights and on_first_machine and not Path(weights.partition("?")[0]).is_file():
        raise FileNotFoundError(f"MODEL.WEIGHTS: file {weights} does not exist")


def _settle_processes(cfg: CfgNode, args: argparse.Namespace) -> None:
    if cfg.MODEL.DEVICE.startswith("cuda"):
        available = torch.cuda.device_count()
        if args.num_gpus > available:
            raise ValueError(f"--num-gpus {args.num_gpus}, but this machine has {available}")
    elif "MODEL.DEVICE" not in args.opts and not torch.cuda.is_available():
        instead = f" instead of --num-gpus {args.num_gpus}" if args.num_gpus > 1 else ""
        print(
            f"No GPU found: running on the CPU, in one process{instead}. "
            "(For N CPU processes: --num-gpus N ... MODEL.DEVICE cpu)"
        )
        args.num_gpus = 1


def setup(args: argparse.Namespace) -> CfgNode:
    """Return the frozen config of a run that :func:`prepare` has checked, and start logging; for each process."""
    cfg = load_config(args.config_file, args.opts)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="densesiam_d2")
    replace_sync_bn(cfg)
    names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    register_path_datasets(names)
    ensure_cityscapes_api(names)
    cfg.freeze()
    default_setup(cfg, args)
    return cfg

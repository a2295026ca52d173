"""The entrypoint on real images, tiny: pretrain, resume, export, fine-tune, evaluate, and its errors."""

import errno
import importlib
import json
import logging
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog

import train_net
from densesiam_d2.checkpoint.files import read_checkpoint
from densesiam_d2.checkpoint.loading import WeightsError
from densesiam_d2.config_checks import ConfigError
from densesiam_d2.data.sample_sets import register_scenes
from densesiam_d2.engine import argument_parser, checked_config, launch, load_config
from densesiam_d2.engine.collapse import CollapseError, CollapseMonitor
from densesiam_d2.engine.saving import CheckpointHook

ROOT = Path(__file__).parents[2]
PRETRAIN, UNSUP_SEG, MASK_RCNN, FCN = (
    f"quick/{name}_instant_test.yaml" for name in ("pretrain", "unsup_seg", "mask_rcnn", "fcn")
)
CPU = ["SEED", "3", "MODEL.DEVICE", "cpu"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> str:
    """Six labelled scenes of 96 pixels, registered under the returned name."""
    name = "scenes_of_test_train_net"
    if name not in DatasetCatalog:
        register_scenes(name, tmp_path_factory.mktemp("scenes") / "set", num=6, seed=0, size=96)
    return name


def run(config: str, *options: str, flags: tuple[str, ...] = ()):
    """Do what ``python train_net.py --config-file config flags options`` does, in this process."""
    args = argument_parser().parse_args([*flags, "--config-file", str(ROOT / "configs" / config), *map(str, options)])
    return train_net.main(checked_config(args), args)


@pytest.fixture(scope="module")
def pretrained(scenes, tmp_path_factory) -> Path:
    """Pretrain 6 iterations in one go; the folder."""
    folder = tmp_path_factory.mktemp("straight")
    run(PRETRAIN, *CPU, "DATASETS.TRAIN", f"('{scenes}',)", "SOLVER.MAX_ITER", 6, "OUTPUT_DIR", folder)
    return folder


def test_only_a_training_that_begins_changes_config_yaml(pretrained, scenes, tmp_path):
    folder = shutil.copytree(pretrained, tmp_path / "run")
    before = (folder / "config.yaml").read_text()
    options = [*CPU, "DATASETS.TRAIN", f"('{scenes}',)", "OUTPUT_DIR", folder]
    with pytest.raises(WeightsError, match=r"SOLVER\.IMS_PER_BATCH was 4 and is 2"):
        run(PRETRAIN, *options, "SOLVER.IMS_PER_BATCH", 2, flags=("--resume",))
    assert (folder / "config.yaml").read_text() == before and not list(folder.glob("config.*.yaml"))
    run(PRETRAIN, *options, "SOLVER.MAX_ITER", 7, flags=("--resume",))
    recorded = load_config(str(folder / "config.yaml"))
    assert recorded.SOLVER.MAX_ITER == 7
    assert recorded.MODEL.SSL.NORM == "SyncBN"  # as given; a CPU run must not change what a GPU run trains with
    (earlier,) = folder.glob("config.*.yaml")
    assert earlier.read_text() == before


def test_pretraining_writes_its_files(pretrained):
    assert {"backbone.pkl", "model_final.pth", "metrics.json", "config.yaml"} <= {p.name for p in pretrained.iterdir()}
    rows = [json.loads(line) for line in (pretrained / "metrics.json").read_text().splitlines()]
    logged = {name: value for row in rows for name, value in row.items()}
    assert {"loss_pixel", "loss_region", "ssl/z_std", "ssl/overlap", "ssl/winners"} <= set(logged)
    assert logged["ssl/z_std_ideal"] == pytest.approx(128**-0.5)
    assert read_checkpoint(pretrained / "backbone.pkl")["metadata"]["iteration"] == 6


def test_resume_continues_the_schedule(scenes, tmp_path, monkeypatch):
    """Break off after iteration 2 of 6 and resume: rates and iterations go on where they were."""
    options = [*CPU, "DATASETS.TRAIN", f"('{scenes}',)", "SOLVER.MAX_ITER", 6, "OUTPUT_DIR", tmp_path]
    options += ["SOLVER.CHECKPOINT_PERIOD", 3]
    rates = []

    def run_step(trainer):
        if trainer.iter == 3 and trainer.start_iter == 0:
            raise KeyboardInterrupt
        original(trainer)
        rates.append((trainer.iter, trainer.optimizer.param_groups[0]["lr"]))

    original = train_net.Trainer.run_step
    monkeypatch.setattr(train_net.Trainer, "run_step", run_step)
    with pytest.raises(KeyboardInterrupt):
        run(PRETRAIN, *options)
    assert (tmp_path / "model_0000002.pth").is_file()
    assert not (tmp_path / "backbone.pkl").exists()  # half a pretraining exports nothing
    run(PRETRAIN, *options, flags=("--resume",))
    # SOLVER.BASE_LR 0.05 times half of 1 + cos(pi * iteration / 6).
    expected = [0.05 * (1 + math.cos(math.pi * i / 6)) / 2 for i in range(6)]
    assert [i for i, _ in rates] == [0, 1, 2, 3, 4, 5]
    assert [rate for _, rate in rates] == pytest.approx(expected)
    assert (tmp_path / "backbone.pkl").is_file()


def test_transfer_fills_the_backbone_and_is_evaluated(scenes, pretrained, tmp_path, caplog):
    options = [*CPU, "OUTPUT_DIR", tmp_path, "DATASETS.TRAIN", f"('{scenes}',)", "DATASETS.TEST", f"('{scenes}',)"]
    with caplog.at_level("INFO"):
        run(MASK_RCNN, *options, "MODEL.WEIGHTS", pretrained / "backbone.pkl")
    assert "100 of 100 tensors filled" in caplog.text
    results = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)  # JSON has no NaN
    assert set(results[scenes]) == {"bbox", "segm"}
    assert results[scenes]["bbox"]["APl"] is None  # no object of 96-pixel images is large
    # The trained model's own file evaluates to the same numbers.
    again = run(MASK_RCNN, *options, "MODEL.WEIGHTS", tmp_path / "model_final.pth", flags=("--eval-only",))
    assert again["bbox"]["AP50"] == pytest.approx(results[scenes]["bbox"]["AP50"])
    # A backbone alone is no detector to be scored.
    with pytest.raises(ValueError, match=r"lacks \d+ tensors of the model to be evaluated"):
        run(MASK_RCNN, *options, "MODEL.WEIGHTS", pretrained / "backbone.pkl", flags=("--eval-only",))


def test_semantic_transfer_is_evaluated(scenes, pretrained, tmp_path, caplog):
    options = [*CPU, "OUTPUT_DIR", tmp_path, "DATASETS.TRAIN", f"('{scenes}',)", "DATASETS.TEST", f"('{scenes}',)"]
    with caplog.at_level("INFO"):
        run(FCN, *options, "MODEL.WEIGHTS", pretrained / "backbone.pkl")
    assert "100 of 100 tensors filled" in caplog.text
    scores = json.loads((tmp_path / "results.json").read_text())[scenes]["sem_seg"]
    assert 0 < scores["mIoU"] < 100 and "used_clusters" not in scores


def test_transfer_in_parts(scenes, tmp_path):
    """Without batch statistics, dropout and pixels that do not count, the parts of a batch train as the whole batch."""
    options = [*CPU, "DATASETS.TRAIN", f"('{scenes}',)", "DATASETS.TEST", "()", "SOLVER.MAX_ITER", 1]
    options += ["SOLVER.IMS_PER_BATCH", 4, "MODEL.RESNETS.NORM", "FrozenBN", "MODEL.SEM_SEG_HEAD.NORM", "GN"]
    options += ["MODEL.SEM_SEG_HEAD.FCN.DROPOUT", 0.0, "INPUT.CROP.ENABLED", False]
    start, *ends = [
        run(FCN, *options, "OUTPUT_DIR", tmp_path / str(i), "SOLVER.ACCUMULATE", parts, "SOLVER.BASE_LR", rate)
        or torch.load(tmp_path / str(i) / "model_final.pth", weights_only=True)["model"]
        for i, (parts, rate) in enumerate([(1, 1e-9), (1, 0.01), (2, 0.01)])
    ]
    whole, parts = ({name: value - start[name] for name, value in end.items()} for end in ends)
    moved = [name for name, update in whole.items() if update.abs().max() > 1e-6]
    assert len(moved) > 30
    assert not [n for n in moved if (parts[n] - whole[n]).norm() > 1e-2 * whole[n].norm()]
    run(MASK_RCNN, *options, "OUTPUT_DIR", tmp_path / "boxes", "SOLVER.ACCUMULATE", 2)
    assert (tmp_path / "boxes" / "model_final.pth").is_file()


def test_unsupervised_segmentation_and_its_evaluation(scenes, pretrained, tmp_path):
    options = [*CPU, "OUTPUT_DIR", tmp_path, "DATASETS.TRAIN", f"('{scenes}',)", "DATASETS.TEST", f"('{scenes}',)"]
    run(UNSUP_SEG, *options, "MODEL.WEIGHTS", pretrained / "backbone.pkl")
    scores = json.loads((tmp_path / "results.json").read_text())[scenes]["sem_seg"]
    assert 0 < scores["mIoU"] <= 100
    assert {"mIoU_th_full", "mIoU_th_block", "mIoU_st_full", "used_clusters"} <= set(scores)
    # The head alone, under detectron2's own segmentor, gives the same numbers from the same file.
    stock = ["MODEL.META_ARCHITECTURE", "SemanticSegmentor", "MODEL.WEIGHTS", tmp_path / "model_final.pth"]
    again = run(UNSUP_SEG, *options, *stock, flags=("--eval-only",))
    assert again["sem_seg"]["mIoU"] == pytest.approx(scores["mIoU"], abs=1e-6)


@pytest.mark.parametrize(
    "options", ["SOLVER.AMP.ENABLED True SOLVER.AMP.PRECISION bf16", "SOLVER.CLIP_GRADIENTS.ENABLED True"]
)
def test_training_options(scenes, tmp_path, options):
    run(PRETRAIN, *CPU, "DATASETS.TRAIN", f"('{scenes}',)", "OUTPUT_DIR", tmp_path, *options.split())
    last = json.loads((tmp_path / "metrics.json").read_text().splitlines()[-1])
    assert -1.0 <= last["loss_pixel"] < 1.0


def test_a_dry_run_saves_loads_evaluates_and_leaves_nothing(scenes, tmp_path, caplog):
    options = [*CPU, "OUTPUT_DIR", tmp_path, "DATASETS.TRAIN", f"('{scenes}',)", "DATASETS.TEST", f"('{scenes}',)"]
    logger = logging.getLogger("densesiam_d2")
    logger.addHandler(caplog.handler)  # setup_logger turns propagation off when it is called for the first time
    try:
        expected = ["TEST.EXPECTED_RESULTS", "[['bbox','AP',99.0,0.1]]"]  # of the whole training
        run(MASK_RCNN, *options, "MODEL.WEIGHTS", "", *expected, flags=("--dry-run",))
    finally:
        logger.removeHandler(caplog.handler)
    assert (
        "Dry run: everything worked. 2 iterations in" in caplog.text
        and f"batch each of {scenes} evaluated" in caplog.text
    )
    saved = re.search(r"Saving checkpoint to (\S+/dry_run_\S+)/model_final\.pth", caplog.text)
    assert not Path(saved[1]).exists() and not list(tmp_path.iterdir())


def test_a_refused_dry_run_leaves_nothing(scenes, tmp_path, monkeypatch):
    def refuse(cfg):
        assert Path(cfg.OUTPUT_DIR).parent == tmp_path
        raise ConfigError("no evaluator")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sys.modules["densesiam_d2.engine.dry_run"], "check_evaluators", refuse)
    options = [*CPU, "OUTPUT_DIR", tmp_path / "out", "DATASETS.TRAIN", scenes, "MODEL.WEIGHTS", ""]
    with pytest.raises(ConfigError, match="no evaluator"):
        run(PRETRAIN, *options, flags=("--dry-run",))
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="--dry-run tries a training: leave out --eval-only"):
        run(PRETRAIN, *options, flags=("--dry-run", "--eval-only"))


def test_a_full_disk_is_one_line_and_the_last_checkpoint_is_whole(scenes, tmp_path, capsys):
    (tmp_path / ".model_final.pth.partial").symlink_to("/dev/full")
    options = [*CPU, "DATASETS.TRAIN", scenes, "OUTPUT_DIR", str(tmp_path), "SOLVER.CHECKPOINT_PERIOD", "1"]
    words = ["--config-file", str(ROOT / "configs" / PRETRAIN), *options]
    with pytest.raises(SystemExit) as stopped:
        train_net.run(words=words)
    assert stopped.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"train_net.py: {tmp_path}: No space left on device") and last.endswith("go on by --resume")
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000000.pth"
    assert torch.load(tmp_path / "model_0000000.pth", weights_only=True)["iteration"] == 0
    train_net.run(words=["--resume", *words])
    assert (tmp_path / "model_final.pth").is_file()


def test_keys_without_effect_are_told(scenes, tmp_path, capsys):
    options = [*CPU, "DATASETS.TRAIN", f"('{scenes}',)", "OUTPUT_DIR", tmp_path, "SOLVER.MAX_ITER", 1]
    run(PRETRAIN, *options, "MODEL.TORCHVISION.NAME", "resnet50", "MODEL.BYOL.MOMENTUM", 0.5)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "without effect" in line]
    assert line.endswith("MODEL.BACKBONE.NAME build_resnet_backbone: MODEL.TORCHVISION.NAME, MODEL.BYOL.MOMENTUM")


def test_a_failure_in_the_last_iteration_exports_nothing(scenes, tmp_path, monkeypatch):
    def run_step(trainer):
        if trainer.iter == 1:
            raise FloatingPointError
        original(trainer)

    original = train_net.Trainer.run_step
    monkeypatch.setattr(train_net.Trainer, "run_step", run_step)
    with pytest.raises(FloatingPointError):
        run(PRETRAIN, *CPU, "DATASETS.TRAIN", f"('{scenes}',)", "OUTPUT_DIR", tmp_path)
    assert not (tmp_path / "backbone.pkl").exists()


def test_resume_with_another_precision(scenes, tmp_path):
    options = [*CPU, "DATASETS.TRAIN", f"('{scenes}',)", "OUTPUT_DIR", tmp_path]
    run(PRETRAIN, *options)
    amp = ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.PRECISION", "bf16", "SOLVER.MAX_ITER", 4]
    run(PRETRAIN, *options, *amp, flags=("--resume",))
    assert read_checkpoint(tmp_path / "backbone.pkl")["metadata"]["iteration"] == 4


def test_cpu_processes_do_not_see_gpus(monkeypatch):
    """detectron2's launcher would otherwise choose NCCL on a machine with a GPU."""
    seen = []
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    module = sys.modules["densesiam_d2.engine.launch"]  # the package exports a function of that name
    monkeypatch.setattr(module, "launch_d2", lambda *_, timeout, **__: seen.append((os.environ.copy(), timeout)))
    args = argument_parser().parse_args(["--num-gpus", "2"])
    cfg = load_config(str(ROOT / "configs" / PRETRAIN), ["RUN.DIST_TIMEOUT_SECONDS", "77"])
    for cfg.MODEL.DEVICE in ("cuda", "cpu"):
        launch(train_net.main, cfg, args)
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment, _ in seen] == ["0,1", ""]
    assert [timeout.total_seconds() for _, timeout in seen] == [77, 77]


def test_a_collapse_that_stops_the_run_is_one_line(capsys, monkeypatch):
    def main(cfg, args):
        raise CollapseError("The embeddings have collapsed.")

    monkeypatch.delenv("LOCAL_RANK", raising=False)
    cfg = load_config(str(ROOT / "configs" / PRETRAIN), CPU)
    with pytest.raises(SystemExit) as error:
        launch(main, cfg, argument_parser().parse_args([]))
    assert error.value.code == 2 and capsys.readouterr().err == "train_net.py: The embeddings have collapsed.\n"


def test_hooks_get_their_keys(scenes, tmp_path):
    words = [*CPU, "DATASETS.TRAIN", f"('{scenes}',)", "OUTPUT_DIR", str(tmp_path), "RUN.STOP_ON_COLLAPSE", True]
    words += ["SOLVER.CHECKPOINT_PERIOD", 2, "SOLVER.CHECKPOINT_KEEP_LAST", 3, "SOLVER.CHECKPOINT_KEEP_EVERY", 7]
    trainer = train_net.Trainer(load_config(str(ROOT / "configs" / PRETRAIN), words))
    hooks = {type(hook): hook for hook in trainer._hooks}
    checkpoints = hooks[CheckpointHook]
    assert (checkpoints._period, checkpoints._keep_last, checkpoints._keep_every) == (2, 3, 7)
    assert hooks[CollapseMonitor]._stop


def test_reference_world_size_scales(scenes, tmp_path):
    """4 images, 41 iterations and rate 0.05 on 2 GPUs are 2 images, 82 iterations and 0.025 on one process."""
    args = ["SOLVER.REFERENCE_WORLD_SIZE", 2, "SOLVER.MAX_ITER", 41, "DATASETS.TRAIN", f"('{scenes}',)"]
    command = ["--config-file", ROOT / f"configs/{PRETRAIN}", *CPU, *args, "OUTPUT_DIR", tmp_path]
    arguments = argument_parser().parse_args([str(word) for word in command])
    trainer = train_net.Trainer(train_net.setup(checked_config(arguments), arguments))
    assert (trainer.max_iter, trainer.cfg.SOLVER.IMS_PER_BATCH, trainer.cfg.SOLVER.BASE_LR) == (82, 2, 0.025)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("SOLVER.BASE_LRR 0.1", "SOLVER.BASE_LRR.*did you mean SOLVER.BASE_LR"),
        ("SOLVER.MAX_ITER 0", "SOLVER.MAX_ITER is 0"),
        ("MODEL.DENSESIAM.GRID_POSITION middle", "GRID_POSITION is 'middle'"),
        ("DATASETS.TRAIN ('folder:/no/such/folder',)", "/no/such/folder"),
        ("DATASETS.TRAIN ('imagenet_trian',)", "imagenet_trian.*did you mean imagenet_train"),
        ("SOLVER.IMS_PER_BATCH", "KEY VALUE"),
        ("DATASETS.TRAIN folder:/x", "DATASETS.TRAIN 'folder:/x': the folder /x does not exist"),
        ("DATASETS.TRIAN ('folder:/x',)", "no config key DATASETS.TRIAN; did you mean DATASETS.TRAIN"),
        ("MODEL.WEIGHTS /no/such.pth", "MODEL.WEIGHTS: file /no/such.pth does not exist"),
        ("MODEL.RESNETS.DEPTH 50", "RES2_OUT_CHANNELS is 64; a ResNet-50 has 256"),
        ("MODEL.META_ARCHITECTURE GeneralizedRCNN DATASETS.TRAIN ('folder:/x',)", "'folder:/x', without labels"),
    ],
)
def test_mistakes_stop_at_start_up(options, message, tmp_path):
    command = ["--config-file", str(ROOT / "configs" / PRETRAIN), "OUTPUT_DIR", str(tmp_path), *options.split()]
    args = argument_parser().parse_args(command)
    with pytest.raises((ValueError, FileNotFoundError), match=f"(?s){message}"):
        checked_config(args)


def test_weights_of_tensorflow_are_named_as_such(tmp_path):
    (tmp_path / "model.ckpt-5.index").write_bytes(b"")
    weights = str(tmp_path / "model.ckpt-5")  # what TensorFlow calls the checkpoint; no file has this name
    command = ["--config-file", str(ROOT / "configs" / PRETRAIN), "MODEL.WEIGHTS", weights]
    with pytest.raises(ValueError, match="a checkpoint of TensorFlow"):
        checked_config(argument_parser().parse_args([*command, "OUTPUT_DIR", str(tmp_path / "run")]))


def test_weights_that_are_a_folder_are_named_as_such(tmp_path):
    (tmp_path / "weights").mkdir()
    command = ["--config-file", str(ROOT / "configs" / PRETRAIN), "MODEL.WEIGHTS", str(tmp_path / "weights")]
    with pytest.raises(ValueError, match=r"cannot read weights from .*/weights: it is a folder"):
        checked_config(argument_parser().parse_args([*command, "OUTPUT_DIR", str(tmp_path / "run")]))


def test_a_folder_with_checkpoints_is_not_trained_over(pretrained):
    command = ["--config-file", str(ROOT / "configs" / PRETRAIN), "OUTPUT_DIR", str(pretrained)]
    with pytest.raises(ValueError, match=r"OUTPUT_DIR .* holds an earlier run \(model_final\.pth\).*--resume"):
        checked_config(argument_parser().parse_args(command))
    checked_config(argument_parser().parse_args(["--resume", *command]))


def test_evaluating_random_weights_must_be_asked_for():
    command = ["--eval-only", "--config-file", str(ROOT / "configs" / FCN)]
    with pytest.raises(ValueError, match="--eval-only needs MODEL"):
        checked_config(argument_parser().parse_args(command))
    checked_config(argument_parser().parse_args([*command, "MODEL.WEIGHTS", ""]))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--num-gpus 0", "--num-gpus 0 --num-machines 1: both must be above 0"),
        ("--num-machines 0", "--num-gpus 1 --num-machines 0: both must be above 0"),
        ("--machine-rank 3", "--machine-rank 3: of --num-machines 1 the first is 0"),
        ("--num-machines 2", "--num-machines above 1 needs --dist-url tcp://HOST:PORT"),
    ],
)
def test_numbers_of_processes_that_cannot_be_are_named(flags, message, tmp_path):
    command = [*flags.split(), "--config-file", str(ROOT / "configs" / PRETRAIN), "OUTPUT_DIR", str(tmp_path)]
    with pytest.raises(ValueError, match=message):
        checked_config(argument_parser().parse_args(command))


def test_an_evaluation_needs_a_folder_that_can_be_written(scenes, tmp_path, monkeypatch, capsys):
    def refuse(dir):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    options = [*CPU, "DATASETS.TEST", scenes, "MODEL.WEIGHTS", "", "OUTPUT_DIR", str(tmp_path)]
    with pytest.raises(SystemExit) as stopped:
        train_net.run(words=["--eval-only", "--config-file", str(ROOT / "configs" / FCN), *options])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        f"train_net.py: OUTPUT_DIR {tmp_path}: Read-only file system: name a folder that can be written\n"
    )


@pytest.mark.parametrize("flags", [[], ["--seeds", "2"]])
@pytest.mark.parametrize("below", ["", "/run"])
def test_an_output_folder_that_cannot_be_is_named(scenes, flags, below, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    folder = f"{tmp_path}/file{below}"
    options = [*CPU, "DATASETS.TRAIN", scenes, "OUTPUT_DIR", folder]
    with pytest.raises(SystemExit) as stopped:
        train_net.run(words=[*flags, "--config-file", str(ROOT / "configs" / PRETRAIN), *options])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith(f"train_net.py: OUTPUT_DIR {folder}: ")


def _command(*words, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        text=True,
        capture_output=True,
        timeout=300,
    )


def test_tools_stand_in_the_readme_and_explain_themselves(capsys):
    tools = [path.stem for path in (ROOT / "densesiam_d2/tools").glob("*.py") if "__main__" in path.read_text()]
    section = (ROOT / "README.md").read_text().split("## Tools")[1].split("##")[0]
    assert sorted(tools) == sorted(re.findall(r"`([a-z]\w+)`", section))
    for name in tools:
        with pytest.raises(SystemExit) as stopped:
            importlib.import_module(f"densesiam_d2.tools.{name}").main(["--help"])
        assert stopped.value.code == 0 and "usage:" in capsys.readouterr().out, name


def test_weights_that_do_not_fit_are_one_line(pretrained, tmp_path):
    command = ["--config-file", f"configs/{FCN}", "MODEL.RESNETS.DEPTH", "34", "OUTPUT_DIR", tmp_path / "out"]
    done = _command(
        "train_net.py", *command, "MODEL.WEIGHTS", pretrained / "backbone.pkl", DETECTRON2_DATASETS=tmp_path
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "depth is 18 in the file but MODEL.RESNETS.DEPTH is 34" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["MODEL.SSL.IN_FEATURE", "res6"], "the model cannot be built: MODEL.SSL.IN_FEATURE 'res6' is not among"),
        # detectron2's own errors have other types, and not always a text.
        (
            ["MODEL.RESNETS.RES5_DILATION", "2"],
            "built: AssertionError Must set MODEL.RESNETS.RES5_DILATION = 1 for R18",
        ),
        (
            ["MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "MODEL.LOAD_PROPOSALS", "True"],
            "the training images cannot be loaded: AssertionError in",
        ),
        (
            ["MODEL.SSL.CHECKPOINT_STAGES", "['layer1']"],
            "MODEL.SSL.CHECKPOINT_STAGES has 'layer1'; ResNet has stages of",
        ),
        (
            ["TEST.PROBE.TRAIN", "{scenes}", "TEST.PROBE.TEST", "{scenes}", "TEST.PROBE.FEATURES", "['res9']"],
            "TEST.PROBE.FEATURES: features res9: the backbone does not have all of these outputs",
        ),
    ],
)
def test_a_model_that_cannot_be_built_is_one_line(options, message, scenes, tmp_path, capsys):
    options = [word.format(scenes=scenes) for word in options]
    words = [*CPU, "DATASETS.TRAIN", scenes, "OUTPUT_DIR", str(tmp_path / "out"), *options]
    with pytest.raises(SystemExit) as stopped:
        train_net.run(words=["--config-file", str(ROOT / "configs" / PRETRAIN), *words])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this is about machines without a GPU")
def test_a_gpu_that_is_asked_for_and_not_there_is_told(scenes, capsys):
    words = ["--num-gpus", "2", "--config-file", str(ROOT / "configs" / PRETRAIN), "DATASETS.TRAIN", scenes]
    args = argument_parser().parse_args([*words, "MODEL.DEVICE", "cuda"])
    assert checked_config(args).MODEL.DEVICE == "cpu" and args.num_gpus == 1
    assert "No GPU found: running on the CPU, in one process instead of --num-gpus 2" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="this is about machines without a GPU")
def test_two_cpu_processes_and_the_line_about_the_cpu(tmp_path):
    """The same command under torchrun and with --num-gpus 2; and the fall-back to one process."""
    from densesiam_d2.samples.scenes import write_scenes

    write_scenes(tmp_path / "scenes", num=4, seed=0, size=64)
    options = [*CPU[:2], "DATASETS.TRAIN", f"('folder:{tmp_path / 'scenes' / 'images'}',)", "SOLVER.MAX_ITER", "2"]
    options = ["--config-file", f"configs/{PRETRAIN}", "--num-gpus", "2", *options, "OUTPUT_DIR"]
    alone = _command("train_net.py", *options, tmp_path / "alone")
    assert alone.returncode == 0, alone.stderr[-2000:]
    assert "No GPU found: running on the CPU, in one process" in alone.stdout
    assert "SOLVER.REFERENCE_WORLD_SIZE 2, which divides it by 2" in alone.stdout
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train_net.py"]
    for name, start in (("launch", ["train_net.py"]), ("torchrun", torchrun)):
        done = _command(*start, *options, tmp_path / name, "MODEL.DEVICE", "cpu")
        assert done.returncode == 0, done.stderr[-2000:]
        assert "World size: 2" in done.stdout + done.stderr, name
        assert "naiveSyncBN_N instead of SyncBN" in done.stdout + done.stderr, name
        assert (tmp_path / name / "backbone.pkl").is_file()


def test_two_machines(scenes, tmp_path):
    """Two launches of one process each that meet at one address, as on two machines with a common folder."""
    folder = Path(DatasetCatalog.get(scenes)[0]["file_name"]).parent
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    options = ["--config-file", f"configs/{PRETRAIN}", "--num-machines", "2", "--dist-url", address]
    options += [*CPU, "DATASETS.TRAIN", f"('folder:{folder}',)", "OUTPUT_DIR", tmp_path]
    with ThreadPoolExecutor() as pool:
        machines = list(pool.map(lambda r: _command("train_net.py", "--machine-rank", r, *options), (0, 1)))
    assert [done.returncode for done in machines] == [0, 0], machines[0].stderr[-2000:]
    assert "World size: 2" in machines[0].stdout + machines[0].stderr
    assert (tmp_path / "backbone.pkl").is_file()


def test_readme_script(tmp_path):
    """The script of the README runs as it stands, with a small folder and size put in."""
    from densesiam_d2.samples.scenes import write_scenes

    write_scenes(tmp_path / "scenes", num=4, seed=0, size=64)
    script = (ROOT / "README.md").read_text().split("```python\n")[1].split("```")[0]
    tiny = (
        'cfg.merge_from_list("MODEL.DEVICE cpu SOLVER.MAX_ITER 2 SOLVER.IMS_PER_BATCH 2 INPUT.SSL.VIEW_SIZE 64 '
        f'DATALOADER.NUM_WORKERS 0 OUTPUT_DIR {tmp_path / "out"}".split())\n'
    )
    assert "/data/mine" in script and "trainer = MyTrainer(cfg)\n" in script
    script = script.replace("/data/mine", str(tmp_path / "scenes" / "images"))
    script = script.replace("trainer = MyTrainer(cfg)\n", f"{tiny}trainer = MyTrainer(cfg)\n")
    (tmp_path / "script.py").write_text(script)
    done = _command(tmp_path / "script.py", PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "out" / "model_final.pth").is_file() and (tmp_path / "out" / "backbone.pkl").is_file()
    assert json.loads((tmp_path / "out" / "metrics.json").read_text().splitlines()[-1])["iteration"] == 1


def test_seeds_start_the_script_that_was_called(scenes, tmp_path, monkeypatch):
    """A script of the user's registers data sets and calls run(); each seed must start it, not train_net.py."""
    called = []
    words = ["--config-file", str(ROOT / "configs" / PRETRAIN), "--seeds", "2", *map(str, CPU)]
    words += ["DATASETS.TRAIN", str(scenes), "OUTPUT_DIR", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", ["mine.py", *words])
    monkeypatch.setattr(train_net, "run_seeds", lambda script, cfg, args: called.append(script) or 0)
    with pytest.raises(SystemExit):
        train_net.run()
    assert called == [Path.cwd() / "mine.py"]

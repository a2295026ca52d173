"""Weights of TensorFlow and JAX: refused in one line that says what to do."""

import pickle
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from densesiam_d2.checkpoint import read_checkpoint
from densesiam_d2.tools.export_backbone import main

TABLE = bytes(40) + bytes.fromhex("57fb808b247547db")


class ExperimentState(NamedTuple):
    """The five fields of DeepMind's class; the file names the class, and the reader does not have it."""

    online_params: Any
    target_params: Any
    online_state: Any
    target_state: Any
    opt_state: Any


def test_byol_of_deepmind(tmp_path, capsys):
    names = ("res_net50/~/initial_conv", "res_net50/~/block_group_0/~/block_0/~/conv_0")
    params = {name: {"w": np.zeros((7, 7, 3, 64), np.float32)} for name in names}
    state = ExperimentState(params, params, {}, {}, {})
    content = {"experiment_state": state, "step": 290_000, "rng": np.zeros(2, np.uint32)}
    path = tmp_path / "pretrain_res50x1.pkl"
    path.write_bytes(pickle.dumps(content, protocol=2))
    assert main(["--input", str(path), "--output", str(tmp_path / "b.pkl")]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith(
        f"export_backbone: cannot read weights from {path}: this is a checkpoint of JAX, DeepMind's BYOL."
    )
    assert "OpenMMLab" in message and not (tmp_path / "b.pkl").exists()


@pytest.fixture
def simclr(tmp_path):
    """The files of ResNet50_1x.zip."""
    folder = tmp_path / "ResNet50_1x"
    (folder / "hub" / "variables").mkdir(parents=True)
    for name in ("model.ckpt-225206.data-00000-of-00001", "model.ckpt-225206.meta", "hub/saved_model.pb"):
        (folder / name).write_bytes(b"\x0a\x10")
    (folder / "model.ckpt-225206.index").write_bytes(TABLE)
    return folder


@pytest.mark.parametrize(
    "name",
    [
        *("", "hub", "hub/saved_model.pb", "model.ckpt-225206"),
        *(f"model.ckpt-225206.{suffix}" for suffix in ("index", "meta", "data-00000-of-00001")),
    ],
)
def test_simclr_of_google(simclr, capsys, name):
    path = simclr / name
    assert main(["--input", str(path), "--output", str(simclr / "b.pkl")]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith(f"export_backbone: cannot read weights from {path}: this is a checkpoint of TensorFlow")
    assert "tonylins/simclr-converter" in message and "Separius/SimCLRv2-Pytorch" in message


def test_an_old_checkpoint_of_tensorflow_in_one_file(tmp_path):
    (tmp_path / "resnet.ckpt").write_bytes(TABLE)
    with pytest.raises(ValueError, match="a checkpoint of TensorFlow"):
        read_checkpoint(tmp_path / "resnet.ckpt", foreign=True)


def test_other_files_and_folders_are_not_taken_for_them(tmp_path):
    torch.save({"w": torch.ones(1)}, tmp_path / "model.ckpt-225206")
    assert read_checkpoint(tmp_path / "model.ckpt-225206")["w"] == 1
    with pytest.raises(FileNotFoundError, match=r"none\.ckpt does not exist"):
        read_checkpoint(tmp_path / "none.ckpt")
    with pytest.raises(ValueError, match="it is a folder; give the file in it"):
        read_checkpoint(tmp_path)

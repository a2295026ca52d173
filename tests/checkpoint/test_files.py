import argparse
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from densesiam_d2.checkpoint import atomic_write, read_checkpoint


class Evil:
    """Creates a marker file when unpickled without care."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_pickles_of_arrays_load(tmp_path, protocol):
    content = {"model": OrderedDict(w=np.arange(6.0).reshape(2, 3), s=np.float32(2)), "__author__": "x", "n": 3}
    path = tmp_path / "w.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    loaded = read_checkpoint(path)
    assert np.array_equal(loaded["model"]["w"], [[0, 1, 2], [3, 4, 5]])
    assert loaded["model"]["s"] == 2 and loaded["n"] == 3


@pytest.mark.parametrize("name", ["evil.pkl", "evil.pth", "evil.pth.tar"])
def test_code_in_a_weight_file_does_not_run(tmp_path, name):
    marker = tmp_path / "marker"
    content = {"model": {"w": torch.zeros(1) if name != "evil.pkl" else np.zeros(1)}, "x": Evil(marker)}
    if name == "evil.pkl":
        (tmp_path / name).write_bytes(pickle.dumps(content))
    else:
        torch.save(content, tmp_path / name)
    with pytest.raises(ValueError, match=rf"cannot read weights from .*{name}: it asks for \S+, which is not plain"):
        read_checkpoint(tmp_path / name)
    assert not marker.exists()


def test_moco_style_files_load(tmp_path):
    path = tmp_path / "moco.pth.tar"
    state = {"module.queue": torch.ones(2)}
    torch.save({"state_dict": state, "args": argparse.Namespace(lr=0.03), "epoch": np.int64(200)}, path)
    assert read_checkpoint(path)["args"].lr == 0.03
    torch.save({"model": {"res2.w": np.ones(3, np.float32)}, "matching_heuristics": True}, tmp_path / "resim.pth")
    assert read_checkpoint(tmp_path / "resim.pth")["model"]["res2.w"].sum() == 3


@pytest.mark.parametrize("new_format", [True, False])
def test_torch_save_under_a_pkl_name(tmp_path, new_format):
    path = tmp_path / "detco.pkl"
    torch.save({"state_dict": {"conv1.weight": torch.ones(2)}}, path, _use_new_zipfile_serialization=new_format)
    assert read_checkpoint(path)["state_dict"]["conv1.weight"].tolist() == [1, 1]


def test_user_mistakes_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pth does not exist"):
        read_checkpoint(tmp_path / "none.pth")
    (tmp_path / "empty.pth").touch()
    with pytest.raises(ValueError, match=r"cannot read weights from .*empty\.pth"):
        read_checkpoint(tmp_path / "empty.pth")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="it holds a list, not a dict"):
        read_checkpoint(tmp_path / "list.pth")


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "sub" / "w.bin"
    with atomic_write(path) as file:
        file.write(b"old")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as file:
        file.write(b"half of the new")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]

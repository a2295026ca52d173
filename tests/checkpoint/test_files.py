import argparse
import functools
import gzip
import json
import pickle
import subprocess
import sys
import tarfile
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import distributed
from torch.distributed import checkpoint as distributed_checkpoint
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from densesiam_d2.checkpoint import read_checkpoint, save_safetensors


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_pickles_of_arrays_load(tmp_path, protocol):
    content = {"model": OrderedDict(w=np.arange(6.0).reshape(2, 3), s=np.float32(2)), "__author__": "x", "n": 3}
    path = tmp_path / "w.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    loaded = read_checkpoint(path)
    assert np.array_equal(loaded["model"]["w"], [[0, 1, 2], [3, 4, 5]])
    assert loaded["model"]["s"] == 2 and loaded["n"] == 3


@pytest.mark.parametrize("suffix", ["pkl", "pth"])
@pytest.mark.parametrize("protocol", [2, 5])
def test_arrays_of_numbers_come_as_they_were(tmp_path, suffix, protocol):
    arrays = [np.arange(6).reshape(2, 3).astype(code) for code in ("<f4", ">f4", "<f8", "<f2", ">i8", "u1", "?", "<c8")]
    arrays += [arrays[0].T, np.array(3.0), np.float64(0.1), np.int64(7)]
    path = tmp_path / f"w.{suffix}"
    if suffix == "pkl":
        path.write_bytes(pickle.dumps({"model": arrays}, protocol=protocol))
    else:
        torch.save({"model": arrays}, path, pickle_protocol=2)
    loaded = read_checkpoint(path)["model"]
    again = pickle.loads(pickle.dumps(loaded, protocol=protocol))
    for array, *copies in zip(arrays, loaded, again, strict=True):
        for copy in copies:  # NumPy gives some back in this machine's byte order
            assert copy.dtype.newbyteorder("=") == array.dtype.newbyteorder("=") and np.array_equal(copy, array)
    assert all(type(copy) in (np.ndarray, np.float64, np.int64) for copy in again)


class Crafted:
    """An array of two numbers, or only its dtype, that has another state in the file than NumPy would write."""

    def __init__(self, code, state, dtype_only=False):
        self.code, self.state, self.dtype_only = code, state, dtype_only

    def __reduce__(self):
        if self.dtype_only:
            return np.dtype, (self.code, False, True), self.state
        reconstruct, arguments, _ = np.empty(0).__reduce__()
        return (
            reconstruct,
            arguments,
            (1, (2,), Crafted(self.code, self.state, dtype_only=True), False, b"?\x80\0\0" * 2),
        )


@pytest.mark.parametrize("suffix", ["pkl", "pth"])
def test_arrays_of_objects_are_refused(tmp_path, suffix):
    """NumPy itself takes eight bytes of such a file for the address of an object."""
    plain = (3, "<", None, None, None, -1, -1, 0)
    for i, array in enumerate((np.array([None]), np.zeros(1, "f4,O"), Crafted("O", plain))):
        path = tmp_path / f"{i}.{suffix}"
        torch.save({"model": array}, path) if suffix == "pth" else path.write_bytes(pickle.dumps({"model": array}))
        with pytest.raises(
            ValueError, match=rf"^cannot read weights from {path}: it holds arrays of other things than numbers"
        ):
            read_checkpoint(path)


def test_of_the_state_of_a_dtype_only_the_byte_order_counts(tmp_path):
    outside = (3, ">", None, ("a",), {"a": (np.dtype("f8"), 400)}, 4, 1, 63)  # NumPy would read 400 bytes further on
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"model": Crafted("f4", outside)}))
    loaded = read_checkpoint(tmp_path / "w.pkl")["model"]
    assert loaded.tolist() == [1, 1] and loaded.dtype.names is None


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("name", ["w.pkl", "w.pth", "old.pth", "w.safetensors"])
def test_any_damage_is_named(tmp_path, name):
    path, weights = tmp_path / name, {"a": torch.ones(2)}
    if name == "w.pkl":
        path.write_bytes(pickle.dumps({"a": np.ones(2)}))
    elif name == "w.safetensors":
        save_safetensors(path, {"a": np.ones(2)}, {})
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=name == "w.pth")
    content, errors, random = path.read_bytes(), 0, np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(content)
        damaged[random.integers(min(len(content), 500))] = random.integers(256)
        path.write_bytes(damaged)
        try:
            read_checkpoint(path)
        except ValueError as error:
            assert str(error).startswith(f"cannot read weights from {path}: ") and "\n" not in str(error)
            errors += 1
    assert errors > 50


def test_safetensors_hold_tensors_and_our_metadata(tmp_path):
    path = tmp_path / "new" / "w.safetensors"
    metadata = {"pixel_mean": [123.675, 0.0], "stride_in_1x1": False, "iteration": None, "method": 'Dense"Siam', "n": 3}
    columns = np.arange(6, dtype=np.float32).reshape(2, 3).T  # not in the order that the format asks for
    save_safetensors(path, {"a.weight": columns, "count": np.array(7)}, metadata)
    content = read_checkpoint(path)
    assert content.keys() == {"model", "metadata"} and content["metadata"] == metadata
    assert content["model"]["a.weight"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert content["model"]["count"].shape == () and content["model"]["count"] == 7
    with pytest.raises(ValueError, match=r"needs a name ending in \.safetensors"):
        save_safetensors(tmp_path / "w.pkl", {}, {})


def test_safetensors_of_others_have_no_metadata(tmp_path):
    weights = {"a": torch.ones(1, dtype=torch.bfloat16)}
    save_file(weights, tmp_path / "w.safetensors", metadata={"format": "pt", "iteration": "3"})
    assert read_checkpoint(tmp_path / "w.safetensors") == {"model": weights}
    save_file(weights, tmp_path / "bare.safetensors")
    assert read_checkpoint(tmp_path / "bare.safetensors") == {"model": weights}


@pytest.mark.parametrize("damage", ["empty", "torn", "short", "header", "metadata", "table"])
def test_damaged_safetensors_are_named(tmp_path, damage):
    path = tmp_path / "w.safetensors"
    header = {"table": json.dumps([3]), "metadata": "{"}.get(damage, "{}")
    save_file({"a": torch.ones(64)}, path, metadata={"densesiam_d2": header})
    content = path.read_bytes()
    pieces = {"empty": b"", "torn": content[:-1], "short": content[:5], "header": b"\xff" * 8 + content[8:]}
    path.write_bytes(pieces.get(damage, content))
    message = "it is cut off: copy or download it again" if damage in ("torn", "short") else ""
    with pytest.raises(ValueError, match=rf"^cannot read weights from {path}: {message}[^\n]+$"):
        read_checkpoint(path)


def test_moco_style_files_load(tmp_path):
    path = tmp_path / "moco.pth.tar"
    state = {"module.queue": torch.ones(2)}
    torch.save({"state_dict": state, "args": argparse.Namespace(lr=0.03), "epoch": np.int64(200)}, path)
    content = read_checkpoint(path, foreign=True)
    assert content["epoch"] == 200 and content["state_dict"]["module.queue"].tolist() == [1, 1]
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


def _torchscript(path):
    torch.jit.save(torch.jit.trace(torch.nn.Linear(1, 1), torch.ones(1, 1)), str(path))


def _zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights.pth", b"x")


def _tar(path):
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("weights.pth"))


def _quantized(path):
    torch.save({"w": torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8)}, path)


def _sparse(path):
    torch.save({"w": torch.eye(4).to_sparse()}, path)


def _cut_off(path, new_format=True):
    torch.save({"w": torch.ones(10000)}, path, _use_new_zipfile_serialization=new_format)
    path.write_bytes(path.read_bytes()[:-2000])


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 46830571\n"
NO_WEIGHTS = {
    "git-lfs pointer": (POINTER, "git-lfs pointer, not weights .*'version https://git-lfs.*: run git lfs pull"),
    "web page": (b"<!DOCTYPE html>\n<html><body>x", "web page, not weights .*'<!DOCTYPE html>.*: download the file"),
    "web page of another kind": (b"\xef\xbb\xbf\n  <html lang='en'>", "it is a web page, not weights"),
    "answer of a server": (b'{"error": "Not Found"}', r"it is no file of torch\.save.*'\{\"error\": \"Not Found\"\}'"),
    "empty": (b"", "it is empty"),
    "compressed": (gzip.compress(b"x"), "it is a compressed file: unpack it"),
    "NumPy": (b"\x93NUMPY\x01\0v\0{'descr': '<f8', 'shape': (3,), }", "it is an array of NumPy, not of PyTorch"),
    "yaml": (b"SOLVER: {MAX_ITER: 3}\n", r"it is no file of torch\.save.*'SOLVER: \{MAX_ITER"),
    "HDF5": (b"\x89HDF\r\n\x1a\n", "it is a HDF5 file"),
    "TorchScript": (
        _torchscript,
        r"it is a TorchScript archive, which holds code: save its state_dict\(\) and give that",
    ),
    "quantized": (_quantized, r"it holds quantized or sparse tensors \(.*_rebuild_qtensor\): save dense"),
    "sparse": (_sparse, r"it holds quantized or sparse tensors \(.*_rebuild_sparse_tensor\): save dense"),
    "Flax": (b"\x82\xa6params\x81\xa4conv", r"it is no file of torch\.save"),
    "zip": (_zip, r"it is a zip archive, but not of torch\.save: give the file in it"),
    "tar": (_tar, "it is a tar archive: unpack it"),
    "cut off": (_cut_off, "it is cut off: copy or download it again"),
    "cut off, old": (functools.partial(_cut_off, new_format=False), "it is cut off: copy or download it again"),
}


@pytest.mark.parametrize("suffix", ["pth", "pkl", "safetensors"])
@pytest.mark.parametrize("name", NO_WEIGHTS)
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_what_is_no_weight_file_is_said_in_one_line(tmp_path, name, suffix):
    content, message = NO_WEIGHTS[name]
    if suffix == "safetensors" and (callable(content) or name in ("answer of a server", "yaml", "Flax")):
        pytest.skip("the library of the format says that it is none")
    path = tmp_path / f"weights.{suffix}"
    content(path) if callable(content) else path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^cannot read weights from {path}: [^\n]*{message}") as raised:
        read_checkpoint(path, foreign=True)
    assert "\n" not in str(raised.value) and "weights_only" not in str(raised.value)


@pytest.mark.parametrize("old", [".safetensors", ".pth"])
def test_weights_under_the_name_of_another_format_say_so(tmp_path, old):
    weights, new = {"a": torch.ones(64)}, {".safetensors": ".pth", ".pth": ".safetensors"}[old]
    path = tmp_path / f"w{new}"
    save_file(weights, path) if old == ".safetensors" else torch.save(weights, path)
    with pytest.raises(ValueError, match=rf"cannot read weights from {path}: it is a file of .* name end in \{old}$"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "name", ["model-00001-of-00002.safetensors", "pytorch_model-00001-of-00002.bin", "m.index.json"]
)
def test_one_of_several_parts_is_told(name, tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / name)
    with pytest.raises(ValueError, match="it is of several parts; join them and save one state dict"):
        read_checkpoint(tmp_path / name, foreign=True)
    save_file({"a": torch.ones(1)}, tmp_path / "model-00001-of-00001.safetensors")
    read_checkpoint(tmp_path / "model-00001-of-00001.safetensors", foreign=True)


def test_a_safetensors_cut_in_its_header(tmp_path):
    save_file({f"layer{i}.weight": torch.ones(1) for i in range(9)}, tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:100])
    with pytest.raises(ValueError, match="it is cut off: copy or download it again"):
        read_checkpoint(tmp_path / "w.safetensors")


def test_a_file_without_tensors_and_a_folder(tmp_path):
    torch.save({"epoch": 3, "args": argparse.Namespace(lr=1)}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x\.pth: it holds no tensors$"):
        read_checkpoint(tmp_path / "x.pth", foreign=True)
    with pytest.raises(ValueError, match=rf"{tmp_path}: it is a folder; give the file in it$"):
        read_checkpoint(tmp_path)


def test_arrays_of_numpy_are_named(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.ones(3), b=np.ones(4))
    with pytest.raises(ValueError, match=r"x\.npz: it holds arrays of NumPy: save \{name: torch\.from_numpy\(array\)"):
        read_checkpoint(tmp_path / "x.npz")


def test_a_sharded_checkpoint_is_joined_by_the_command_in_its_message(tmp_path):
    folder, joined = tmp_path / "sharded", tmp_path / "weights.pth"
    distributed_checkpoint.save({"model": {"a": torch.arange(4.0)}}, checkpoint_id=folder, no_dist=True)
    with pytest.raises(ValueError, match=r"it is a sharded checkpoint; give the result of python -m (.*)$") as raised:
        read_checkpoint(folder)
    module, *words = str(raised.value).rpartition("python -m ")[2].split()
    subprocess.run([sys.executable, "-m", module, *words[:-1], str(joined)], check=True, capture_output=True)
    assert torch.equal(read_checkpoint(joined)["model"]["a"], torch.arange(4.0))


def test_shards_of_tensors_are_named(tmp_path):
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        sharded = distribute_tensor(torch.ones(4), init_device_mesh("cpu", (1,)), [Shard(0)])
        torch.save({"model": {"a": sharded}}, tmp_path / "x.pth")
    finally:
        distributed.destroy_process_group()
    with pytest.raises(
        ValueError, match=r"x\.pth: it holds shards of tensors \(.*DTensor\): save the full state dict$"
    ):
        read_checkpoint(tmp_path / "x.pth", foreign=True)

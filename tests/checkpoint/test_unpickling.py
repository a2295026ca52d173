"""Whatever a checkpoint holds beside its tensors, nothing of it runs, and the tensors are read."""

import argparse
import collections
import datetime
import enum
import functools
import io
import logging
import pickle
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from densesiam_d2.checkpoint import read_checkpoint, recognise
from tests.checkpoint.networks import tv_resnet

FORMATS = ["zip", "legacy", "pickle"]


def write(path: Path, content: bytes, form: str) -> Path:
    """Write a pickle as it is, or as torch.save does today, or as it did before torch 1.6."""
    if form == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", content)
    else:
        before = [0x1950A86A20F9469CFC6C, 1001, {}] if form == "legacy" else []
        after = [[]] if form == "legacy" else []
        parts = [*map(pickle.dumps, before), content, *map(pickle.dumps, after)]
        path.write_bytes(b"".join(parts))
    return path


def save(path: Path, content: object, form: str) -> Path:
    """Write a content, tensors included, in one of the formats."""
    if form == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    return path


def beside_weights(payload: bytes) -> bytes:
    """Return a pickle of {"x": what the opcodes make, "w": two ones}."""
    weights = pickle.dumps(np.ones(2), protocol=2)[2:-1]  # without the opcodes of start and end
    return b"\x80\x02}(X\x01\0\0\0x" + payload + b"X\x01\0\0\0w" + weights + b"u."


def payloads(marker: Path) -> dict[str, bytes]:
    """Return opcodes that touch a file wherever they are not read with care."""
    code = b"V" + f"open({str(marker)!r}, 'w').close()".encode() + b"\n"
    name = str(marker).encode()
    evil = b"\x80\x02cbuiltins\nexec\n(" + code + b"tR."
    inner = b"".join([*(pickle.dumps(x) for x in (0x1950A86A20F9469CFC6C, 1001, {})), evil, pickle.dumps([])])
    return {
        "reduce": b"cbuiltins\nexec\n(" + code + b"tR",
        "Python 2's name": b"c__builtin__\neval\n(" + code + b"tR",
        "stack global": b"Vbuiltins\nVexec\n\x93(" + code + b"tR",
        "inst": b"(" + code + b"ibuiltins\nexec\n",
        "obj": b"(cbuiltins\nexec\n" + code + b"o",
        "shell": b"cposix\nsystem\n(Vtouch " + name + b"\ntR",
        "attribute of a module": b"cbuiltins\ngetattr\n(cbuiltins\n__import__\n(Vos\ntRVmknod\ntR(V" + name + b"\ntR",
        "map": b"cbuiltins\nlist\n(cbuiltins\nmap\n(cbuiltins\nexec\n](" + code + b"etRtR",
        "partial": b"cfunctools\npartial\n(cbuiltins\nexec\ntR(" + code + b"tR",
        "a storage in bytes": b"ctorch.storage\n_load_from_bytes\n(B"
        + len(inner).to_bytes(4, "little")
        + inner
        + b"tR",
        "an import": b"cimported_by_a_checkpoint\nThing\n",
    }


@pytest.fixture
def marker(tmp_path, monkeypatch):
    path = tmp_path / "marker"
    (tmp_path / "imported_by_a_checkpoint.py").write_text(f"open({str(path)!r}, 'w').close()\nThing = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield path
    assert not path.exists()
    assert "imported_by_a_checkpoint" not in sys.modules


def test_the_payloads_are_real(tmp_path, monkeypatch):
    (tmp_path / "imported_by_a_checkpoint.py").write_text(f"open({str(tmp_path / 'm')!r}, 'w').close()\nThing = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name, payload in payloads(tmp_path / "m").items():
        pickle.loads(beside_weights(payload))
        assert (tmp_path / "m").exists(), name
        (tmp_path / "m").unlink()
    del sys.modules["imported_by_a_checkpoint"]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", payloads(Path("x")))
def test_nothing_runs_and_the_weights_are_read(tmp_path, marker, name, form):
    path = write(tmp_path / "evil.pth", beside_weights(payloads(marker)[name]), form)
    assert read_checkpoint(path, foreign=True)["w"].tolist() == [1, 1]
    if name != "a storage in bytes" or form != "zip":
        with pytest.raises(ValueError, match=rf"^cannot read weights from {path}: it holds \S+, which is not plain"):
            read_checkpoint(path)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    "payload",
    [
        b"ccollections\nOrderedDict\n(N}Vspoilt\nK\x01stb",  # set an attribute of a class
        b"cnumpy\nndarray\n(N}Vspoilt\nK\x01stb",
        b"cbuiltins\nset\n}Vspoilt\nK\x01sb",
        b"cunknown\nThing\n(N}Vspoilt\nK\x01stb",
    ],
)
def test_what_a_name_stands_for_cannot_be_changed(tmp_path, payload, form):
    path = write(tmp_path / "evil.pth", beside_weights(payload), form)
    with pytest.raises(ValueError, match=r"evil\.pth: [^\n]+$"):
        read_checkpoint(path, foreign=True)
    plain = pickle.dumps({"a": collections.OrderedDict(b=1), "w": np.ones(1), "s": {1}})
    content = read_checkpoint(write(tmp_path / "plain.pkl", plain, "pickle"))
    assert not any(hasattr(type(value), "spoilt") or hasattr(value, "spoilt") for value in content.values())


class Colour(enum.Enum):
    RED = 1


class AttributeDict(dict):
    """As Lightning's hyper_parameters: a dict of its own class."""


class Items(list):
    pass


class Strange:
    def __init__(self):
        self.nested = {"path": Path("/data"), "again": self}


OBJECTS = {
    "pathlib": Path("/data/imagenet"),
    "argparse": argparse.Namespace(lr=0.03, data=Path("/data")),
    "enum": {Colour.RED: [Colour.RED]},
    "datetime": datetime.datetime(2024, 2, 29, tzinfo=datetime.UTC),
    "a class": Strange(),
    "a dict's class": AttributeDict(lr=0.1, path=Path("x")),
    "a list's class": Items([1, Path("x")]),
    "defaultdict": collections.defaultdict(Strange, a=1),
    "deque": collections.deque([1, 2]),
    "partial": functools.partial(print, "x"),
    "set of paths": {Path("x"), Path("y")},
    "slice": slice(1, 2),
    "numpy strings": np.array(["cat", "dog"]),
    "numpy objects": np.array([None, Path("x")]),
    "numpy string": np.str_("x"),
    "numpy random": np.random.RandomState(3),
    "numpy generator": np.random.default_rng(3),
    "dtype": torch.float16,
    "device": torch.device("cuda:1"),
    "size": torch.Size([1, 2]),
    "optimizer": torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1),
    "function": recognise,
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", OBJECTS)
def test_objects_beside_the_weights(tmp_path, name, form):
    weights = {"conv.weight": torch.arange(6.0).reshape(2, 3), "array": np.arange(3)}
    path = save(tmp_path / "last.ckpt", {"hyper_parameters": OBJECTS[name], "state_dict": weights}, form)
    content = read_checkpoint(path, foreign=True)
    assert torch.equal(content["state_dict"]["conv.weight"], weights["conv.weight"])
    assert content["state_dict"]["array"].tolist() == [0, 1, 2]


def test_what_is_left_out_is_said_in_one_line(tmp_path, caplog):
    content = {"args": OBJECTS["argparse"], "when": OBJECTS["datetime"], "w": torch.ones(1)}
    path = save(tmp_path / "last.ckpt", content, "zip")
    with caplog.at_level(logging.INFO, logger="densesiam_d2"):
        read_checkpoint(path, foreign=True)
    (message,) = caplog.messages
    assert message.startswith(f"{path}: left out objects that are no tensors: argparse.Namespace, pathlib.")
    assert "datetime.datetime" in message and "\n" not in message


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: {"model": m, "epoch": 3}, lambda m: [nn.DataParallel(m), 3]])
def test_a_network_that_was_pickled_whole(tmp_path, form, wrap):
    network = tv_resnet(18, seed=3)
    found = recognise(read_checkpoint(save(tmp_path / "model.pt", wrap(network), form), foreign=True))
    assert len(found.state) == 100 and found.torchvision
    assert np.array_equal(found.state["res5.1.conv2.weight"], network.layer4[1].conv2.weight.detach().numpy())
    assert np.array_equal(found.state["res2.0.conv1.norm.running_var"], network.layer1[0].bn1.running_var.numpy())


DTYPES = [
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128, torch.bool),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
]
NEW_DTYPES = [torch.uint16, torch.uint32, torch.float8_e4m3fn]  # torch itself cannot read them in its old format


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_tensors_come_bit_by_bit_as_torch_reads_them(tmp_path, form):
    bits = torch.randint(0, 256, (64,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    dtypes = DTYPES + (NEW_DTYPES if form == "zip" else [])
    tensors = {str(dtype): (bits % 2).bool() if dtype == torch.bool else bits.view(dtype).clone() for dtype in dtypes}
    base = torch.arange(24.0).reshape(2, 3, 4)
    tensors |= {"base": base, "part": base[1, :, 1:3], "turned": base.permute(2, 0, 1), "one": torch.tensor(3.0)}
    tensors |= {"empty": torch.empty(0, 3), "expanded": torch.ones(1, 1).expand(3, 4), "parameter": nn.Parameter(base)}
    path = save(tmp_path / "w.pth", {"model": collections.OrderedDict(tensors)}, form)
    expected = torch.load(path, weights_only=True)["model"]
    ours = read_checkpoint(path)["model"]
    assert list(ours) == list(expected)
    for name, tensor in expected.items():
        assert ours[name].dtype == tensor.dtype and ours[name].shape == tensor.shape, name
        assert ours[name].stride() == tensor.stride(), name
        if tensor.numel():
            raw = [t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (ours[name], tensor)]
            assert torch.equal(*raw), name
    ours["base"][1, 0, 1] = -1  # memory that was shared is shared again
    assert ours["part"][0, 0] == -1


def test_tensors_of_a_plain_pickle(tmp_path):
    tensors = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.ones(2, dtype=torch.bfloat16)}
    content = read_checkpoint(save(tmp_path / "w.pkl", tensors, "pickle"))
    assert all(torch.equal(content[name], tensor) for name, tensor in tensors.items())


def test_a_tensor_outside_its_memory_is_refused(tmp_path):
    stream = io.BytesIO()
    torch.save({"w": torch.ones(4)}, stream)
    with zipfile.ZipFile(stream) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    (name,) = (name for name in records if name.endswith("data.pkl"))
    assert records[name].count(b"K\x04\x85") == 1  # the size (4,)
    records[name] = records[name].replace(b"K\x04\x85", b"K\x50\x85")  # 80 numbers
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        for record, data in records.items():
            archive.writestr(record, data)
    with pytest.raises(ValueError, match=r"^cannot read weights from .*w\.pth: it is damaged \(RuntimeError\)$"):
        read_checkpoint(tmp_path / "w.pth")

"""Files from other people run no code and are fetched from nowhere: one test for each way in that detectron2 leaves.

A payload touches a marker file when it runs; the first test shows that each one does where nobody takes care.
"""

import ast
import contextlib
import logging
import pickle
from pathlib import Path

import pytest
import torch
import yaml

from densesiam_d2.checkpoint import CheckedCheckpointer, read_checkpoint, save_torchvision
from densesiam_d2.data.record_paths import check_record_paths
from densesiam_d2.engine.setup import load_config
from densesiam_d2.image_io import read_image
from densesiam_d2.tools.export_backbone import main as export_backbone
from tests.checkpoint.networks import d2_resnet, prefixed, tv_resnet
from tests.faults.evil import Touch, evil_pickle, evil_pth, evil_tag, evil_yaml, remote_base_yaml, serve

ROOT = Path(__file__).parents[2]


@pytest.fixture
def marker(tmp_path):
    """The file that no payload may touch."""
    path = tmp_path / "marker"
    yield path
    assert not path.exists()


@contextlib.contextmanager
def refused(file, marker, error=ValueError):
    """Expect an error of one line that names the file, and no sign of its payload."""
    with pytest.raises(error) as raised:
        yield raised
    assert Path(file).name in str(raised.value) and "\n" not in str(raised.value)
    assert not marker.exists()


def checkpointer(folder=""):
    return CheckedCheckpointer(torch.nn.Linear(1, 1), str(folder))


@pytest.mark.filterwarnings("ignore:Environment variable TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
def test_the_payloads_are_real(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    for load in (
        lambda marker: pickle.loads(evil_pickle(tmp_path / "x.pkl", marker).read_bytes()),
        lambda marker: torch.load(evil_pth(tmp_path / "x.pth", marker)),
        lambda marker: torch.load(evil_pth(tmp_path / "x.pth", marker, new_format=False)),
        lambda marker: yaml.unsafe_load(evil_yaml(tmp_path / "x.yaml", marker).read_text()),
    ):
        load(tmp_path / "marker")
        (tmp_path / "marker").unlink()


# Weights.


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_pickle_as_weights(tmp_path, marker, protocol):
    path = evil_pickle(tmp_path / "evil.pkl", marker, protocol)
    with refused(path, marker):
        checkpointer().resume_or_load(str(path), resume=False)


def test_pickle_as_weights_from_an_address(tmp_path, marker, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    content = evil_pickle(tmp_path / "evil.pkl", marker).read_bytes()
    with serve(content) as server, refused("evil.pkl", marker):
        checkpointer().resume_or_load(f"{server.address}/evil.pkl", resume=False)
    assert server.requests == ["/evil.pkl"]


@pytest.mark.parametrize("forced", ["0", "1"])
@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("name", ["evil.pth", "evil.pth.tar", "evil.pyth", "evil.pkl"])
def test_file_of_torch_as_weights(tmp_path, marker, monkeypatch, name, new_format, forced):
    """Its tensors are read, and what lies beside them does not run; where only our own files belong it is refused."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", forced)
    path = evil_pth(tmp_path / name, marker, new_format)
    checkpointer().resume_or_load(str(path), resume=False)
    assert read_checkpoint(path, foreign=True)["model"]["w"].tolist() == [0]
    with refused(path, marker):
        read_checkpoint(path)
    with refused(path, marker):
        checkpointer().load(str(path))


@pytest.mark.parametrize("suffix", ["pth", "pkl"])
def test_a_backbone_beside_code(tmp_path, marker, suffix, capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger("densesiam_d2"), "propagate", True)  # a run before may have changed it
    path, state = tmp_path / f"evil.{suffix}", tv_resnet(18).state_dict()
    content = {"state_dict": state, "callbacks": {"x": Touch(marker)}, "metadata": Touch(marker)}
    if suffix == "pth":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    assert export_backbone(["--input", str(path), "--output", str(tmp_path / "b.pkl")]) == 0
    assert f"{path}: left out objects that are no tensors: builtins.exec" in capsys.readouterr().err
    weights = read_checkpoint(tmp_path / "b.pkl")["model"]
    assert (weights["stem.conv1.weight"] == state["conv1.weight"].numpy()).all()
    model = torch.nn.Module()
    model.backbone = d2_resnet(18, seed=1)
    CheckedCheckpointer(model).resume_or_load(str(path), resume=False)
    assert torch.equal(model.backbone.stem.conv1.weight, state["conv1.weight"])


@pytest.mark.parametrize("build", [evil_pickle, evil_pth])
def test_pickle_under_the_name_of_safetensors(tmp_path, marker, build):
    path = build(tmp_path / "evil.safetensors", marker)
    with refused(path, marker):
        checkpointer().resume_or_load(str(path), resume=False)


@pytest.mark.parametrize("build", [evil_pickle, evil_pth])
def test_pickle_to_be_exported(tmp_path, marker, build, capsys):
    path = build(tmp_path / f"evil.{'pkl' if build is evil_pickle else 'pth'}", marker)
    assert export_backbone(["--input", str(path), "--output", str(tmp_path / "b.pkl")]) == 2
    assert str(path) in capsys.readouterr().err


# Resuming.


@pytest.mark.parametrize("name", ["evil.pkl", "../evil.pkl", "../evil.pth", "{tmp_path}/evil.pth"])
def test_tag_that_names_what_training_never_wrote(tmp_path, marker, monkeypatch, name):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    (tmp_path / "run").mkdir()
    for folder in (tmp_path, tmp_path / "run"):
        evil_pickle(folder / "evil.pkl", marker)
    evil_pth(tmp_path / "evil.pth", marker)
    evil_tag(tmp_path / "run", name.format(tmp_path=tmp_path))
    with refused("last_checkpoint", marker):
        checkpointer(tmp_path / "run").resume_or_load("", resume=True)


@pytest.mark.parametrize("tagged", [True, False])
def test_checkpoint_of_the_run_itself(tmp_path, marker, monkeypatch, tagged):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path = evil_pth(tmp_path / "model_0000001.pth", marker)
    if tagged:
        evil_tag(tmp_path, path.name)
    with refused(path, marker):
        checkpointer(tmp_path).resume_or_load("", resume=True)


# Configs.


def test_yaml_that_runs_code(tmp_path, marker):
    path = evil_yaml(tmp_path / "evil.yaml", marker)
    with refused(path, marker):
        load_config(str(path))


def test_base_that_runs_code(tmp_path, marker):
    evil_yaml(tmp_path / "evil.yaml", marker)
    path = remote_base_yaml(tmp_path / "mine.yaml", "evil.yaml")
    with refused("evil.yaml", marker):
        load_config(str(path))


@pytest.mark.parametrize("as_list", [False, True])
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_base_at_an_address(tmp_path, marker, depth, as_list):
    content = evil_yaml(tmp_path / "evil.yaml", marker).read_bytes()
    with serve(content) as server:
        address = f"{server.address}/x.yaml"
        path = remote_base_yaml(tmp_path / "0.yaml", f"[{address}]" if as_list else address)
        for i in range(depth):
            path = remote_base_yaml(tmp_path / f"{i + 1}.yaml", path.name)
        with refused("0.yaml", marker) as raised:
            load_config(str(path))
    assert f"0.yaml: _BASE_ {address} is not a local file" in str(raised.value)
    assert server.requests == []


def test_bases_on_this_machine_are_read(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for folder in ("home", "configs/deep"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "home" / "0.yaml").write_text("SEED: 1\nOUTPUT_DIR: home\n")
    (tmp_path / "configs" / "1.yaml").write_text("_BASE_: ~/0.yaml\nSEED: 2\n")
    (tmp_path / "configs" / "deep" / "2.yaml").write_text("_BASE_: ../1.yaml\nSEED: 3\n")
    (tmp_path / "3.yaml").write_text(f"_BASE_: [configs/1.yaml, {tmp_path}/configs/deep/2.yaml]\nVERSION: 2\n")
    monkeypatch.chdir(tmp_path)
    cfg = load_config("3.yaml")
    assert (cfg.OUTPUT_DIR, cfg.SEED) == ("home", 3)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("_BASE_: gone.yaml", FileNotFoundError, "_BASE_ gone.yaml: no such file"),
        ("_BASE_: x.yaml", ValueError, "_BASE_ x.yaml stands on this file itself"),
        ("_BASE_: ~", ValueError, "_BASE_ None is not a local file"),
        ("_BASE_: [s3://x/y.yaml]", ValueError, "_BASE_ s3://x/y.yaml is not a local file"),
        ("SEED 3", ValueError, "holds no keys and values"),
        ("SEED: [3", ValueError, "expected"),
    ],
)
def test_mistakes_in_a_yaml_are_one_line(tmp_path, content, error, message):
    (tmp_path / "x.yaml").write_text(content)
    with refused("x.yaml", tmp_path / "marker", error) as raised:
        load_config(str(tmp_path / "x.yaml"))
    assert message in str(raised.value)


@pytest.mark.parametrize("kind", ["code", "address"])
def test_config_beside_a_checkpoint_to_be_exported(tmp_path, marker, kind, capsys):
    model = prefixed("backbone.", d2_resnet(18).state_dict())
    torch.save({"model": model}, tmp_path / "model_final.pth")
    with serve() as server:
        if kind == "code":
            evil_yaml(tmp_path / "config.yaml", marker)
        else:
            remote_base_yaml(tmp_path / "config.yaml", f"{server.address}/x.yaml")
        arguments = ["--input", str(tmp_path / "model_final.pth"), "--output", str(tmp_path / "b.pkl")]
        assert export_backbone(arguments) == 2
    assert f"export_backbone: {tmp_path / 'config.yaml'}: " in capsys.readouterr().err
    assert server.requests == []


def test_values_on_the_command_line_are_no_code(tmp_path, marker):
    (tmp_path / "plain.yaml").write_text("VERSION: 2\n")
    code = f"__import__('os').mknod('{marker}')"
    cfg = load_config(str(tmp_path / "plain.yaml"), ["OUTPUT_DIR", code])
    assert code == cfg.OUTPUT_DIR


def test_yaml_with_a_target_to_call(tmp_path, marker):
    (tmp_path / "target.yaml").write_text(f"_target_: os.mknod\npath: {marker}\n")
    with pytest.raises(ValueError, match="no config key _target_"):
        load_config(str(tmp_path / "target.yaml"))


# Data.


def test_image_at_an_address():
    with serve() as server:
        for address in (f"{server.address}/x.jpg", f"{server.address}/../../x.pth"):
            with pytest.raises(ValueError, match=f"first {address}: copy"):
                check_record_paths([{"file_name": address}])
            with pytest.raises(FileNotFoundError):
                read_image(address)
    assert server.requests == []


@pytest.mark.parametrize("name", ["{root}/../secret.png", "/etc/passwd"])
def test_image_outside_its_dataset(tmp_path, name):
    name = name.format(root=tmp_path)
    with pytest.raises(ValueError, match=f"first {name}: write"):
        check_record_paths([{"file_name": name}], [tmp_path])


# Our own files and our own code.


def test_our_own_files_hold_nothing_but_data(tmp_path):
    """Torch's own loader with weights_only, with no class added to its list, reads them."""
    saver = CheckedCheckpointer(torch.nn.Linear(1, 1), str(tmp_path), expect={"pixel_mean": [1.0], "depth": 18})
    saver.save("model_final", iteration=1)
    save_torchvision(tmp_path / "backbone.pth", {"stem.conv1.weight": torch.zeros(1).numpy()})
    for name in ("model_final.pth", "backbone.pth"):
        torch.load(tmp_path / name, weights_only=True)


# What a call must not name; what keyword a call must have, by the end of its name; what value a keyword must have.
FORBIDDEN = {
    *("eval", "exec", "os.system", "os.popen", "torch.hub.load", "hydra.utils.instantiate"),
    *(f"pickle.{name}" for name in ("load", "loads", "Unpickler")),
    *(f"yaml.{name}" for name in ("load", "load_all", "full_load", "full_load_all", "unsafe_load", "unsafe_load_all")),
    *(f"detectron2.config.{name}" for name in ("LazyConfig.load", "instantiate")),
}
NEEDED = {"torch.load": "weights_only", ".merge_from_file": "allow_unsafe"}
SAFE = {"weights_only": True, "allow_unsafe": False, "allow_pickle": False, "shell": False}


def calls_that_could_run_code(source: str) -> list[str]:
    """Return the calls in a Python source that would run what a file or a string says."""
    tree = ast.parse(source)
    imported = {}  # what a name in this source stands for
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom):
            imported |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    found = []
    for call in [node for node in ast.walk(tree) if isinstance(node, ast.Call)]:
        first, dot, rest = ast.unparse(call.func).partition(".")
        name = imported.get(first, first) + dot + rest
        keywords = {keyword.arg: keyword.value for keyword in call.keywords}
        needed = {keyword for end, keyword in NEEDED.items() if name.endswith(end)}
        unsafe = {k for k in keywords.keys() & SAFE.keys() if ast.unparse(keywords[k]) != str(SAFE[k])}
        if name in FORBIDDEN or needed - keywords.keys() or unsafe:
            found.append(f"line {call.lineno}: {ast.unparse(call)}")
    return found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.load(f)",
        "import pickle as p\np.loads(b)",
        "from pickle import load\nload(f)",
        "pickle.Unpickler(f).load()",
        "torch.load(f)",
        "torch.load(\n    f,\n    map_location='cpu',\n)",
        "torch.load(f, weights_only=False)",
        "torch.load(f, weights_only=flag)",
        "yaml.load(f, Loader=yaml.SafeLoader)",
        "from yaml import unsafe_load as safe\nsafe(f)",
        "eval(text)",
        "exec(text)",
        "os.system(text)",
        "subprocess.run(text, shell=True)",
        "np.load(f, allow_pickle=True)",
        "cfg.merge_from_file(f)",
        "cfg.merge_from_file(f, True)",
        "cfg.merge_from_file(f, allow_unsafe=True)",
        "from detectron2.config import LazyConfig\nLazyConfig.load(f)",
        "from detectron2.config import instantiate as build\nbuild(f)",
    ],
)
def test_the_search_finds(source):
    assert len(calls_that_could_run_code(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "build(cfg).eval()",
        "'eval(x)'  # pickle.load(f)",
        "torch.load(f, mmap=True, weights_only=True)",
        "yaml.safe_load(f)",
        "json.load(f)",
        "cfg.merge_from_file(f, allow_unsafe=False)",
        "subprocess.run([text], shell=False)",
        "np.load(f)",
        "class Careful(pickle.Unpickler):\n    pass",
        "pickle.dump(x, f)",
    ],
)
def test_the_search_leaves_alone(source):
    assert calls_that_could_run_code(source) == []


@pytest.mark.parametrize("path", [ROOT / "train_net.py", *sorted((ROOT / "densesiam_d2").rglob("*.py"))], ids=str)
def test_no_call_of_ours_runs_what_a_file_says(path):
    assert calls_that_could_run_code(path.read_text()) == []

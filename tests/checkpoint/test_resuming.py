"""A run goes on from the newest whole checkpoint, whatever a crash left behind."""

import pytest
import torch

from densesiam_d2.atomic import atomic_write
from densesiam_d2.checkpoint import CheckedCheckpointer
from densesiam_d2.checkpoint.loading import WeightsError
from densesiam_d2.checkpoint.resuming import find_damage, newest_valid
from tests.faults.evil import evil_pth


def model_of(value):
    model = torch.nn.Linear(50, 50)
    torch.nn.init.constant_(model.weight, value)
    return model


@pytest.fixture
def folder(tmp_path):
    """A run with checkpoints of iterations 9, 19 and 29, whose weights are their iterations."""
    for iteration in (9, 19, 29):
        saver = CheckedCheckpointer(model_of(iteration), str(tmp_path))
        saver.save(f"model_{iteration:07d}", iteration=iteration, trainer={"iteration": iteration})
    return tmp_path


def resumed_from(folder):
    model = model_of(-1)
    extra = CheckedCheckpointer(model, str(folder)).resume_or_load("", resume=True)
    assert (model.weight == extra["iteration"]).all()
    return extra["iteration"]


def test_the_last_one_when_all_is_well(folder):
    assert (folder / "last_checkpoint").read_text() == "model_0000029.pth"
    assert resumed_from(folder) == 29


@pytest.mark.parametrize("tag", [True, False])
@pytest.mark.parametrize(
    ("content", "lacking"),
    [
        (model_of(-1).state_dict(), "model, iteration, trainer"),
        ({"model": model_of(-1).state_dict(), "iteration": 29}, "trainer"),  # stripped of the optimizer's state
        ({"model": {}, "iteration": 29, "trainer": {"iteration": 29}}, "model"),
        ({"model": model_of(-1).state_dict(), "iteration": "29", "trainer": {"iteration": 29}}, "iteration"),
    ],
)
def test_a_file_that_another_tool_wrote_is_passed_over(folder, caplog, content, lacking, tag):
    torch.save(content, folder / "model_0000029.pth")
    if not tag:
        (folder / "last_checkpoint").unlink()
    assert resumed_from(folder) == 19
    assert f"{folder}/model_0000029.pth is no checkpoint of a training: it lacks {lacking}\n" in caplog.text


@pytest.mark.parametrize("content", [None, b"", b"model_0000039.pth", b"\xff\xfe"])
def test_a_bad_tag_does_not_matter(folder, content):
    (folder / "last_checkpoint").unlink()
    if content is not None:
        (folder / "last_checkpoint").write_bytes(content)
    assert resumed_from(folder) == 29


@pytest.mark.parametrize("name", ["../model_0000039.pth", "{folder}/../model_0000039.pth", "sub/x.pth", "x.pkl", ".."])
def test_a_tag_names_a_checkpoint_of_this_folder_only(folder, name, caplog):
    (folder / "sub").mkdir()
    for other in ("../model_0000039.pth", "sub/x.pth", "x.pkl"):
        torch.save({"model": model_of(39).state_dict(), "iteration": 39}, folder / other)
    (folder / "last_checkpoint").write_text(name.format(folder=folder))
    assert resumed_from(folder) == 29
    assert f"cannot resume from {folder}/last_checkpoint is missing or names no .pth file of that folder" in caplog.text


def test_a_checkpoint_with_code_is_passed_over(folder, monkeypatch, caplog):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    evil_pth(folder / "model_0000039.pth", folder / "marker")
    (folder / "last_checkpoint").unlink()
    assert resumed_from(folder) == 29
    assert f"cannot read weights from {folder}/model_0000039.pth: it holds builtins.exec" in caplog.text
    assert not (folder / "marker").exists()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.6, 0.9, 0.9999])
def test_a_torn_file_is_named_and_an_older_one_is_taken(folder, share, caplog):
    newest = folder / "model_0000029.pth"
    content = newest.read_bytes()
    newest.write_bytes(content[: int(share * len(content))])
    assert resumed_from(folder) == 19
    assert f"cannot resume from {newest}" in caplog.text


def test_a_flipped_bit_is_noticed(folder):
    newest = folder / "model_0000029.pth"
    content = bytearray(newest.read_bytes())
    weights = content.find(torch.full((50,), 29.0).numpy().tobytes())
    assert weights > 0
    content[weights + 1] ^= 1
    newest.write_bytes(content)
    torch.load(newest, weights_only=True)  # torch itself takes it
    assert "checksum" in find_damage(newest)
    assert resumed_from(folder) == 19


def test_without_any_whole_file_nothing_is_started_over(folder):
    for path in folder.glob("*.pth"):
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(WeightsError, match=r"no whole checkpoint in .*model_0000009.pth: .*move what is there away"):
        resumed_from(folder)


def test_the_highest_iteration_counts_not_the_name(folder):
    CheckedCheckpointer(model_of(24), str(folder)).save("model_final", iteration=24, trainer={"iteration": 24})
    (folder / "last_checkpoint").unlink()
    assert newest_valid(folder)[0].name == "model_0000029.pth"


@pytest.mark.parametrize("moment", ["write", "replace", "tag"])
def test_a_crash_while_saving_leaves_the_run_as_it_was(folder, moment, monkeypatch):
    def crash(*_):
        raise KeyboardInterrupt

    saver = CheckedCheckpointer(model_of(39), str(folder))
    if moment == "tag":
        monkeypatch.setattr(saver, "tag_last_checkpoint", crash)
    else:
        monkeypatch.setattr(*((torch, "save", crash) if moment == "write" else ("os.fsync", crash)))
    with pytest.raises(KeyboardInterrupt):
        saver.save("model_0000039", iteration=39)
    monkeypatch.undo()
    assert resumed_from(folder) == 29
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]  # no half files


def test_the_same_name_is_replaced_whole(folder):
    with pytest.raises(ZeroDivisionError), atomic_write(folder / "model_0000029.pth") as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert resumed_from(folder) == 29


def test_what_a_killed_save_left_is_written_over(folder):
    """After kill -9 no cleaning code runs: the next save of that name must use the same file."""
    (folder / ".model_0000039.pth.partial").write_bytes(b"half")
    CheckedCheckpointer(model_of(39), str(folder)).save("model_0000039", iteration=39, trainer={"iteration": 39})
    assert resumed_from(folder) == 39
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]

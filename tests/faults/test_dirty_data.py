"""Unreadable images in a training: others take their places, they are written down, and too many end the run."""

import itertools
import json
import os

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from densesiam_d2.data.loader import SeededSamples, build_two_view_train_loader
from densesiam_d2.data.quarantine import Quarantine, read_quarantine
from densesiam_d2.image_io import UnreadableImageError
from tests.data.test_two_view_mapper import make_cfg
from tests.faults.runs import options, train, write_images


@pytest.fixture
def images(tmp_path):
    return write_images(tmp_path / "scenes", num=40, size=64)


def batches(folder, number, *, workers=0, output, seed=3, max_share=0.5):
    name = f"folder:{folder}"
    cfg = make_cfg("VIEW_SIZE", 16)
    cfg.DATASETS.TRAIN, cfg.SOLVER.IMS_PER_BATCH, cfg.SEED = (name,), 8, seed
    cfg.DATALOADER.NUM_WORKERS, cfg.MODEL.DEVICE, cfg.OUTPUT_DIR = workers, "cpu", str(output)
    cfg.RUN.MAX_UNREADABLE = max_share
    try:
        return list(itertools.islice(build_two_view_train_loader(cfg), number))
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def spoil(folder, which):
    files = sorted(folder.iterdir())
    for i in which:
        files[i].write_bytes(files[i].read_bytes()[:200])
    return [str(files[i]) for i in which]


def quarantined(output):
    return [json.loads(line) for line in (output / "quarantine.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_files_change_no_other_sample(images, tmp_path, workers):
    clean = batches(images, 10, output=tmp_path / "clean")
    bad = spoil(images, [5, 17])
    dirty = batches(images, 10, output=tmp_path / "dirty", workers=workers)
    substitutes = 0
    for before, after in zip(clean, dirty, strict=True):
        for i, name in enumerate(before["file_name"]):
            if name in bad:
                assert after["file_name"][i] not in bad
                substitutes += 1
            else:
                assert after["file_name"][i] == name
                assert torch.equal(after["views"][i], before["views"][i])
    assert substitutes == 4  # two epochs
    found = quarantined(tmp_path / "dirty")
    assert sorted(entry["file_name"] for entry in found) == bad  # once each
    assert all(entry["file_name"] in entry["reason"] for entry in found)
    assert not (tmp_path / "clean" / "quarantine.jsonl").exists()


def test_substitutes_are_the_same_whatever_the_number_of_workers(images, tmp_path):
    spoil(images, [0, 1, 2, 3])
    alone, many = (batches(images, 6, output=tmp_path / str(n), workers=n) for n in (0, 3))
    for one, other in zip(alone, many, strict=True):
        assert one["file_name"] == other["file_name"] and torch.equal(one["views"], other["views"])


def test_too_many_bad_files_end_the_run(images, tmp_path):
    bad = spoil(images, range(0, 40, 4))
    with pytest.raises(UnreadableImageError, match=r"of the last \d+ images cannot be read, more than") as raised:
        batches(images, 30, output=tmp_path, max_share=0.1)
    assert any(file in str(raised.value) for file in bad)
    assert "RUN.MAX_UNREADABLE 0.1" in str(raised.value)


def test_nothing_but_bad_files_ends_the_run_at_once(images, tmp_path):
    spoil(images, range(40))
    with pytest.raises(UnreadableImageError, match="20 images in a row cannot be read, the last "):
        batches(images, 1, output=tmp_path)


def test_nothing_but_bad_files_is_one_line_also_from_a_worker(images, tmp_path):
    spoil(images, range(40))
    done = train(options(images, tmp_path / "out", "DATALOADER.NUM_WORKERS", 1))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("train_net.py: 20 images in a row cannot be read, the last ")
    assert "Traceback" not in done.stderr


def test_a_file_that_vanishes_is_unreadable_too(images, tmp_path):
    name = f"folder:{images}"
    cfg = make_cfg("VIEW_SIZE", 16)
    cfg.DATASETS.TRAIN, cfg.SOLVER.IMS_PER_BATCH, cfg.SEED, cfg.OUTPUT_DIR = (name,), 8, 3, str(tmp_path)
    cfg.DATALOADER.NUM_WORKERS, cfg.MODEL.DEVICE = 0, "cpu"
    loader = build_two_view_train_loader(cfg)
    gone = sorted(images.iterdir())[7]
    gone.unlink()
    list(itertools.islice(loader, 5))
    assert [entry["file_name"] for entry in quarantined(tmp_path)] == [str(gone)]


def test_a_pipe_does_not_hang(images, tmp_path):
    pipe = images / "0.png"
    os.mkfifo(pipe)
    batches(images, 6, output=tmp_path)
    assert [(e["file_name"], "not a regular file" in e["reason"]) for e in quarantined(tmp_path)] == [(str(pipe), True)]


def test_a_fault_of_the_program_is_no_bad_image():
    def mapper(record):
        raise ZeroDivisionError("a slip")

    with pytest.raises(RuntimeError, match=r"a\.jpg: ZeroDivisionError: a slip"):
        SeededSamples([{"file_name": "a.jpg"}], mapper, substitute=True)[0, 1, 2]


def test_labelled_images_are_not_substituted(tmp_path):
    def mapper(record):
        raise OSError("Truncated File Read")  # Pillow's text, without the name

    with pytest.raises(RuntimeError, match=r"a\.jpg: OSError: Truncated File Read"):
        SeededSamples([{"file_name": "a.jpg"}], mapper, substitute=False)[0, 1, 2]


def test_known_files_are_not_written_again(tmp_path, caplog):
    path = tmp_path / "quarantine.jsonl"
    Quarantine(path, max_share=1.0).add(8, [("a.jpg", "bad a.jpg")])
    with path.open("a") as file:
        file.write('{"file_na')  # of a run that was killed
    resumed = Quarantine(path, max_share=1.0)
    resumed.add(8, [("a.jpg", "bad a.jpg")])
    assert path.read_text().count("a.jpg") == 2  # its name, and the name in its reason
    resumed.add(8, [("b.jpg", "bad b.jpg")])
    assert json.loads(path.read_text().splitlines()[-1])["file_name"] == "b.jpg"
    path.unlink()
    path.symlink_to("/dev/full")
    resumed.add(8, [("c.jpg", "bad c.jpg")])
    assert "cannot write" in caplog.text


def test_names_that_are_not_utf8_can_be_logged(tmp_path, caplog):
    path, name = tmp_path / "quarantine.jsonl", os.fsdecode(b"caf\xe9.jpg")
    quarantine = Quarantine(path, max_share=0.1)
    with pytest.raises(UnreadableImageError, match=r"caf\\udce9\.jpg: bad"):
        quarantine.add(100, [(f"{i}{name}", f"bad {name}") for i in range(20)])
    assert r"another one is taken: bad caf\udce9.jpg" in caplog.text
    assert read_quarantine(path)[1]["file_name"] == f"1{name}"


def test_a_training_goes_through_bad_files(images, tmp_path):
    bad = spoil(images, [3, 30])
    done = train(options(images, tmp_path / "out", "DATALOADER.NUM_WORKERS", 2))
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(entry["file_name"] for entry in quarantined(tmp_path / "out")) == bad
    assert "another one is taken" in done.stdout

import itertools
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils.env import seed_all_rng
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from densesiam_d2.data.image_index import ImageFiles
from densesiam_d2.data.loader import (
    SeededSamples,
    TrainLoader,
    build_labelled_train_loader,
    build_two_view_train_loader,
    protect_workers,
)
from densesiam_d2.data.order import EndlessBatches, SampleKey, shuffled
from densesiam_d2.data.two_view_mapper import TwoViewDatasetMapper, collate_views
from densesiam_d2.engine.signals import handle_stop_signals

from .photos import smooth_image
from .test_two_view_mapper import make_cfg


@pytest.fixture
def cfg(tmp_path):
    for i in range(6):
        Image.fromarray(smooth_image(40, 50, seed=i)).save(tmp_path / f"{i}.png")
    cfg = make_cfg("VIEW_SIZE", 16)
    cfg.DATASETS.TRAIN = (f"folder:{tmp_path}",)
    cfg.SOLVER.IMS_PER_BATCH = 3
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.MODEL.DEVICE = "cpu"
    yield cfg
    for name in cfg.DATASETS.TRAIN:
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def batches(cfg, number, seed=5):
    seed_all_rng(seed)
    return list(itertools.islice(build_two_view_train_loader(cfg), number))


def test_batches_cover_every_image_and_repeat_under_a_seed(cfg):
    first = batches(cfg, 4)
    assert first[0]["views"].shape == (3, 2, 3, 16, 16) and first[0]["view_boxes"].shape == (3, 2, 4)
    names = [name for batch in first for name in batch["file_name"]]
    assert len(set(names[:6])) == len(set(names[6:])) == 6  # two epochs
    for one, other in zip(first, batches(cfg, 4), strict=True):
        assert torch.equal(one["views"], other["views"]) and one["file_name"] == other["file_name"]
    assert not torch.equal(batches(cfg, 1, seed=6)[0]["views"], first[0]["views"])


def test_positions_identify_the_samples(cfg, tmp_path):
    """A position has the same image and views with workers, after a resume, and when the dataset is asked directly."""
    cfg.SEED = 4
    alone = batches(cfg, 5)
    assert alone[0]["position"].dtype == torch.int64
    assert torch.cat([batch["position"] for batch in alone]).tolist() == list(range(15))
    names = [name for batch in alone for name in batch["file_name"]]
    order = shuffled(np.arange(15), 6, seed=4)  # 2.5 epochs of six images
    assert names == [str(tmp_path / f"{index}.png") for index in order]

    cfg.DATALOADER.NUM_WORKERS = 2
    resumed = build_two_view_train_loader(cfg)
    resumed.batches.start = 3
    for before, after in zip(alone[3:], resumed, strict=False):
        assert torch.equal(after["position"], before["position"]) and torch.equal(after["views"], before["views"])
    for key in itertools.chain(*itertools.islice(resumed.batches, 2)):
        sample, _ = resumed.dataset[key]
        assert sample["position"] == key.position
        assert torch.equal(sample["views"], alone[key.position // 3]["views"][key.position % 3])


@pytest.mark.parametrize("workers", [0, 2])
def test_positions_of_two_processes(cfg, tmp_path, workers):
    mapper = TwoViewDatasetMapper(cfg)
    files = ImageFiles([str(tmp_path / f"{i}.png") for i in range(6)])

    def load(rank, world_size):
        order = EndlessBatches(6, 4, seed=4, rank=rank, world_size=world_size)
        samples = SeededSamples(files, mapper, substitute=True)
        loader = TrainLoader(samples, order, num_workers=workers, collate_fn=collate_views)
        return list(itertools.islice(loader, 3))

    for whole, *shares in zip(load(0, 1), load(0, 2), load(1, 2), strict=True):
        assert torch.equal(torch.stack([share["position"] for share in shares], dim=1).flatten(), whole["position"])
        assert torch.equal(torch.stack([share["views"] for share in shares], dim=1).flatten(0, 1), whole["views"])


def test_a_substitute_has_the_position_of_the_file_it_replaces(cfg, tmp_path):
    cfg.SEED, cfg.OUTPUT_DIR, cfg.RUN.MAX_UNREADABLE = 4, str(tmp_path / "out"), 1.0
    bad = str(tmp_path / "2.png")
    clean = batches(cfg, 4)
    (tmp_path / "2.png").write_bytes(b"no image")
    replaced = 0
    for before, after in zip(clean, batches(cfg, 4), strict=True):
        assert torch.equal(after["position"], before["position"])
        replaced += sum(name == bad for name in before["file_name"])
        assert bad not in after["file_name"]
    assert replaced == 2  # two epochs


def test_samples_get_their_position():
    records, key, given = [{"file_name": "a.png"}], SampleKey(0, seed=1, position=7), {"views": 1}
    assert SeededSamples(records, lambda record: given, substitute=True)[key] == ({"views": 1, "position": 7}, [])
    assert given == {"views": 1}  # a mapper may keep what it returns


def test_frozen_views_come_again_in_every_epoch(cfg):
    def views(number):
        last = batches(cfg, number)[-2:]  # an epoch
        return {name: x for batch in last for name, x in zip(batch["file_name"], batch["views"], strict=True)}

    one, other = views(2), views(4)
    assert not any(torch.equal(one[name], other[name]) for name in one)
    cfg.INPUT.SSL.FREEZE_VIEWS = True
    one, other = views(2), views(4)
    assert len(one) == 6 and all(torch.equal(one[name], other[name]) for name in one)


def test_two_workers_draw_differently(cfg, tmp_path):
    for i in range(1, 6):
        (tmp_path / f"{i}.png").unlink()
    cfg.DATALOADER.NUM_WORKERS = 2  # there is one image, so batches of the two workers differ only by their draws
    one, other = batches(cfg, 2)
    assert one["file_name"] == other["file_name"]
    boxes = torch.cat([one["view_boxes"], other["view_boxes"]]).flatten(1)
    assert len({tuple(box.tolist()) for box in boxes}) == 6
    assert one["views"].stride()[2] == 1  # batches from workers are still channels-last in memory


LEAVING = """
import torch
from densesiam_d2.data.loader import SeededSamples, TrainLoader
from densesiam_d2.data.order import EndlessBatches

torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL = 60.0
records = [{"file_name": str(i)} for i in range(64)]
samples = SeededSamples(records, lambda record: {"views": torch.zeros(3, 64, 64)}, substitute=False)
batches = iter(TrainLoader(samples, EndlessBatches(64, 4, seed=0), num_workers=2))
next(batches)
print("leaving", flush=True)
"""


def test_a_process_with_workers_leaves_at_once():
    """Workers that miss the message to end are waited for, each as long as torch's interval says."""
    process = subprocess.Popen([sys.executable, "-c", LEAVING], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "leaving\n"
    began = time.monotonic()
    assert process.wait(timeout=200) == 0
    assert time.monotonic() - began < 50


def test_annotations_are_dropped_and_nothing_is_filtered(cfg, tmp_path):
    name = "tiny_annotated"
    records = [{"file_name": str(tmp_path / f"{i}.png"), "annotations": [], "height": 1, "width": 1} for i in range(3)]
    DatasetCatalog.register(name, lambda: records)
    try:
        cfg.DATASETS.TRAIN = (name, *cfg.DATASETS.TRAIN)
        loader = build_two_view_train_loader(cfg)
        names = [n for batch in itertools.islice(loader, 3) for n in batch["file_name"]]
        assert len(names) == 9 and len(set(names)) == 6
    finally:
        DatasetCatalog.remove(name)


def test_mistakes(cfg, caplog):
    cfg.SOLVER.IMS_PER_BATCH = 8
    with caplog.at_level(logging.WARNING):
        build_two_view_train_loader(cfg)
    assert "6 images are fewer than SOLVER.IMS_PER_BATCH 8" in caplog.text
    cfg.DATASETS.TRAIN = ()
    with pytest.raises(ValueError, match=r"DATASETS\.TRAIN \(\) has no images"):
        build_two_view_train_loader(cfg)


def test_12_bit_images_are_warned_of_until_the_white_level_is_set(cfg, tmp_path, caplog):
    for i in range(6):
        Image.fromarray(np.full((40, 50), 4095, np.uint16)).save(tmp_path / f"{i}.png")
    cfg.INPUT.SSL.JITTER_PROB = 0.0
    assert batches(cfg, 1)[0]["views"].max() == 16  # 4095 / 257 = 15.9
    assert "INPUT.WHITE_LEVEL 4095" in caplog.text
    caplog.clear()
    cfg.INPUT.WHITE_LEVEL = 4095
    assert (batches(cfg, 1)[0]["views"] == 255).all()
    assert "WHITE_LEVEL" not in caplog.text


@pytest.mark.usefixtures("catalog")
def test_12_bit_images_of_a_detector_are_warned_of(tmp_path, caplog):
    cfg = make_cfg("VIEW_SIZE", 16)
    cfg.MODEL.META_ARCHITECTURE, cfg.DATASETS.TRAIN = "GeneralizedRCNN", ("deep",)
    Image.fromarray(np.full((40, 50), 4095, np.uint16)).save(tmp_path / "a.png")
    annotation = {"bbox": [1, 1, 5, 5], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    record = {"file_name": str(tmp_path / "a.png"), "height": 40, "width": 50, "annotations": [annotation]}
    DatasetCatalog.register("deep", lambda: [record])
    MetadataCatalog.get("deep").thing_classes = ["a"]
    build_labelled_train_loader(cfg, lambda record: record)
    assert "INPUT.WHITE_LEVEL 4095" in caplog.text


def test_image_files_hold_any_name():
    names = ["a.jpg", "", "图/ü.png", os.fsdecode(b"latin-\xfc.jpg"), "b" * 300]
    files = ImageFiles(names)
    assert len(files) == 5
    assert [files[i]["file_name"] for i in range(5)] == names
    with pytest.raises(IndexError):
        files[5]
    assert files._bytes.nbytes == sum(len(os.fsencode(name)) for name in names)
    assert files._ends.dtype == np.int64


@pytest.mark.usefixtures("catalog")
def test_labelled_records_without_anything_to_learn_from(tmp_path):
    """Errors for scripts that do not check their labels first."""
    cfg = make_cfg("VIEW_SIZE", 16)
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.MASK_ON, cfg.DATASETS.TRAIN = "GeneralizedRCNN", True, ("mine",)
    annotation = {"bbox": [1, 1, 5, 5], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    record = {"file_name": str(tmp_path / "a.png"), "height": 9, "width": 9}
    annotations = [annotation]
    DatasetCatalog.register("mine", lambda: [{**record, "annotations": annotations}])
    MetadataCatalog.get("mine").thing_classes = ["a"]
    with pytest.raises(ValueError, match=r"\('mine',\): no annotation has a mask; set MODEL\.MASK_ON False"):
        build_labelled_train_loader(cfg)
    annotations = []
    with pytest.raises(ValueError, match=r"\('mine',\): no image has an annotation that counts"):
        build_labelled_train_loader(cfg)


class Slow(Dataset):
    """Thirty numbers, which take a while; -1 from a worker that was not prepared."""

    prepared = False

    def prepare(self, worker_id):
        self.prepared = True

    def __len__(self):
        return 30

    def __getitem__(self, i):
        time.sleep(0.02)
        return i if self.prepared else -1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_workers_of_detectron2s_loaders_outlive_a_signal_to_the_job(number):
    """A terminal, and torchrun, send it to all processes; the main process then ends an evaluation by itself."""
    seen, got, dataset = [], [], Slow()
    loader = protect_workers(DataLoader(dataset, num_workers=1, worker_init_fn=dataset.prepare))
    with handle_stop_signals(seen.append):
        for batch in loader:
            got.append(batch.item())
            if len(got) == 3:
                for process in (*multiprocessing.active_children(), multiprocessing.current_process()):
                    os.kill(process.pid, number)
    assert got == list(range(30)) and seen == [number]

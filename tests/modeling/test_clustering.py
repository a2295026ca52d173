"""Clustering before each epoch: what is labelled, and a kill inside each of its phases."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.utils import comm

import train_net
from densesiam_d2.data.loader import SeededSamples, TrainLoader
from densesiam_d2.data.order import EndlessBatches
from densesiam_d2.data.two_view_mapper import collate_views
from densesiam_d2.engine import argument_parser, checked_config
from densesiam_d2.modeling.clustering import ClusteringHook
from densesiam_d2.modeling.label_file import LabelFile
from densesiam_d2.modeling.meta_arch import ModifiedDeepCluster, PiCIE
from densesiam_d2.samples.scenes import write_scenes
from tests.engine.test_resume_methods import CONFIGS, SMALL, tensors
from tests.evaluation.processes import in_two_processes
from tests.modeling.meta_arch.tiny import method_cfg, tiny_model

RECIPES = {PiCIE: "picie_R18_FPN_coco27", ModifiedDeepCluster: "modified_deepcluster_R18_FPN_coco27"}
EPOCH = 4  # iterations of 2 images: 8 images


class KilledError(Exception):
    pass


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Return a function that trains two epochs in a folder; ``kill`` stops it at one of the forwards."""
    write_scenes(tmp_path / "scenes", num=2 * EPOCH, seed=0, size=64)
    monkeypatch.setattr(ClusteringHook, "save_seconds", -1.0)  # save after every batch

    def run(method, name, *flags, kill=None, period=2, network="shufflenet_v2_x0_5"):
        forwards, extract = [], method.cluster_features

        def counted(self, batch):
            forwards.append(self.training)
            if len(forwards) == kill:
                raise KilledError
            return extract(self, batch)

        folder = tmp_path / name
        options = {
            **SMALL,
            "MODEL.BACKBONE.NAME": "build_torchvision_backbone",
            "MODEL.TORCHVISION.NAME": network,
            "MODEL.CLUSTERING.GRID_SIZE": 4,
            "MODEL.CLUSTERING.FIRST_BATCHES": 2,
            "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 5,
            "SOLVER.IMS_PER_BATCH": 2,
            "SOLVER.WARMUP_EPOCHS": 0.0,
            "SOLVER.CHECKPOINT_PERIOD": period,
            "DATASETS.TRAIN": f"folder:{tmp_path / 'scenes' / 'images'}",
            "OUTPUT_DIR": folder,
        }
        words = [str(w) for pair in options.items() for w in pair]
        recipe = CONFIGS / "unsup_seg" / f"{RECIPES[method]}.yaml"
        args = argument_parser().parse_args([*flags, "--config-file", str(recipe), *words])
        with monkeypatch.context() as patch:
            patch.setattr(method, "cluster_features", counted)
            if kill:
                with pytest.raises(KilledError):
                    train_net.main(checked_config(args), args)
                return forwards, None
            train_net.main(checked_config(args), args)
        return forwards, torch.load(folder / "model_final.pth", weights_only=True)

    return run


def assert_equal(one, other):
    one, other = ({**tensors(x["model"]), **tensors(x["trainer"])} for x in (one, other))
    assert one.keys() == other.keys() and len(one) > 100
    assert not [name for name in one if not torch.equal(one[name], other[name])]


# An epoch has 4 forwards that cluster, 4 that label, and 4 that train.
def test_killed_in_each_phase(train):
    forwards, expected = train(PiCIE, "straight")
    assert forwards == ([True] * EPOCH + [False] * EPOCH + [True] * EPOCH) * 2
    kills = {  # forward at which the run is killed, and how many are left to do
        "first batches": (3 * EPOCH + 2, 3 * EPOCH),  # plain k-means starts again
        "clustering": (3 * EPOCH + 4, 3 * EPOCH - 3),
        "labelling": (4 * EPOCH + 3, 2 * EPOCH - 2),
        "training": (5 * EPOCH + 4, 2),  # from the checkpoint in the middle of the epoch
        "first epoch": (EPOCH + 2, 5 * EPOCH - 1),  # without any checkpoint
    }
    for name, (kill, left) in kills.items():
        train(PiCIE, name, kill=kill)
        forwards, actual = train(PiCIE, name, "--resume", "auto")
        assert len(forwards) == left, name
        assert_equal(expected, actual)


def test_a_new_classifier_of_each_epoch_survives_a_kill(train):
    _, expected = train(ModifiedDeepCluster, "straight")
    train(ModifiedDeepCluster, "run", kill=5 * EPOCH + 4)
    assert_equal(expected, train(ModifiedDeepCluster, "run", "--resume")[1])


def test_a_network_that_drops_at_random_survives_a_kill(train):
    """EfficientNet leaves out random blocks in training mode, in which features are extracted for clustering too."""
    options = {"network": "efficientnet_b0"}
    _, expected = train(ModifiedDeepCluster, "straight", **options)
    train(ModifiedDeepCluster, "run", kill=3 * EPOCH + 4, **options)  # in the clustering pass of the second epoch
    assert_equal(expected, train(ModifiedDeepCluster, "run", "--resume", **options)[1])


def test_labels_of_older_checkpoints_are_kept(train, tmp_path):
    """The newest checkpoint is of iteration 2, in the first epoch, when the run is killed in the second."""
    _, expected = train(PiCIE, "straight", period=3)
    assert {path.name[:11] for path in (tmp_path / "straight" / "clustering").glob("labels-*")} == {
        "labels-0000",
        "labels-0001",
    }
    train(PiCIE, "run", kill=5 * EPOCH + 1, period=3)
    forwards, actual = train(PiCIE, "run", "--resume", period=3)
    assert forwards == [True] * (1 + EPOCH)  # the last iteration of the first epoch, and the second epoch
    assert_equal(expected, actual)


def test_lost_labels_are_made_again_with_a_warning(train, tmp_path):
    train(PiCIE, "run", kill=5 * EPOCH + 4)
    shutil.rmtree(tmp_path / "run" / "clustering")
    train(PiCIE, "run", "--resume")
    assert "has no labels of epoch 1 for this checkpoint" in (tmp_path / "run" / "log.txt").read_text()


def image(record):
    """Return two views of a smooth image, drawn under the seed of the position."""
    small = torch.rand(2, 3, 4, 4) * 255
    views = torch.nn.functional.interpolate(small, size=(32, 32), mode="bilinear").to(torch.uint8)
    boxes = torch.tensor([[0.0, 0, 64, 64], [16, 8, 80, 72]])
    return {"views": views, "view_boxes": boxes, "file_name": record["file_name"]}


def prepared(folder, rank=0, world_size=1):
    """Cluster and label 8 images in batches of 4; the hook, its model and the loader."""
    model = tiny_model(method_cfg(PiCIE))
    samples = SeededSamples([{"file_name": str(i)} for i in range(8)], image, substitute=False)
    batches = EndlessBatches(8, 4, 7, rank=rank, world_size=world_size)
    loader = TrainLoader(samples, batches, collate_fn=collate_views)
    hook = ClusteringHook(model, folder, total_batch=4, first=1, iterations=20, train=False)
    hook.trainer = SimpleNamespace(data_loader=loader, iter=0, max_iter=10, optimizer=None)
    hook.before_step()
    return model, loader


def labels_of_epoch(model, loader):
    batches = iter(loader)
    found = {}
    for _ in range(2):
        batch = next(batches)
        found |= dict(zip(batch["position"].tolist(), model.labels(batch["position"]), strict=True))
    return found


def test_labels_are_the_nearest_centroids_of_the_views_that_are_trained_on(tmp_path):
    model, loader = prepared(tmp_path)
    labels = labels_of_epoch(model, loader)
    assert sorted(labels) == list(range(8)) and model.training
    model.eval()
    batch = next(iter(loader))
    with torch.no_grad():
        features = model.cluster_features(batch)
    counts = np.zeros((2, 4))
    for view, f in enumerate(features):
        centroids = model.sem_seg_head.clusterings[0].weight[view]
        for n, position in enumerate(batch["position"].tolist()):
            for row in range(4):
                for column in range(4):
                    distances = (centroids - f[n, :, row, column]).square().sum(dim=1)
                    assert labels[position][view, 0, row, column] == distances.argmin()
    for stored in labels.values():
        for view in range(2):
            counts[view] += np.bincount(stored[view, 0].flatten(), minlength=4)
    frequency = model.sem_seg_head.clusterings[0].frequency
    assert np.allclose(frequency, counts / counts.sum(axis=1, keepdims=True))
    assert all((f.norm(dim=1) - 1).abs().max() < 1e-5 for f in features)


def test_two_processes_label_like_one(tmp_path):
    model, loader = prepared(tmp_path / "one")
    expected = labels_of_epoch(model, loader)
    centroids = model.sem_seg_head.clusterings[0].weight

    def share(rank):
        model, loader = prepared(tmp_path / "two", comm.get_rank(), 2)
        return labels_of_epoch(model, loader), model.sem_seg_head.clusterings[0]

    results = in_two_processes(share)
    for labels, clustering in results:
        assert len(labels) == 4
        assert torch.allclose(clustering.weight, centroids, atol=1e-5)
        assert torch.allclose(clustering.frequency, model.sem_seg_head.clusterings[0].frequency)
        assert all(torch.equal(labels[position], expected[position]) for position in labels)
    assert sorted([*results[0][0], *results[1][0]]) == list(range(8))


def test_a_label_file_of_another_run_counts_as_empty(tmp_path):
    labels = torch.arange(8).view(2, 1, 2, 2)
    file = LabelFile(tmp_path, 3, "a", save_seconds=-1)
    file.write(0, labels, num_batches=2, num_clusters=300)
    assert LabelFile(tmp_path, 3, "a").num_batches(2) == 1 and LabelFile(tmp_path, 3, "b").num_batches(2) == 0
    assert LabelFile(tmp_path, 3, "a").num_batches(1) == LabelFile(tmp_path, 3, "a").num_batches(3) == 0
    LabelFile(tmp_path, 3, "a").write(1, labels + 250, num_batches=2, num_clusters=300)
    assert np.array_equal(file.read(), torch.cat([labels, labels + 250]))
    LabelFile.remove_before(tmp_path, 3)
    assert LabelFile(tmp_path, 3, "a").num_batches(2) == LabelFile(tmp_path, 3, "a").num_batches(1) == 2
    assert LabelFile(tmp_path, 3, "a").num_batches(3) == 0  # SOLVER.MAX_ITER is higher now
    LabelFile.remove_before(tmp_path, 4)
    assert not list(tmp_path.iterdir())

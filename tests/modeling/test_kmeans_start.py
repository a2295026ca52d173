"""A head that starts from k-means labels points as plain k-means does."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn import functional as F

from densesiam_d2.config_checks import check_config
from densesiam_d2.layers import kmeans, nearest
from densesiam_d2.layers.mlp import PointConv2d
from densesiam_d2.modeling.clustering import random_points
from densesiam_d2.modeling.kmeans_start import ITERATIONS, concatenated, start_from_kmeans
from densesiam_d2.modeling.sem_seg import PseudoLabelSemSegHead
from tests.evaluation.processes import in_two_processes
from tests.modeling.meta_arch.tiny import tiny_batch, tiny_sem_seg_cfg

LINEAR = {"num_proj_convs": 0, "normalize": True, "logit_norm": False, "predictor": False}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def head_and_features(conv_dim=8):
    shapes = {"res2": ShapeSpec(channels=3, stride=4), "res3": ShapeSpec(channels=5, stride=8)}
    head = PseudoLabelSemSegHead(
        shapes, num_classes=4, conv_dim=conv_dim, common_stride=4, norm=nn.BatchNorm2d, aux_classes=6, **LINEAR
    )
    return head, {"res2": torch.randn(5, 3, 6, 8), "res3": torch.randn(5, 5, 3, 4)}


def rows(maps):
    return maps.permute(0, 2, 3, 1).flatten(0, 2)


def test_all_axes_kept_give_the_nearest_centroids_of_the_features():
    """With as many decoder channels as features nothing is lost: distances are those between the features, scaled."""
    head, features = head_and_features()
    points = rows(concatenated(head.decoder, features))
    start_from_kmeans(head, points, seed=3, device=torch.device("cpu"))
    with torch.no_grad():
        y = head.decode(features)
        z, aux = rows(head.classifier(y)), rows(head.aux_classifier(y))
    y = rows(y)
    assert torch.allclose(y.mean(dim=0), torch.zeros(8), atol=1e-5)
    assert y.square().sum(dim=1).mean().item() == pytest.approx(1, rel=1e-4)
    scale = (torch.cdist(y, y).sum() / torch.cdist(points, points).sum()).item()
    assert torch.allclose(torch.cdist(y, y), scale * torch.cdist(points, points), atol=1e-3)
    for logits, clusters in ((z, 4), (aux, 6)):
        centroids = torch.from_numpy(kmeans(y.numpy(), clusters, ITERATIONS, 3))
        assert torch.equal(logits.argmax(dim=1), nearest(y, centroids))


def test_all_processes_get_what_the_main_process_computes():
    def weights(rank, points):
        torch.manual_seed(0)
        head = head_and_features(conv_dim=2)[0]
        start_from_kmeans(head, points, seed=0, device=torch.device("cpu"))
        return {name: value.clone() for name, value in head.state_dict().items()}

    points = torch.randn(100, 8)
    alone = weights(0, points)
    for found in in_two_processes(lambda rank: weights(rank, points if rank == 0 else torch.empty(0))):
        assert all(torch.equal(found[name], value) for name, value in alone.items())


@pytest.mark.parametrize(("most", "per_image"), [(1000, 5), (12, 3), (1, 1)])
def test_points_are_of_all_processes_and_kept_by_the_main_one(monkeypatch, most, per_image):
    """Four images of 6 cells, in one batch: process r gets images r and r + 2."""

    class Loader:
        batches = SimpleNamespace(seed=0, start=0)
        dataset = range(4)

        def __init__(self, positions):
            self.positions = torch.tensor(positions)

        def __iter__(self):
            yield {"position": self.positions}

    def features(batch):  # channel 0 tells the image, channel 1 the cell
        maps = torch.arange(6.0).view(1, 1, 2, 3).expand(len(batch["position"]), 1, 2, 3)
        return torch.cat([batch["position"].view(-1, 1, 1, 1) + torch.zeros_like(maps), maps], dim=1)

    monkeypatch.setattr("densesiam_d2.modeling.clustering.MAX_POINTS", most)
    alone = random_points(features, Loader([0, 1, 2, 3]), total_batch=4, per_image=5)
    assert [row[0] for row in alone.tolist()] == [image for image in range(4) for _ in range(per_image)]
    assert len({tuple(row) for row in alone.tolist()}) == 4 * per_image
    main, other = in_two_processes(lambda rank: random_points(features, Loader([rank, rank + 2]), 4, 5))
    assert torch.equal(main, alone) and len(other) == 0


@pytest.mark.parametrize(("images", "batch"), [(10, 8), (20, 8), (12, 8), (3, 8)])
def test_points_are_of_every_image_once(images, batch):
    """A batch that the images do not fill goes on with the next epoch."""

    class Loader:
        batches = SimpleNamespace(seed=0, start=0)
        dataset = range(images)

        def __iter__(self):
            positions = itertools.count()
            while True:
                yield {"position": torch.tensor(list(itertools.islice(positions, batch)))}

    def features(batch):
        return (batch["position"] % images).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)

    points = random_points(features, Loader(), total_batch=batch, per_image=3)
    assert points[:, 0].tolist() == [image for image in range(images) for _ in range(3)]


def test_fewer_axes_are_the_directions_of_largest_variance():
    head, features = head_and_features(conv_dim=2)
    points = rows(concatenated(head.decoder, features))
    start_from_kmeans(head, points, seed=0, device=torch.device("cpu"))
    with torch.no_grad():
        y = rows(head.decode(features))
    left, singular, _ = torch.linalg.svd(points - points.mean(dim=0), full_matrices=False)
    expected = left[:, :2] * singular[:2]  # coordinates on the two axes, up to signs and a common factor
    expected = expected / expected.square().sum(dim=1).mean().sqrt()
    assert torch.allclose(y.abs().sort(dim=1).values, expected.abs().sort(dim=1).values, atol=1e-3)


def test_more_axes_than_features_name_the_key():
    head, features = head_and_features(conv_dim=9)
    with pytest.raises(ValueError, match="CONVS_DIM 9 is more than the 8 channels"):
        start_from_kmeans(head, rows(concatenated(head.decoder, features)), 0, torch.device("cpu"))


def test_each_feature_has_length_one():
    head, features = head_and_features()
    maps = concatenated(head.decoder, {"res2": 7 * features["res2"], "res3": features["res3"][:, :, :1, :1]})
    assert torch.allclose(maps[:, :5].norm(dim=1), torch.ones(5, 6, 8))  # res3, one cell spread over all
    assert torch.allclose(maps[:, 5:], F.normalize(features["res2"], dim=1))


def linear_cfg(*opts):
    cfg = tiny_sem_seg_cfg()
    keys = "MODEL.SEM_SEG_HEAD.PSEUDO_LABEL."
    own = {"START": "kmeans", "NUM_PROJ_CONVS": 0, "NORMALIZE": True, "LOGIT_NORM": False, "PREDICTOR": False}
    cfg.merge_from_list([item for name, value in own.items() for item in (keys + name, value)])
    cfg.merge_from_list(list(opts))
    return cfg


def test_without_predictor_the_logits_are_compared():
    classifier = build_model(linear_cfg()).sem_seg_head.classifier
    z = torch.randn(2, 4, 3, 3)
    assert classifier.predictor(z) is z
    assert [type(layer) for layer in classifier.projector] == [PointConv2d]


@pytest.mark.parametrize(("name", "value"), [("NORMALIZE", False), ("LOGIT_NORM", True), ("NUM_PROJ_CONVS", 2)])
def test_a_start_that_cannot_be_is_refused(name, value):
    with pytest.raises(ValueError, match="START is 'kmeans': it needs NORMALIZE True"):
        check_config(linear_cfg(f"MODEL.SEM_SEG_HEAD.PSEUDO_LABEL.{name}", value))


def test_merged_clusters_are_the_result():
    """Training counts, evaluation has NUM_CLASSES clusters, and each is the sum of those that were merged."""
    keys = "MODEL.SEM_SEG_HEAD.PSEUDO_LABEL."
    cfg = linear_cfg(keys + "MERGE_FROM", 9, keys + "START", "random")
    model, num = build_model(cfg), cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    assert model.sem_seg_head.classifier.projector[-1].out_channels == 9 and num < 9
    before = model.sem_seg_head.merging.joint.sum()
    with EventStorage():
        model(tiny_batch())
    assert model.sem_seg_head.merging.joint.sum() > before
    model.eval()
    with torch.no_grad():
        (result,) = model([{"image": torch.zeros(3, 64, 64, dtype=torch.uint8)}])
    assert result["sem_seg"].shape == (num, 64, 64)


def test_fewer_clusters_than_classes_cannot_be_merged():
    with pytest.raises(ValueError, match="MERGE_FROM is 2: it must be 0, or at least"):
        check_config(linear_cfg("MODEL.SEM_SEG_HEAD.PSEUDO_LABEL.MERGE_FROM", 2))

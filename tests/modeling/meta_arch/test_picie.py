"""The losses of PiCIE and of Modified DeepCluster against loops over points."""

import math

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from densesiam_d2.modeling.meta_arch import ModifiedDeepCluster, PiCIE
from tests.modeling.meta_arch.tiny import method_cfg, tiny_batch, tiny_model


def weighted_mean(logits, labels, weights):
    """Average -log softmax over the points, each weighted by the weight of its label; logits (N, K, S, S)."""
    total = divisor = 0.0
    num_images, _, height, width = logits.shape
    for n in range(num_images):
        for row in range(height):
            for column in range(width):
                y = labels[n, row, column].item()
                total -= weights[y].item() * logits[n, :, row, column].log_softmax(dim=0)[y].item()
                divisor += weights[y].item()
    return total / divisor


def step(model, batch, labels):
    model.labels = lambda positions: labels[positions]
    with EventStorage(1):
        return model({**batch, "position": torch.arange(len(batch["views"]))})


def drawn_state(model, shape):
    """Give every clustering random centroids and frequencies, and return random labels of the given shape."""
    generator = torch.Generator().manual_seed(1)
    for clustering in model.sem_seg_head.clusterings:
        clustering.weight.normal_(generator=generator)
        clustering.frequency.copy_(torch.rand(clustering.frequency.shape, generator=generator))
    return torch.randint(0, 4, shape, generator=generator)


@pytest.mark.parametrize("aux", [0, 6])
def test_picie(aux):
    cfg = method_cfg(PiCIE)
    cfg.MODEL.CLUSTERING.AUX_CLASSES = aux
    model, batch = tiny_model(cfg), tiny_batch(2)
    sizes = [4, 6] if aux else [4]
    labels = drawn_state(model, (2, 2, len(sizes), 4, 4))
    losses = step(model, batch, labels)
    with torch.no_grad():
        features = model.cluster_features(batch)
    # ln 6 and ln 4 over their sum: the clustering with fewer clusters has the larger weight
    weights = [math.log(6) / math.log(24), math.log(4) / math.log(24)] if aux else [1.0]
    expected = {}
    for i, name in enumerate(("", "_aux")[: len(sizes)]):
        clustering = model.sem_seg_head.clusterings[i]

        def cross_entropy(f, view, clustering=clustering, i=i):  # features of view f, clusters and labels of the other
            logits = torch.einsum("nchw,kc->nkhw", features[f], clustering.weight[view])
            return weighted_mean(logits, labels[:, view, i], clustering.frequency[view])

        expected[f"loss_within{name}"] = weights[i] * (cross_entropy(0, 0) + cross_entropy(1, 1)) / 4
        expected[f"loss_cross{name}"] = weights[i] * (cross_entropy(0, 1) + cross_entropy(1, 0)) / 4
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        assert math.isclose(losses[name].item(), value, rel_tol=1e-4), name


def test_modified_deepcluster():
    model, batch = tiny_model(method_cfg(ModifiedDeepCluster)), tiny_batch(2)
    labels = drawn_state(model, (2, 1, 1, 16, 16))
    loss = step(model, batch, labels)["loss_cluster"].item()
    with torch.no_grad():
        logits = model.classifier(model.cluster_features(batch)[0])
    frequency = model.sem_seg_head.clusterings[0].frequency[0]
    assert math.isclose(loss, weighted_mean(logits, labels[:, 0, 0], frequency), rel_tol=1e-4)


def test_agreement_of_modified_deepcluster_is_that_of_the_common_points():
    """View 2 shows the right half of view 1, as its left half; there view 1 has cluster 1, view 2 has it above only."""
    model, batch = tiny_model(method_cfg(ModifiedDeepCluster)), tiny_batch(2)
    z1, z2 = torch.zeros(2, 4, 16, 16), torch.zeros(2, 4, 16, 16)
    z1[:, 0, :, :8] = z1[:, 1, :, 8:] = 20
    z2[:, 1, :8] = z2[:, 2, 8:] = 20
    model.classifier, maps = nn.Identity(), iter([z1, z2])
    model.encode = lambda x, backbone=None: next(maps)
    batch["view_boxes"] = torch.tensor([[0.0, 0, 64, 64], [32, 0, 96, 64]]).expand(2, 2, 4).clone()
    model.labels = lambda positions: torch.zeros(2, 1, 1, 16, 16, dtype=torch.int64)
    with EventStorage(0) as storage:
        model({**batch, "position": torch.arange(2)})
        assert storage.latest()["ssl/view_agreement"] == (1 / 2, 0)
        assert storage.latest()["ssl/largest_cluster"] == (3 / 4, 0)


def test_the_agreement_leaves_no_trace_in_the_statistics_of_modified_deepcluster():
    """At iteration 0 the second view is classified for the log, at iteration 1 it is not."""
    states = []
    for iteration in (0, 1):
        model = tiny_model(method_cfg(ModifiedDeepCluster))
        with EventStorage(iteration) as storage:
            model(tiny_batch(2))
            assert ("ssl/view_agreement" in storage.latest()) == (iteration == 0)
        states.append(model.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_a_new_epoch_starts_classifier_and_its_adam_anew():
    model = tiny_model(method_cfg(ModifiedDeepCluster))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.0)
    step(model, tiny_batch(2), torch.zeros(2, 1, 1, 16, 16, dtype=torch.int64))["loss_cluster"].backward()
    optimizer.step()
    kept = {name: p.clone() for name, p in model.named_parameters() if not name.startswith("classifier.")}
    model.start_epoch(torch.Generator().manual_seed(0), optimizer)
    weight, bias = model.classifier.weight, model.classifier.bias
    assert 0.005 < weight.std() < 0.015 and (bias == 0).all()
    assert all((value == 0).all() for p in (weight, bias) for value in optimizer.state[p].values())
    assert all(torch.equal(p, kept[name]) for name, p in model.named_parameters() if name in kept)
    assert optimizer.state[model.backbone.stem.conv1.weight]["step"] == 1


def test_evaluation_uses_the_clusters_of_view_2():
    model = tiny_model(method_cfg(PiCIE)).eval()
    drawn_state(model, (1,))
    image = torch.randint(0, 256, (3, 64, 64), generator=torch.Generator().manual_seed(0)).float()
    with torch.no_grad():
        result = model([{"image": image, "height": 16, "width": 16}])[0]["sem_seg"]
        f = model.encode(model.preprocess_image(image))
    assert result.shape == (4, 16, 16)
    z = torch.einsum("nchw,kc->nkhw", f, model.sem_seg_head.clusterings[0].weight[1])
    large = torch.nn.functional.interpolate(z, size=(64, 64), mode="bilinear", align_corners=False)
    expected = torch.nn.functional.interpolate(large, size=(16, 16), mode="bilinear", align_corners=False)[0]
    assert torch.allclose(result, expected, atol=1e-4)


def test_a_feature_that_the_backbone_does_not_give_is_named():
    cfg = method_cfg(PiCIE)
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["res2", "res9"]
    with pytest.raises(ValueError, match=r"IN_FEATURES names \['res9'\], but the backbone only gives \['res2'"):
        build_model(cfg)

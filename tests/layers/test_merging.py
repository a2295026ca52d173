"""Merged clusters against all partitions, and counts by hand."""

import itertools
import math

import numpy as np
import pytest
import torch

from densesiam_d2.layers import ClusterMerging, merge_clusters
from tests.evaluation.processes import in_two_processes


def information(joint, groups, num_groups):
    """Mutual information in nats between the groups of both views, by loops; both orders of the views count."""
    merged = np.zeros((num_groups, num_groups))
    for i, j in itertools.product(range(len(joint)), repeat=2):
        merged[groups[i], groups[j]] += joint[i, j]
        merged[groups[j], groups[i]] += joint[i, j]
    merged /= merged.sum()
    p = merged.sum(axis=0)
    pairs = itertools.product(range(num_groups), repeat=2)
    return sum(merged[i, j] * math.log(merged[i, j] / (p[i] * p[j])) for i, j in pairs if merged[i, j])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("num_groups", [2, 3])
def test_no_partition_has_more_mutual_information(seed, num_groups):
    joint = np.random.default_rng(seed).integers(0, 20, (6, 6)).astype(float)
    partitions = itertools.product(range(num_groups), repeat=6)
    best = max(information(joint, p, num_groups) for p in partitions if len(set(p)) == num_groups)
    groups = merge_clusters(joint, num_groups)
    assert groups.dtype == np.int64 and set(groups) == set(range(num_groups))
    assert information(joint, groups, num_groups) == pytest.approx(best, rel=1e-9)


def test_clusters_that_views_mix_up_come_together():
    """Clusters 0 and 3, 1 and 4, 2 and 5 are mixed up; each pair looks alike to the other view."""
    joint = np.kron(np.full((2, 2), 1.0), np.diag([30.0, 20.0, 10.0]))
    groups = merge_clusters(joint, 3)
    assert groups[:3].tolist() == groups[3:].tolist() and len(set(groups)) == 3


def test_without_counts_the_groups_have_equal_sizes():
    assert sorted(np.bincount(merge_clusters(np.zeros((6, 6)), 3)).tolist()) == [2, 2, 2]


def test_as_many_groups_as_clusters_merge_nothing():
    assert sorted(merge_clusters(np.ones((4, 4)), 4).tolist()) == [0, 1, 2, 3]


def maps(labels, num=3):
    """Logits (N, num, 1, points) whose largest is at the given labels (N, points)."""
    return torch.nn.functional.one_hot(torch.tensor(labels), num).permute(0, 2, 1).float().unsqueeze(2)


def test_counts_by_hand():
    merging = ClusterMerging(3, 2, momentum=0.5)
    merging.count(maps([[0, 1], [2, 2]]), maps([[0, 2], [2, 1]]), torch.tensor([True, False]))
    assert merging.joint.tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]
    merging.count(maps([[0, 1], [2, 2]]), maps([[0, 2], [2, 1]]), torch.tensor([True, True]))
    assert merging.joint.tolist() == [[1.5, 0, 0], [0, 0, 1.5], [0, 1, 1]]


def test_old_counts_lose_weight_once_per_batch():
    merging = ClusterMerging(3, 2, momentum=0.5)
    merging.joint.fill_(8)
    for i in range(2):
        merging.batch_part = (i, 2)
        merging.count(maps([[0]]), maps([[i]]), torch.tensor([True]))
    assert merging.joint.tolist() == [[5, 5, 4], [4, 4, 4], [4, 4, 4]]


def _count(rank: int) -> None:
    merging = ClusterMerging(3, 2)
    merging.count(maps([[rank, 2]]), maps([[rank, 1]]), torch.tensor([True]))
    assert merging.joint.tolist() == [[1, 0, 0], [0, 1, 0], [0, 2, 0]]


def test_two_processes_count_together():
    in_two_processes(_count)


def test_logits_of_a_group_have_the_probability_of_its_clusters():
    merging = ClusterMerging(4, 2)
    merging.joint.copy_(torch.tensor(np.kron(np.eye(2), np.full((2, 2), 5.0))))
    z = torch.randn(2, 4, 3, 5)
    p, merged = z.softmax(dim=1), merging(z).softmax(dim=1)
    first = merging.groups()[0].item()
    assert merging.groups().tolist() == [first, first, 1 - first, 1 - first]
    assert torch.allclose(merged[:, first], p[:, 0] + p[:, 1])


def test_groups_follow_loaded_counts():
    merging, other = ClusterMerging(4, 2), ClusterMerging(4, 2)
    pairs = {(0, 1): np.kron(np.eye(2), np.ones((2, 2))), (0, 2): np.kron(np.ones((2, 2)), np.eye(2))}
    for (i, j), joint in pairs.items():
        other.joint.copy_(torch.tensor(joint))
        merging.load_state_dict(other.state_dict())
        groups = merging.groups()
        assert groups[i] == groups[j] and groups.bincount().tolist() == [2, 2]

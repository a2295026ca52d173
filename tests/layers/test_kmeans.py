"""K-means and mini-batch k-means against plain NumPy."""

import numpy as np
import pytest
import torch

from densesiam_d2.layers import MiniBatchKMeans, kmeans, nearest
from tests.evaluation.processes import in_two_processes


def blobs(per_blob=50, seed=0):
    """Return points around four corners of a square, far apart, in random order."""
    rng = np.random.default_rng(seed)
    corners = np.array([[0, 0], [0, 10], [10, 0], [10, 10]], np.float32)
    points = np.repeat(corners, per_blob, axis=0) + rng.normal(size=(4 * per_blob, 2)).astype(np.float32)
    return rng.permutation(points).astype(np.float32)


def closest(points, centroids):
    return np.array([min(range(len(centroids)), key=lambda k: ((p - centroids[k]) ** 2).sum()) for p in points])


def plain_kmeans(points, centroids, iterations):
    """Assign and average, in loops."""
    for _ in range(iterations):
        labels = closest(points, centroids)
        centroids = np.array([points[labels == k].mean(axis=0) for k in range(len(centroids))])
    return centroids


def plain_update(centroids, counts, batch):
    """The update of one mini-batch as PiCIE writes it, in a loop over clusters."""
    labels = closest(batch, centroids)
    for k in range(len(centroids)):
        mine = batch[labels == k]
        if len(mine):
            counts[k] += len(mine)
            rate = len(mine) / (counts[k] + 1e-6)
            centroids[k] = (1 - rate) * centroids[k] + rate * mine.mean(axis=0)
    return centroids, counts


def clustering(num_clusters=4, seed=1):
    return MiniBatchKMeans(num_clusters, iterations=20, seed=seed, device=torch.device("cpu"))


def in_order(centroids):
    return np.array(sorted(np.asarray(centroids).round(4).tolist()))


def test_all_points_together_are_plain_kmeans():
    points = blobs()
    corners = np.array([[1.0, 1], [1, 9], [9, 1], [9, 9]], np.float32)
    ours = clustering()
    ours.fit(torch.from_numpy(points), 2)
    assert np.allclose(in_order(ours.centroids), in_order(plain_kmeans(points, corners, 20)), atol=1e-3)
    assert sorted(ours.counts.tolist()) == [50, 50, 50, 50]


def test_the_result_is_a_fixed_point_where_clusters_overlap():
    points = np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32)
    found = kmeans(points, 5, 200, seed=0)
    assert np.allclose(found, plain_kmeans(points, found, 1), atol=1e-4)


def test_mini_batches_equal_a_loop():
    batches = [blobs(seed=seed)[:60] + shift for seed, shift in enumerate((0.0, 0.5, -1.0))]
    batches[1] = batches[1][batches[1].sum(axis=1) < 15]  # a cluster without points must stay as it is
    ours = clustering()
    ours.fit(torch.from_numpy(batches[0]), 2)
    centroids, counts = ours.centroids.numpy().copy(), ours.counts.numpy().copy()
    for batch in batches[1:]:
        ours.update(torch.from_numpy(batch))
        centroids, counts = plain_update(centroids, counts, batch)
        assert np.allclose(ours.centroids, centroids, atol=1e-4)
        assert np.array_equal(ours.counts, counts)


def test_it_goes_on_from_its_state():
    first, second = torch.from_numpy(blobs()[:100]), torch.from_numpy(blobs()[100:])
    one, other = clustering(), clustering()
    one.fit(first, 2)
    other.load_state_dict(one.state_dict())
    for each in (one, other):
        each.update(second)
    assert torch.equal(one.centroids, other.centroids) and torch.equal(one.counts, other.counts)


def test_nearest_is_euclidean():
    points = torch.tensor([[2.0, 0], [0, 1]])
    centroids = torch.tensor([[1.0, 0], [10, 0], [0, 3]])  # the largest dot product of the first point is with [10, 0]
    assert nearest(points, centroids).tolist() == [0, 0]
    assert nearest(points * 4, centroids).tolist() == [1, 2]


def test_too_few_points():
    with pytest.raises(ValueError, match=r"into 4 clusters needs .* the training images give 3: take more"):
        clustering().fit(torch.zeros(3, 2), 2)


def test_two_processes_equal_one():
    points = torch.from_numpy(blobs())
    one = clustering()
    one.fit(points[:100], 2)
    one.update(points[100:])

    def share(rank):
        ours = clustering()
        ours.fit(points[:100] if rank == 0 else torch.zeros(0, 2), 2)
        ours.update(points[100:130] if rank == 0 else points[130:])
        return ours.centroids

    two, other = in_two_processes(share)
    assert torch.equal(two, other)
    assert torch.allclose(two, one.centroids, atol=1e-4)

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from densesiam_d2.probe.knn import nearest_votes


@pytest.mark.parametrize("block", [3, 100])
def test_votes_against_a_loop(block):
    rng = np.random.default_rng(0)
    queries, memory = rng.normal(size=(10, 5)), rng.normal(size=(40, 5))
    labels = rng.integers(0, 3, 40)
    votes = nearest_votes(
        torch.tensor(queries, dtype=torch.float32),
        F.normalize(torch.tensor(memory, dtype=torch.float32), dim=1),
        torch.tensor(labels),
        ks=[1, 7],
        num_classes=4,
        block=block,
    )
    for k in (1, 7):
        assert votes[k].shape == (10, 4)
        for query, shares in zip(queries, votes[k].numpy(), strict=True):
            cosines = [query @ m / np.linalg.norm(query) / np.linalg.norm(m) for m in memory]
            nearest = sorted(range(40), key=lambda i: -cosines[i])[:k]
            np.testing.assert_allclose(shares, [sum(labels[i] == c for i in nearest) / k for c in range(4)], rtol=1e-6)

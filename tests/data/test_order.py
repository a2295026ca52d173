import itertools
import random
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats

from densesiam_d2.data.order import EndlessBatches, mixed_seeds, seeded, shuffled


@pytest.mark.parametrize("size", [1, 2, 3, 6, 17, 64, 65, 1000])
def test_each_epoch_is_a_permutation(size):
    order = shuffled(np.arange(3 * size), size, seed=7).reshape(3, size)
    for epoch in order:
        assert sorted(epoch) == list(range(size))
    if size > 17:
        assert not np.array_equal(order[0], order[1])
        assert not np.array_equal(order[0], shuffled(np.arange(size), size, seed=8))


def test_positions_may_be_asked_in_any_order():
    positions = np.array([900, 3, 17, 250])
    straight = shuffled(np.arange(1000), 100, seed=1)
    assert np.array_equal(shuffled(positions, 100, seed=1), straight[positions])


@pytest.mark.parametrize("size", [3, 4])
def test_all_permutations_are_equally_likely(size):
    epochs = 12000
    order = shuffled(np.arange(epochs * size), size, seed=0).reshape(epochs, size)
    counts = Counter(map(tuple, order.tolist()))
    possible = list(itertools.permutations(range(size)))
    assert stats.chisquare([counts[p] for p in possible]).pvalue > 0.001


def test_neighbours_of_an_epoch_are_unrelated():
    order = shuffled(np.arange(50_000), 50_000, seed=3)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 4 / 50_000**0.5
    assert abs(np.corrcoef(order, np.arange(50_000))[0, 1]) < 4 / 50_000**0.5


def test_mixed_seeds_differ_in_half_of_their_bits():
    seeds = mixed_seeds(5, np.arange(1000))
    assert len(set(seeds.tolist())) == 1000
    flipped = [bin(int(a) ^ int(b)).count("1") for a, b in itertools.pairwise(seeds)]
    assert 31 < np.mean(flipped) < 33
    assert mixed_seeds(5, 1, 2)[0] != mixed_seeds(5, 2, 1)[0]


def take(number, **options):
    options = {"size": 100, "total_batch_size": 8, "seed": 3, **options}
    start = options.pop("start", 0)
    batches = EndlessBatches(**options)
    batches.start = start
    return list(itertools.islice(batches, number))


def test_a_later_start_goes_on():
    assert take(5, start=600) == take(605)[600:]


@pytest.mark.parametrize("groups", [None, [i % 3 == 0 for i in range(100)]])
@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_share_the_batches_of_one(world_size, groups):
    alone = take(20, groups=groups)
    shares = [take(20, groups=groups, rank=rank, world_size=world_size) for rank in range(world_size)]
    for i, batch in enumerate(alone):
        assert sorted(batch) == sorted(itertools.chain(*(share[i] for share in shares)))


def test_no_image_comes_twice_in_an_epoch_when_the_number_of_processes_changes():
    before = itertools.chain(*take(5))
    after = [take(7, start=5, rank=rank, world_size=2) for rank in range(2)]
    seen = [key.index for key in itertools.chain(before, *itertools.chain(*after))]
    assert len(seen) == 12 * 8
    assert len(set(seen)) == 96  # of the first epoch of 100


@pytest.mark.parametrize("start", [0, 30])
def test_positions_identify_epoch_and_image(start):
    """A batch of 8 holds 8 positions in a row; 100 of them are an epoch, in which each image has one position."""
    keys = list(itertools.chain(*take(50, start=start)))
    positions = [key.position for key in keys]
    assert positions == list(range(8 * start, 8 * (start + 50)))
    assert [key.index for key in keys] == shuffled(np.array(positions), 100, seed=3).tolist()
    assert len({(key.position // 100, key.index) for key in keys}) == 400
    shares = [list(itertools.chain(*take(50, start=start, rank=rank, world_size=2))) for rank in range(2)]
    assert [key.position for key in shares[0]] == positions[::2]
    assert [key.position for key in shares[1]] == positions[1::2]


def test_epoch_of_a_batch_is_that_of_its_first_position():
    for size, total in ((10, 4), (8, 4), (3, 8)):
        batches = EndlessBatches(size, total, 0)
        firsts = [keys[0].position for keys in itertools.islice(batches, 9)]
        assert [batches.epoch_of(i) for i in range(9)] == [first // size for first in firsts]


def test_positions_of_grouped_batches():
    keys = list(itertools.chain(*take(50, groups=[i % 3 == 0 for i in range(100)])))
    positions = np.array([key.position for key in keys])
    assert len(set(positions)) == 400
    assert [key.index for key in keys] == shuffled(positions, 100, seed=3).tolist()


def test_groups_are_not_mixed_and_nothing_is_lost():
    groups = [int(i % 5 == 0) for i in range(100)]
    batches = take(200, groups=groups)
    assert all(len({groups[key.index] for key in batch}) == 1 for batch in batches)
    counts = Counter(key.index for batch in batches for key in batch)
    assert set(counts.values()) <= {15, 16, 17}  # 16 epochs; some images still wait until their batch is full
    assert take(3, groups=groups, start=150) == batches[150:153]


@pytest.mark.parametrize(("options", "text"), [({"size": 0}, "no images"), ({"world_size": 3}, "cannot be shared")])
def test_impossible_batches(options, text):
    with pytest.raises(ValueError, match=text):
        take(1, **options)


def draw():
    return random.random(), np.random.rand(), torch.rand(()).item()


def test_seeded_repeats_and_leaves_no_trace():
    with seeded(4):
        first = draw()
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    with seeded(4):
        assert draw() == first
    after = random.getstate(), np.random.get_state()[1], torch.get_rng_state()
    assert before[0] == after[0] and np.array_equal(before[1], after[1]) and torch.equal(before[2], after[2])

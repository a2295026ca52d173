"""The queue of features: order, wrap-around at any batch size, undoing bit for bit."""

import copy

import pytest
import torch
from torch import nn

from densesiam_d2.layers import FeatureQueue


def keys(start, number):
    """(number, 2) rows that say where they come in the stream."""
    return torch.arange(start, start + number, dtype=torch.float32)[:, None].expand(-1, 2)


def state(queue):
    return {name: value.clone() for name, value in queue.state_dict().items()}


def same(these, those):
    return these.keys() == those.keys() and all(torch.equal(these[name], those[name]) for name in these)


def test_starts_with_directions_of_norm_one_that_are_equal_everywhere():
    torch.manual_seed(1)
    queue = FeatureQueue(8, 100)
    torch.manual_seed(2)  # another process has another seed
    assert torch.equal(queue.features, FeatureQueue(8, 100).features)
    assert torch.allclose(queue.features.norm(dim=1), torch.ones(100))
    assert queue.features.mean(dim=0).norm() < 0.3  # in all directions: 1 / sqrt(100) is expected
    assert {name: (v.shape, v.dtype) for name, v in queue.state_dict().items()} == {
        "features": ((100, 8), torch.float32),
        "pointer": ((1,), torch.int64),
    }
    assert not list(queue.parameters())


def test_pushes_by_hand():
    queue = FeatureQueue(2, 5)
    queue.push(keys(1, 3))
    assert queue.features[:3, 0].tolist() == [1, 2, 3] and queue.pointer.tolist() == [3]
    queue.push(keys(4, 3))  # wraps around
    assert queue.features[:, 1].tolist() == [6, 2, 3, 4, 5] and queue.pointer.tolist() == [1]


@pytest.mark.parametrize("sizes", [[2, 2, 2], [3, 3, 3, 3], [5, 5], [1, 7, 2, 12, 4], [11, 3], [0, 2, 0]])
def test_any_batch_size_ends_like_pushes_of_single_rows(sizes):
    queue, slow, start = FeatureQueue(2, 5), FeatureQueue(2, 5).features.tolist(), 0
    for size in sizes:
        queue.push(keys(start, size))
        for row in range(start, start + size):
            slow[row % 5] = [row, row]
        start += size
        assert queue.features.tolist() == slow
        assert queue.pointer.tolist() == [start % 5]


@pytest.mark.parametrize("size", [0, 2, 4, 5, 13])
def test_undo_is_exact_and_happens_once(size):
    queue = FeatureQueue(2, 5)
    queue.push(keys(0, 3))
    before = state(queue)
    queue.push(keys(10, size))
    queue.undo()
    assert same(state(queue), before)
    queue.features.fill_(7)  # a second undo would overwrite it
    queue.undo()
    assert (queue.features == 7).all()


def test_undo_without_a_push_changes_nothing():
    queue = FeatureQueue(2, 5)
    before = state(queue)
    queue.undo()
    assert same(state(queue), before)


def test_a_push_keeps_only_the_rows_that_it_overwrites():
    queue = FeatureQueue(2, 1000)
    queue.push(keys(0, 3))
    assert sum(tensor.numel() for tensor in queue._overwritten) == 3 + 3 * 2 + 1
    assert len(list(queue.buffers())) == 2


def test_keys_of_autocast_and_with_gradient():
    queue = FeatureQueue(2, 5)
    queue.push(nn.Parameter(torch.tensor([[0.5, 0.25]], dtype=torch.bfloat16)))
    assert queue.features[0].tolist() == [0.5, 0.25]
    assert queue.features.dtype == torch.float32 and not queue.features.requires_grad


def test_a_loss_of_a_clone_has_its_gradient_after_a_push():
    queue = FeatureQueue(2, 5)
    before = queue.features.clone()
    q = torch.ones(1, 2, requires_grad=True)
    loss = (q @ queue.features.clone().T).sum()
    queue.push(keys(0, 5))
    loss.backward()
    assert torch.allclose(q.grad, before.sum(dim=0, keepdim=True))


def test_saved_copied_and_moved():
    queue = FeatureQueue(2, 5)
    queue.push(keys(0, 3))
    before = state(queue)
    other = FeatureQueue(2, 5)
    other.load_state_dict(queue.state_dict())
    other.push(keys(3, 4))
    assert same(state(queue), before)
    twin = copy.deepcopy(other)
    twin.undo()
    assert same(state(twin), before) and not same(state(other), before)
    assert twin.to("meta").features.is_meta and twin.undoes_buffers


def test_keys_of_the_parts_of_a_batch_are_pushed_together():
    queue, whole = FeatureQueue(2, 5), FeatureQueue(2, 5)
    queue.push(keys(0, 3)), whole.push(keys(0, 3))
    before = state(queue)
    for i in range(2):
        queue.batch_part = (i, 3)
        queue.push(keys(3 + i, 1))
        assert same(state(queue), before)
    queue.batch_part = (2, 3)
    queue.push(keys(5, 1)), whole.push(keys(3, 3))
    assert same(state(queue), state(whole))
    queue.undo()
    assert same(state(queue), before)


def test_a_push_does_not_wait_for_the_device():
    """On the meta device there are no values: whatever asks for one fails."""
    queue = FeatureQueue(2, 5).to("meta")
    queue.push(keys(0, 3).to("meta"))
    queue.push(keys(0, 13).to("meta"))
    queue.undo()

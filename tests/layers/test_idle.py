import torch

from densesiam_d2.layers import with_idle


def test_value_is_kept_and_every_gradient_is_there():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    used, idle = torch.tensor([3.0], requires_grad=True), torch.tensor([[5.0, 7.0]], requires_grad=True)
    y = with_idle(x * used, [idle])
    assert y.tolist() == [3, 6]
    y.sum().backward()
    assert x.grad.tolist() == [3, 3] and used.grad.tolist() == [3]
    assert idle.grad.tolist() == [[0, 0]]


def test_without_others_nothing_is_computed():
    x = torch.ones(2, requires_grad=True)
    assert with_idle(x, []) is x

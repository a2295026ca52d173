import torch

from benchmarks.gpu import ByteCounter


def test_bytes_of_an_operation_and_its_gradient():
    a, b = torch.rand(1000, requires_grad=True), torch.rand(1000)
    with ByteCounter() as counter:
        product = a.view(10, 100) * b.view(10, 100)  # views cost nothing
    assert counter.bytes == 3 * 4000
    with ByteCounter() as counter:
        product.backward(torch.ones(10, 100))
    assert counter.bytes >= 3 * 4000  # of ones and b to the gradient of a
    assert counter.bytes < 6 * 4000

"""The momentum teacher: averages by hand, undoing bit for bit, and what a module must survive."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from densesiam_d2.layers import MomentumTeacher, cosine_momentum


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.projector = nn.Linear(4, 2)
        self.teacher = MomentumTeacher(backbone=self.backbone, projector=self.projector)

    def update(self, momentum):
        self.teacher.update(momentum)

    def students(self):
        return [*self.backbone.parameters(), *self.projector.parameters()]


def values(tensors):
    return [tensor.detach().clone() for tensor in tensors]


def equal(these, those):
    return all(torch.equal(a, b) for a, b in zip(these, those, strict=True))


@pytest.fixture
def model():
    """A model whose student has moved away from the teacher, which was a copy."""
    torch.manual_seed(0)
    model = Model()
    with torch.no_grad():
        for p in model.students():
            p.add_(torch.randn_like(p))
        for b in model.backbone.buffers():
            b.add_(3)
    return model


def test_momentum_by_hand():
    # 1 - (1 - base) * (cos(pi * progress) + 1) / 2: base at the start, (1 + base) / 2 half way, 1 at the end.
    assert cosine_momentum(0.9, 0) == pytest.approx(0.9)
    assert cosine_momentum(0.9, 0.5) == pytest.approx(0.95)
    assert cosine_momentum(0.9, 1 / 3) == pytest.approx(1 - 0.1 * 0.75)
    assert cosine_momentum(0.9, 1.0) == 1


def test_average_by_hand():
    student = nn.Linear(1, 1)
    teacher = MomentumTeacher(head=student)
    with torch.no_grad():
        teacher.head.weight.fill_(2), teacher.head.bias.fill_(-1)
        student.weight.fill_(6), student.bias.fill_(1)
    teacher.update(0.75)
    assert (teacher.head.weight.item(), teacher.head.bias.item()) == (3, -0.5)  # 2 + 4 / 4, -1 + 2 / 4
    teacher.update(0.75)
    assert (teacher.head.weight.item(), teacher.head.bias.item()) == (3.75, -0.125)
    assert (student.weight.item(), student.bias.item()) == (6, 1)


def test_it_is_a_copy_of_its_own_without_gradient():
    model = Model()
    assert equal(model.teacher.parameters(), model.students())
    assert not {p.data_ptr() for p in model.teacher.parameters()} & {p.data_ptr() for p in model.students()}
    assert not any(p.requires_grad for p in model.teacher.parameters())
    assert all(p.requires_grad for p in model.students())
    assert model.train().teacher.backbone[1].training


@pytest.mark.parametrize("momentum", [0, 0.5])
def test_buffers_are_left_alone(model, momentum):
    before = values(model.teacher.buffers())
    model.update(momentum)
    assert equal(model.teacher.buffers(), before)
    assert equal(model.teacher.parameters(), model.students()) == (momentum == 0)


def test_a_student_that_is_equal_changes_nothing():
    """Frozen parameters, such as the scale of a norm without affine part, must not drift by rounding."""
    model = Model()
    before = values(model.teacher.parameters())
    for _ in range(10):
        model.update(0.99)
    assert equal(model.teacher.parameters(), before)


@pytest.mark.parametrize("momentum", [0, 0.3, 0.996])
def test_undo_is_exact_and_happens_once(model, momentum):
    model.update(0.9)
    before = values(model.teacher.parameters())
    model.update(momentum)
    after = values(model.teacher.parameters())
    assert not equal(after, before)
    model.teacher.undo()
    assert equal(model.teacher.parameters(), before)
    with torch.no_grad():
        model.teacher.projector.weight.fill_(5)  # a second undo would overwrite it
    model.teacher.undo()
    assert (model.teacher.projector.weight == 5).all()


def test_the_parts_of_a_batch_move_the_teacher_once(model):
    before = values(model.teacher.parameters())
    model.teacher.batch_part = (0, 2)
    model.update(0.5)
    after = values(model.teacher.parameters())
    model.teacher.batch_part = (1, 2)
    model.update(0.5)
    assert equal(model.teacher.parameters(), after) and not equal(after, before)
    model.teacher.undo()
    assert equal(model.teacher.parameters(), before)


def test_undo_without_an_update_changes_nothing(model):
    before = values(model.teacher.parameters())
    model.teacher.undo()
    assert equal(model.teacher.parameters(), before)


def test_what_a_file_lacks_of_the_teacher_is_filled_from_the_student(model):
    """MODEL.WEIGHTS may have a backbone only, a student and no teacher, or both as a checkpoint has."""
    other = Model()
    state = {name: value for name, value in other.state_dict().items() if name.startswith("backbone.")}
    projector = values(model.projector.parameters())
    incompatible = model.load_state_dict(state, strict=False)
    assert set(incompatible.missing_keys) == {"projector.weight", "projector.bias"}
    assert equal(model.teacher.backbone.state_dict().values(), other.backbone.state_dict().values())
    assert equal(model.teacher.projector.parameters(), projector)
    with torch.no_grad():
        model.backbone[0].weight.add_(1)  # the teacher has tensors of its own
    assert equal(model.teacher.backbone.parameters(), other.backbone.parameters())
    assert len(state) == len(other.backbone.state_dict())  # the caller's dict is as it was

    with torch.no_grad():
        other.projector.weight.add_(1)
    model.load_state_dict(other.state_dict())
    assert equal(model.state_dict().values(), other.state_dict().values())


def test_state_dict_has_the_names_of_the_copies_and_nothing_else(model):
    model.update(0.5)
    expected = {f"backbone.{name}" for name in model.backbone.state_dict()}
    expected |= {f"projector.{name}" for name in model.projector.state_dict()}
    assert set(model.teacher.state_dict()) == expected
    assert len(list(model.teacher.buffers())) == 3  # of the batch norm: what an update keeps is not one of them
    other = Model()
    other.load_state_dict(model.state_dict())
    assert equal(other.teacher.parameters(), model.teacher.parameters())


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_independent_and_can_undo(model, duplicate):
    before = values(model.teacher.parameters())
    model.update(0.5)
    after = values(model.teacher.parameters())
    other = duplicate(model)
    other.teacher.undo()
    assert equal(other.teacher.parameters(), before)
    assert equal(model.teacher.parameters(), after)
    model.teacher.undo()
    assert equal(model.teacher.parameters(), before)


def test_what_an_update_keeps_moves_with_the_model(model):
    """To another type here, as to another device: what is kept must be where the parameters are."""
    before = values(model.teacher.parameters())
    model.update(0.5)
    model.to(torch.float64)
    model.teacher.undo()
    assert equal(model.teacher.parameters(), [b.double() for b in before])
    model.update(0.5)
    model.to("meta")
    assert {tensor.device.type for tensor in model.teacher._before} == {"meta"}
    model.update(0.5)


def test_twenty_steps_of_a_training_equal_a_slow_reference(model):
    model.update(0)
    slow = [p.detach().double() for p in model.teacher.parameters()]
    optimizer = torch.optim.SGD(model.students(), lr=0.01)
    for step in range(1, 20):
        momentum = cosine_momentum(0.9, step / 20)
        assert momentum == pytest.approx(1 - 0.1 * math.cos(math.pi * step / 40) ** 2)  # the same by half angles
        model.update(momentum)
        slow = [
            momentum * t + (1 - momentum) * s.detach().double() for t, s in zip(slow, model.students(), strict=True)
        ]
        optimizer.zero_grad()
        model.projector(model.backbone(torch.randn(4, 3, 3, 3)).flatten(1)).square().sum().backward()
        optimizer.step()
    for teacher, expected in zip(model.teacher.parameters(), slow, strict=True):
        assert torch.allclose(teacher, expected.float(), atol=1e-6)

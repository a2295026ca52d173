"""MoCo, DenseCL, DetCo: losses against slow references, what enters the queues, how the teacher follows."""

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch.nn import functional as F

from densesiam_d2.modeling.meta_arch import DenseCL, DetCo, MoCo
from densesiam_d2.modeling.meta_arch.densecl import most_similar
from tests.evaluation.processes import in_two_processes
from tests.modeling.meta_arch.test_image_level import pooled
from tests.modeling.meta_arch.tiny import assert_close_gradients, gradients, method_cfg, tiny_batch, tiny_model


def step(model, batch, iteration=1):
    with EventStorage(iteration):
        return model(batch)


def model_with_another_teacher(method):
    """Return a model whose teacher has other weights than its student, in the middle of training."""
    model = tiny_model(method_cfg(method))
    model.progress = 0.5
    model.teacher.load_state_dict(tiny_model(method_cfg(method), seed=7).teacher.state_dict())
    return model


def slow_info_nce(query, key, queue, temperature=0.2):
    scores = [torch.exp((query * other).sum() / temperature) for other in [key, *queue]]
    return -torch.log(scores[0] / sum(scores))


def normed(vector):
    return vector / vector.square().sum().sqrt()


def test_moco_equals_the_slow_reference():
    model, batch = model_with_another_teacher(MoCo), tiny_batch(4)
    queue = model.queue.features.clone()
    losses = step(model, batch)
    teacher = model.teacher  # updated by the step
    keys = list(pooled(model, batch, teacher.backbone))[1]
    keys = [normed(k) for k in teacher.head(keys).detach().flatten(1)]
    queries = [normed(q) for q in model.head(next(pooled(model, batch, model.backbone))).flatten(1)]
    expected = sum(slow_info_nce(q, k, queue) for q, k in zip(queries, keys, strict=True)) / 4
    assert set(losses) == {"loss_image"}
    assert losses["loss_image"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert_close_gradients(gradients(model, losses["loss_image"]), gradients(model, expected))
    assert torch.allclose(
        model.queue.features[:4], torch.stack(keys), atol=1e-4
    )  # the shuffle changes the order of sums
    assert torch.equal(model.queue.features[4:], queue[4:])


def test_the_teacher_follows_by_a_constant_momentum():
    model, momentum = model_with_another_teacher(MoCo), 0.999
    before = {name: p.clone() for name, p in model.teacher.named_parameters()}
    step(model, tiny_batch(4))
    students = {name: p for name, p in model.named_parameters() if name in before}
    assert students.keys() == before.keys()
    for name, student in students.items():
        expected = momentum * before[name] + (1 - momentum) * student
        assert torch.allclose(model.teacher.get_parameter(name), expected, rtol=1e-5, atol=1e-6), name


def keys_in_the_queue(rank):
    model, batch = model_with_another_teacher(MoCo), tiny_batch(8)
    for module in model.modules():
        module.training = module is model  # statistics are fixed, so that a key depends on its own image only
    step(model, {key: values[rank * 4 : rank * 4 + 4] for key, values in batch.items()})
    return model.queue.features[:8]


def test_two_processes_have_the_same_queue_in_the_order_of_the_ranks():
    first, second = in_two_processes(keys_in_the_queue)
    assert torch.equal(first, second)
    model, batch = model_with_another_teacher(MoCo), tiny_batch(8)
    for module in model.modules():
        module.training = module is model
    step(model, batch)
    assert torch.allclose(first, model.queue.features[:8], atol=1e-5)


def maps(model, batch, backbone):
    """Yield the feature map (N, C, h, w) of each view."""
    for view in batch["views"].unbind(dim=1):
        view = ((view - model.pixel_mean) / model.pixel_std).contiguous(memory_format=torch.channels_last)
        yield backbone(view)["res5"]


def test_densecl_equals_the_slow_reference():
    """Each position of view 1 is compared with the position of view 2 whose feature has the largest cosine."""
    model, batch = model_with_another_teacher(DenseCL), tiny_batch(4)
    queue, dense_queue = model.queue.features.clone(), model.dense_queue.features.clone()
    losses = step(model, batch)
    teacher = model.teacher  # updated by the step
    f1, f2 = next(maps(model, batch, model.backbone)), list(maps(model, batch, teacher.backbone))[1].detach()
    dense1, dense2 = model.head["dense"](f1), teacher.head["dense"](f2).detach()
    image1 = model.head["image"](f1.mean(dim=(2, 3), keepdim=True)).flatten(1)
    image2 = teacher.head["image"](f2.mean(dim=(2, 3), keepdim=True)).flatten(1).detach()
    cells = [(i, j) for i in range(2) for j in range(2)]
    assert f1.shape[2:] == (2, 2)
    image = dense = 0
    for n in range(4):
        image = image + slow_info_nce(normed(image1[n]), normed(image2[n]), queue) / 4
        for i, j in cells:
            cosines = [(normed(f1[n, :, i, j]) * normed(f2[n, :, a, b])).sum().item() for a, b in cells]
            a, b = cells[cosines.index(max(cosines))]
            dense = dense + slow_info_nce(normed(dense1[n, :, i, j]), normed(dense2[n, :, a, b]), dense_queue) / 16
    expected = {"loss_image": 0.5 * image, "loss_dense": 0.5 * dense}
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value.item(), rel=1e-4)
        assert_close_gradients(gradients(model, losses[name]), gradients(model, value))
    means = torch.stack([normed(sum(dense2[n, :, i, j] for i, j in cells)) for n in range(4)])
    assert torch.allclose(model.dense_queue.features[:4], means, atol=1e-4)
    assert torch.equal(model.dense_queue.features[4:], dense_queue[4:])


def test_densecl_takes_the_same_positions_with_amp():
    """All positions are similar to each other, so bf16 cosines are not exact enough to tell which is the nearest."""
    offset, generator = torch.ones(2, 64, 1), torch.Generator().manual_seed(0)
    f1, f2 = (torch.randn(2, 64, 49, generator=generator) + 3 * offset for _ in range(2))
    f1, f2 = F.normalize(f1, dim=1), F.normalize(f2, dim=1)
    expected = (f1.double().transpose(1, 2) @ f2.double()).argmax(dim=2)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(most_similar(f1, f2), expected)
        assert not torch.equal((f1.transpose(1, 2) @ f2).argmax(dim=2), expected)  # so the test can fail


def test_detco_equals_the_slow_reference():
    """At each stage: views with views, patches with patches, and patches with the views' keys."""
    model, batch = model_with_another_teacher(DetCo), tiny_batch(4)
    queues = {kind: {s: q.features.clone() for s, q in stages.items()} for kind, stages in model.queue.items()}
    losses = step(model, batch)

    def embeddings(view, backbone, head):
        """Return {"image", "patches"} -> stage -> N vectors of norm 1."""
        image, patches = batch["views"][:, view], batch["patches"][:, view]
        x = ((image - model.pixel_mean) / model.pixel_std).contiguous(memory_format=torch.channels_last)
        x_patches = torch.stack([(patches[:, p] - model.pixel_mean) / model.pixel_std for p in range(9)], dim=1)
        x_patches = x_patches.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        maps, out = backbone(x), {"image": {}, "patches": {}}
        in_one_batch = backbone(x_patches)  # one batch norm for all patches
        for stage in ("res2", "res3", "res4", "res5"):
            pooled = in_one_batch[stage].mean(dim=(2, 3))  # rows: patches of image 0, then of image 1
            vectors = [torch.cat([pooled[n * 9 + p] for p in range(9)]) for n in range(4)]
            out["image"][stage] = [head["image"][stage](m.mean(dim=(1, 2)).reshape(1, -1, 1, 1)) for m in maps[stage]]
            out["patches"][stage] = [head["patches"][stage](v.reshape(1, -1, 1, 1)) for v in vectors]
        return {k: {s: [normed(z.flatten()) for z in zs] for s, zs in stages.items()} for k, stages in out.items()}

    teacher = model.teacher  # updated by the step
    q = embeddings(0, model.backbone, model.head)
    with torch.no_grad():
        k = embeddings(1, teacher.backbone, teacher.head)
    weights = {"res2": 0.1, "res3": 0.4, "res4": 0.7, "res5": 1.0}
    pairs = {"loss_image": ("image", "image"), "loss_patches": ("patches", "patches")}
    pairs["loss_patches_to_image"] = ("patches", "image")
    assert losses.keys() == pairs.keys()
    for name, (query, key) in pairs.items():
        expected = 0
        for stage, weight in weights.items():
            for n in range(4):
                term = slow_info_nce(q[query][stage][n], k[key][stage][n], queues[key][stage])
                expected = expected + weight * term / 4
        assert losses[name].item() == pytest.approx(expected.item(), rel=1e-3)
        assert_close_gradients(gradients(model, losses[name]), gradients(model, expected))
    for kind, stages in model.queue.items():
        for stage, queue in stages.items():
            assert torch.allclose(queue.features[:4], torch.stack(k[kind][stage]), atol=1e-3), (kind, stage)


def test_detco_names_what_does_not_fit():
    cfg = method_cfg(DetCo)
    assert DetCo.problems(cfg) == []
    cfg.INPUT.SSL.PATCH_GRID, cfg.MODEL.DETCO.STAGE_WEIGHTS = 0, [1.0]
    assert len(DetCo.problems(cfg)) == 2
    cfg.INPUT.SSL.PATCH_GRID, cfg.MODEL.RESNETS.OUT_FEATURES = 3, ["res5"]
    with pytest.raises(ValueError, match=r"\['res2', 'res3', 'res4'\] are not among"):
        tiny_model(cfg)

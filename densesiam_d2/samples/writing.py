"""Write datasets: instance masks as COCO annotations, images, and folders that appear only when they are complete."""

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

__all__ = ["mask_to_polygons", "to_annotation", "write_folder", "write_jpeg"]

# Contours are traced on a mask enlarged by this factor: cv2 returns pixel *centres*, so tracing at the original scale
# would lose half a pixel on every side, which matters for small objects. Enlarged 8 times, the loss is 1/16 pixel.
_ENLARGE = 8


def mask_to_polygons(mask: np.ndarray) -> list[list[float]]:
    """Trace the outer boundaries of a mask. Holes are filled, because COCO polygons cannot express them.

    Args:
        mask: (H, W) bool.

    Returns:
        One flat ``[x, y, x, y, ...]`` list for each connected piece, in continuous pixel coordinates (centres at +0.5).
    """
    ys, xs = np.nonzero(mask)
    if len(xs) == 0:
        return []
    x0, y0 = xs.min(), ys.min()
    crop = np.pad(mask[y0 : ys.max() + 1, x0 : xs.max() + 1], 1).astype(np.uint8)
    enlarged = cv2.resize(crop, None, fx=_ENLARGE, fy=_ENLARGE, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(enlarged, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    origin = np.array([x0 - 1, y0 - 1])
    return [((c[:, 0] + 0.5) / _ENLARGE + origin).round(2).ravel().tolist() for c in contours]


def to_annotation(mask: np.ndarray, category_id: int, image_id: int, annotation_id: int) -> dict:
    """Describe one instance mask in COCO's format.

    Args:
        mask: (H, W) bool, not empty.
        category_id: COCO category id.
        image_id: COCO image id.
        annotation_id: id of this annotation, from 1 (pycocotools takes 0 for "no match").

    Returns:
        A COCO annotation: polygons, area in pixels, bbox (x, y, width, height) of the pixels' edges.
    """
    ys, xs = np.nonzero(mask)
    x0, y0 = int(xs.min()), int(ys.min())
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": category_id,
        "iscrowd": 0,
        "area": len(xs),
        "bbox": [x0, y0, int(xs.max()) + 1 - x0, int(ys.max()) + 1 - y0],
        "segmentation": mask_to_polygons(mask),
    }


def write_jpeg(path: Path, image: np.ndarray) -> None:
    """Write (H, W, 3) uint8 RGB at quality 95 with full colour resolution, which thin coloured patterns need."""
    options = [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    if not cv2.imwrite(str(path), image[..., ::-1], options):
        raise OSError(f"{path}: could not be written")


def write_folder(folder: Path, meta: dict, write: Callable[[Path], None]) -> Path:
    """Create a folder, filled by ``write``, that appears only when complete; keep one that has the same ``meta``.

    Args:
        folder: the folder to create, or to replace when its ``meta.json`` differs.
        meta: everything that the content depends on, JSON-serialisable; ``"kind"`` says what the folder holds.
        write: called with a temporary folder beside ``folder``.

    Returns:
        The folder.

    Raises:
        ValueError: ``folder`` is the current one, holds files of another "kind" or files that ``write`` does not
            replace, or cannot be written.
    """
    folder = folder.absolute()
    existing = _read_meta(folder)
    if existing == meta:
        return folder
    if folder.is_dir() and any(folder.iterdir()) and existing.get("kind") != meta["kind"]:
        raise ValueError(f"{folder} holds files that are no {meta['kind']}: choose another folder or empty this one.")
    if folder.resolve() == Path.cwd():
        raise ValueError(f"{folder} is the current folder, which would be replaced: name another one")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise ValueError(
            f'{folder} cannot be written ({error.strerror}): name another folder; that of the sets "scenes_*" and '
            '"demo_photos" is the environment variable DETECTRON2_DATASETS'
        ) from error
    try:
        temporary.chmod(0o755)  # mkdtemp makes it private to this user
        write(temporary)
        (temporary / "meta.json").write_text(json.dumps(meta))
        if folder.exists():
            others = {path.name for path in folder.iterdir()} - {path.name for path in temporary.iterdir()}
            if others:
                raise ValueError(
                    f"{folder} holds other files, such as {min(others)}, and would be replaced: name another folder"
                )
            shutil.rmtree(folder)
        try:
            temporary.rename(folder)
        except OSError:  # another process of the same run was faster
            if _read_meta(folder) != meta:
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _read_meta(folder: Path) -> dict:
    try:
        meta = json.loads((folder / "meta.json").read_text())
    except (OSError, ValueError):
        meta = {}
    return meta if isinstance(meta, dict) else {}

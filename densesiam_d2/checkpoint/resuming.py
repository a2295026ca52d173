"""Choose the checkpoint to resume a run from: the newest one that is not damaged."""

import zipfile
import zlib
from pathlib import Path

from densesiam_d2.checkpoint.files import read_checkpoint

__all__ = ["find_damage", "newest_valid", "own_checkpoints"]

TAG = "last_checkpoint"
# What a checkpoint must hold, and not be empty of, to go on from: without the trainer a run would start again.
_NEEDED = {"model": dict, "iteration": int, "trainer": dict}


def own_checkpoints(folder: str | Path) -> list[Path]:
    """Return the checkpoints that training wrote into a folder, sorted by name."""
    return sorted(Path(folder).glob("model_*.pth"))


def find_damage(path: Path) -> str | None:
    """Return a description of the damage in a file of ``torch.save``; None if it is not damaged.

    All stored checksums are compared, because a flipped bit would silently change a weight.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        return str(error) or type(error).__name__
    return f"the checksum of {broken} is wrong" if broken else None


def newest_valid(folder: str | Path) -> tuple[Path | None, list[str]]:
    """Find the checkpoint to resume from.

    It is the one that the tag file names. If the tag or that checkpoint is damaged, it is the undamaged one with the
    highest iteration.

    Args:
        folder: OUTPUT_DIR of the run.

    Returns:
        The file, or None if all are damaged; and one line for each file that was rejected.
    """
    folder, rejected, whole = Path(folder), [], []
    tagged = _tagged(folder)
    if tagged is None:
        rejected.append(f"{folder / TAG} is missing or names no .pth file of that folder")
    for path in [tagged, *own_checkpoints(folder)] if tagged else own_checkpoints(folder):
        if path == tagged and rejected:
            continue
        if damage := find_damage(path):
            rejected.append(f"{path}: {damage}")
            continue
        try:
            content = read_checkpoint(path)
        except ValueError as error:
            rejected.append(str(error))
            continue
        lacking = [k for k, kind in _NEEDED.items() if not isinstance(content.get(k), kind) or content[k] == {}]
        if lacking:
            rejected.append(f"{path} is no checkpoint of a training: it lacks {', '.join(lacking)}")
        elif path == tagged:
            return path, rejected
        else:
            whole.append((content["iteration"], path))
    return max(whole)[1] if whole else None, rejected


def _tagged(folder: Path) -> Path | None:
    """Return the file that the tag names; None if it is missing, outside the folder, or not a .pth file."""
    try:
        name = (folder / TAG).read_text().strip()
        ours = name == Path(name).name and name.endswith(".pth") and (folder / name).is_file()
    except (OSError, UnicodeDecodeError):
        return None
    return folder / name if ours else None

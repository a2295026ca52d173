"""Images without annotations, listed from a folder, a text file or an index."""

import datetime
import itertools
import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from detectron2.utils import comm

from densesiam_d2.image_io import IMAGE_SUFFIXES
from densesiam_d2.text_lines import counted, printable, read_lines

from .file_walk import walk_files
from .image_index import ImageFiles, write_index

__all__ = [
    "index_if_large",
    "load_image_folder",
    "load_image_list",
    "names_in_list",
    "no_images",
    "open_index",
    "walk_images",
]


def load_image_folder(*roots: str | Path) -> list[dict]:
    """List all images below some folders, in the order of the folders and sorted by path within each.

    Args:
        roots: folders. Links are followed; hidden files and folders are left out.

    Returns:
        Dicts of "file_name" and "image_id".

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a folder holds no image.
        OSError: a folder, or one below it, cannot be read.
    """
    records = []
    for root in map(Path, roots):
        skipped = Counter()
        images = list(walk_images(root, skipped))
        if not images:
            raise no_images(root, skipped)
        summary = counted(skipped) or "nothing"
        logging.getLogger(__name__).info("%d images in %s; skipped: %s", len(images), root, summary)
        records += [{"file_name": name, "image_id": len(records) + i} for i, name in enumerate(images)]
    return records


def load_image_list(path: str | Path) -> list[dict]:
    """Read the names of images from a text file, one name per line; empty lines are skipped.

    Args:
        path: the text file, UTF-8 with or without a byte-order mark. Relative names are relative to its folder.

    Returns:
        Dicts of "file_name" and "image_id", in the order of the file.

    Raises:
        FileNotFoundError: there is no such file, or images that it names do not exist.
        ValueError: the file is empty or not UTF-8, or it is a folder.
    """
    path, names = Path(path), names_in_list(Path(path))
    files = [path.parent / name for name in names]  # an absolute name replaces the folder
    missing = [name for name, file in zip(names, files, strict=True) if not file.is_file()]
    if missing:
        kinds = {
            "\\": "; names with backslashes are from Windows: write / instead",
            "://": "; addresses are not fetched: download the images, and name the files",
        }
        hint = next((text for part, text in kinds.items() if part in missing[0]), "")
        examples = ", ".join(printable(name[:200]) for name in missing[:3])
        raise FileNotFoundError(
            f"{len(missing)} of the {len(files)} images in {path} do not exist, first {examples}{hint}"
        )
    return [{"file_name": str(file), "image_id": i} for i, file in enumerate(files)]


def names_in_list(path: Path) -> list[str]:
    """Return the names in a list of images, which need not exist; errors are those of :func:`load_image_list`."""
    if path.is_dir():
        raise ValueError(f"the list of images {path} is a folder: folder: reads its images")
    if not path.is_file():
        raise FileNotFoundError(f"the list of images {path} does not exist")
    names = [name for line in read_lines(path) if (name := line.strip())]
    if not names:
        raise ValueError(f"the list of images {path} is empty")
    return names


def no_images(root: Path, skipped: Counter) -> ValueError:
    """Return the error that a folder holds no image, given the count of its other files."""
    endings = " ".join(IMAGE_SUFFIXES)
    return ValueError(f"{root} holds no images (endings {endings}); other files there: {counted(skipped) or 'none'}")


def open_index(index: Path, root: Path | None = None) -> ImageFiles:
    """Open an index, and log the date on which it was written.

    Logs a warning if names in the images' folder were added or removed since. Folders inside it are not looked at.

    Raises:
        FileNotFoundError, ValueError: as in :meth:`ImageFiles.open`, or its images are not in ``root``.
    """
    files = ImageFiles.open(index)
    if root and Path(files.root) != root.resolve():
        raise ValueError(f"{index} is of images in {files.root}, not in {root}: make it anew or take it away")
    written, logger = (index / "index.json").stat().st_mtime, logging.getLogger(__name__)
    date = datetime.datetime.fromtimestamp(written).date()
    logger.info("%d images, read from the index %s of %s", len(files), index, date)
    if Path(files.root).stat().st_mtime > written:
        logger.warning(
            "%s has changed since: images that were added are not used, and those that were removed cannot be read. "
            "To use it as it is now, write the index anew: python -m densesiam_d2.tools.index %s --output %s",
            files.root,
            files.root,
            index,
        )
    return files


def index_if_large(root: Path, index: Path, limit: int) -> bool:
    """Write an index of a folder with more than ``limit`` images, unless the index exists already.

    All processes must call this together. The main process writes the index. On each machine that does not see the
    files of the main process, the first process of that machine writes the index again.

    Returns:
        Whether the index exists now.

    Raises:
        FileNotFoundError, OSError: as in :func:`walk_files`.
    """
    for in_charge in (comm.is_main_process(), comm.get_local_rank() == 0):
        if in_charge and not (index / "index.json").is_file():
            skipped = Counter()
            names = walk_images(root, skipped)
            first = list(itertools.islice(names, limit + 1))
            if len(first) > limit:
                logger = logging.getLogger(__name__)
                logger.info(
                    "%s has more than %d images: listing all in the index %s (for very many, "
                    "python -m densesiam_d2.tools.index does so beforehand, while no process waits)",
                    root,
                    limit,
                    index,
                )
                below = len(os.path.join(root, ""))  # noqa: PTH118
                write_index(index, root, (name[below:] for name in itertools.chain(first, names)))
                logger.info("skipped: %s", counted(skipped) or "nothing")
        comm.synchronize()
    return (index / "index.json").is_file()


def walk_images(root: Path, skipped: Counter) -> Iterator[str]:
    """Yield the images below a folder, see :func:`walk_files`."""
    return walk_files(root, IMAGE_SUFFIXES, skipped)

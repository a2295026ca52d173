"""A folder of images, one or more images, a list of them, or the frames of a video, read one after the other."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from densesiam_d2.data.image_listing import load_image_list, walk_images
from densesiam_d2.data.white_level import warn_of_dark_images
from densesiam_d2.image_io import (
    IMAGE_SUFFIXES,
    UnreadableImageError,
    displayed_size,
    has_more_pages,
    read_image,
)
from densesiam_d2.text_lines import counted, printable

__all__ = ["ImageSource"]


class ImageSource:
    """Relative name and pixels of each image of a folder or list, of one or more images, or of every n-th video frame.

    Attributes:
        root: the folder that the names are relative to; of images and lists the deepest one that holds all images; None
            for a video, whose frames are no files.
        total: number of images; None for a video whose file does not say how many frames it has.
        skipped: after reading, the count of other files by ending.
        paged: after reading, the files with several pages or frames, of which the first was read.
        unreadable: after reading, the reason for each image that could not be read; for a video one line of its frames.
    """

    def __init__(self, path: Path, *more: Path, every: int | None = None, white_level: int):
        """List the images of a folder, read a list, or open a video.

        Args:
            path: folder (searched recursively; links are followed, hidden files and folders are left out) or file.
                ``.txt`` is a list, see :func:`densesiam_d2.data.load_image_list`; any other file that is no image is
                opened as a video.
            more: further images; ``path`` is then an image too.
            every: n of "every n-th frame", None for all; the first frame is always read.
            white_level: see :func:`densesiam_d2.image_io.read_image`.

        Raises:
            FileNotFoundError: there is no such folder or file, the folder holds no image, or an image of the list does
                not exist.
            ValueError: the video cannot be opened, the list is empty, ``every`` is given for images or is below 1, or
                one of several paths is no image.
        """
        for each in (path, *more):
            if not each.exists():
                raise FileNotFoundError(f"--input {each}: no such folder or file")
            if more and (each.is_dir() or each.suffix.lower() not in IMAGE_SUFFIXES):
                raise ValueError(f"--input {each} is no image: several names must all be images")
        self._path, self._every, self._white_level = path, every or 1, white_level
        self.skipped, self.paged, self.unreadable = Counter(), [], []
        self._video = None
        if every is not None and every < 1:
            raise ValueError(f"--every {every} must be at least 1")
        if path.is_file() and path.suffix.lower() not in (*IMAGE_SUFFIXES, ".txt") and not _is_image(path):
            self.root, self._video = None, _open_video(path)
            frames = int(self._video.get(cv2.CAP_PROP_FRAME_COUNT))
            self.total = -(-frames // self._every) if frames > 0 else None
            return
        if every is not None:
            raise ValueError(f"--every {every} is for videos, but --input {path} is not a video")
        if path.suffix.lower() == ".txt" and path.is_file():
            self._use([record["file_name"] for record in load_image_list(path)])
        elif path.is_dir():
            self.root, self._files = path, list(walk_images(path, self.skipped))
        else:
            self._use([path, *more])
        self.total = len(self._files)
        if not self.total:
            raise FileNotFoundError(f"--input {path}: {self._why_nothing()}")
        warn_of_dark_images([{"file_name": file} for file in self._files], white_level)

    def _use(self, files: Sequence[str | Path]) -> None:
        """Set the images, and the deepest folder that holds them all."""
        self._files = [os.path.abspath(file) for file in files]  # noqa: PTH100
        self.root = Path(os.path.commonpath([Path(file).parent for file in self._files]))

    def __iter__(self) -> Iterator[tuple[Path, np.ndarray]]:
        """Yield the name of each image, such as ``town/a.jpg`` or ``video/000120.jpg``, and its pixels (H, W, 3), RGB.

        Raises:
            FileNotFoundError: not one image could be read.
        """
        count = 0
        for name, image in self._frames() if self._video else self._images():
            count += 1
            yield name, image
        if not count:
            raise FileNotFoundError(f"--input {self._path}: {self._why_nothing()}")

    def refuse_output(self, output: Path, replaced: Sequence[str]) -> None:
        """Check that results are written to a folder, and not among the images.

        Args:
            output: folder of the results.
            replaced: names of folders in it that are deleted before new results are written.

        Raises:
            ValueError: ``output`` is a file, or lies in the folder of images, or an image lies in a folder of
                ``replaced``.
        """
        if output.exists() and not output.is_dir():
            raise ValueError(f"--output {output} is a file: name a folder")
        inside = output.resolve().is_relative_to(self._path.resolve()) if self._path.is_dir() else False
        if inside or (self.root and output.resolve() == self.root.resolve()):
            raise ValueError(f"--output {output} lies in --input {self.root}: a run on it would read the results")
        files = [self._path] if self._video else self._files
        parents = [Path(parent).resolve() for parent in {os.path.dirname(file) for file in files}]  # noqa: PTH120
        for name in replaced:
            if any(parent.is_relative_to((output / name).resolve()) for parent in parents):
                raise ValueError(
                    f"--input {self._path} lies in results of an earlier run, {output / name}, which are replaced: "
                    "name another --output"
                )

    def left_out(self) -> list[str]:
        """Return lines for a person that name, after reading, the files that were skipped or could not be read."""
        lines = []
        if self.skipped:
            lines.append(f"skipped: {counted(self.skipped)}")
        if self.paged:
            lines.append(
                f"files of which the first page or frame alone was read: {len(self.paged)}, such as {self.paged[0]}"
            )
        if self.unreadable:
            lines += [f"files that could not be read: {len(self.unreadable)}", *self.unreadable]
        return list(map(printable, lines))

    def _why_nothing(self) -> str:
        if self._video:
            return "the video has no frame that can be read"
        reason = self.unreadable[0] if self.unreadable else f"endings {' '.join(IMAGE_SUFFIXES)}"
        return f"no readable image in it ({reason}); {self.skipped.total()} other files"

    def _images(self) -> Iterator[tuple[Path, np.ndarray]]:
        for path in self._files:
            try:
                image = read_image(path, white_level=self._white_level)
            except (ValueError, FileNotFoundError) as error:  # damaged, or removed since the folder was listed
                self.unreadable.append(str(error))
            else:
                if path.lower().endswith((".tif", ".tiff", ".gif", ".webp", ".png")):
                    with Image.open(path) as file:
                        self.paged += [path] * has_more_pages(file)
                yield Path(path).relative_to(self.root), image

    def _frames(self) -> Iterator[tuple[Path, np.ndarray]]:
        """Read to the first frame that fails: of later ones, which some codecs have, the numbers are not known."""
        number = read = 0
        while self._video.grab():
            if number % self._every == 0:
                decoded, image = self._video.retrieve()
                if decoded:
                    read += 1
                    yield Path(self._path.stem) / f"{number:06d}.jpg", cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
            number += 1
        wanted = max(self.total or 0, -(-number // self._every))
        if read < wanted:
            lost = f"{wanted - read} of about {wanted} frames could not be read"
            self.unreadable.append(f"{self._path}: {lost}; reading ended after frame {number - 1:06d}")


def _is_image(path: Path) -> bool:
    """Tell whether a file holds an image, whatever its ending is."""
    try:
        displayed_size(path)
    except UnreadableImageError:
        return False
    return True


def _open_video(path: Path) -> cv2.VideoCapture:
    """Open a video; OpenCV and FFmpeg print nothing about damaged files, because our error names the file."""
    if str(path).encode(errors="ignore").decode() != str(path):
        raise ValueError(f"--input {path}: OpenCV opens no video whose path is not UTF-8: rename it, or link to it")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    level = cv2.setLogLevel(0)  # silent; returns the level before
    video = cv2.VideoCapture(str(path))
    cv2.setLogLevel(level)
    if not video.isOpened():
        raise ValueError(f"--input {path} is neither an image ({' '.join(IMAGE_SUFFIXES)}) nor a readable video")
    return video

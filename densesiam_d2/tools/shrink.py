"""Write small copies of the images in a folder into tar files with an index, so that training reads and decodes less.

    python -m densesiam_d2.tools.shrink /data/photos --max-side 400       writes /data/photos-400 and its index
    python train_net.py ... DATASETS.TRAIN "('index:/data/photos-400.index',)"

An image whose longer side is above --max-side is resized to it and saved as a JPEG. Smaller JPEGs are copied byte by
byte, and other small images are saved as JPEGs of the same size. The pixels of the copies are not those of the
originals: JPEG changes them a little, and a crop of a small copy has less detail. So a training from copies is another
training. Choose --max-side well above INPUT.SSL.VIEW_SIZE.

A stopped run goes on where it stopped if it is started again: finished tar files stay, but those with images that could
not be read and now can are written anew. Written are:

    photos-400/00000.tar     2,000 images in the order of their paths; "x.png" becomes "x.png.jpg"
    photos-400/00000.json    the facts of the tar file, for going on
    photos-400.index         the index of the images in all tar files
    photos-400.jsonl         the checksum of each copy; compare with
                             python -m densesiam_d2.tools.check_data index:photos-400.index --manifest photos-400.jsonl
    photos-400.unreadable    one line for each image that could not be read, if there is any

Exit status: 0 if all is well; 1 if images could not be read (the others are written); 2 for wrong usage.
"""

import argparse
import functools
import hashlib
import io
import itertools
import json
import math
import os
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import torch
from PIL import Image
from tqdm import tqdm

from densesiam_d2.atomic import atomic_write
from densesiam_d2.data.augmentation import AntialiasedResizeTransform
from densesiam_d2.data.image_index import require_index_or_nothing, tar_members, write_index
from densesiam_d2.data.image_listing import no_images, walk_images
from densesiam_d2.data.path_datasets import folder_of
from densesiam_d2.image_io import JPEG_SIDE, WHITE_LEVEL, UnreadableImageError, read_bytes, read_image
from densesiam_d2.text_lines import counted, printable
from densesiam_d2.tools.command_line import tool
from densesiam_d2.tools.reader_pool import in_workers

__all__ = ["main"]

SHARD = 2000  # images in a tar file
EXAMPLES = 10  # of unreadable images are printed
FACTS = {"settings", "names", "before", "after", "unreadable", "files"}  # of a tar file


@dataclass
class Shrunk:
    """What became of a file."""

    path: str
    error: str | None = None
    before: int = 0  # bytes
    data: bytes = b""  # of the JPEG


@tool
def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="folder with images, at any depth")
    parser.add_argument("--max-side", type=int, required=True, help="longer side of the copies in pixels, at most")
    parser.add_argument("--quality", type=int, default=90, help="of the JPEGs, 1 to 100 (default %(default)s)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder of the tar files (default: FOLDER-MAX_SIDE)")
    parser.add_argument(
        "--white-level",
        type=int,
        default=WHITE_LEVEL,
        help="value of 16-bit images that becomes white, as INPUT.WHITE_LEVEL (default %(default)s)",
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default %(default)s)")
    parser.add_argument("--timeout", type=float, default=60, help="seconds for one image (default %(default)s)")
    args = parser.parse_args(argv)
    return 0 if _run(args) else 1


def _run(args: argparse.Namespace) -> bool:
    """Write all files, and tell whether every image could be read."""
    folder = folder_of(args.folder).absolute()
    output = (args.output or folder.with_name(f"{folder.name}-{args.max_side}")).resolve()
    folder = folder.resolve()
    if not 1 <= args.max_side <= JPEG_SIDE:
        raise ValueError(f"--max-side {args.max_side} must lie between 1 and {JPEG_SIDE}, the longest side of a JPEG")
    if not 1 <= args.quality <= 100 or args.workers < 1 or not 0 < args.timeout < math.inf:
        raise ValueError("--workers and --timeout must be positive and finite, and --quality 1 to 100")
    if not 1 <= args.white_level <= WHITE_LEVEL:
        raise ValueError(f"--white-level {args.white_level} must lie between 1 and {WHITE_LEVEL}")
    if output.is_relative_to(folder):
        raise ValueError(f"--output {output} lies in {folder}: name a folder outside")
    skipped = Counter()
    total = sum(1 for _ in walk_images(folder, skipped))
    if not total:
        raise no_images(folder, skipped)
    _check_output(output, -(-total // SHARD))

    settings = {"max_side": args.max_side, "quality": args.quality, "white_level": args.white_level}
    workers = {"workers": args.workers, "timeout": args.timeout, "failed": Shrunk}
    shrink = functools.partial(in_workers, functools.partial(_shrink, **settings), **workers)
    facts = []
    with tqdm(total=total, unit=" images", disable=None) as bar:  # no bar in a log file
        for number, names in enumerate(_shards(folder)):
            tar = output / f"{number:05}.tar"
            digest = hashlib.sha256("\0".join(names).encode(errors="surrogateescape")).hexdigest()
            bad = _facts(tar, settings, digest)["unreadable"] if tar.exists() else []
            mended = bad and any(not now.error for now in shrink({"file_name": file["path"]} for file in bad))
            if mended or not tar.exists():
                tar.unlink(missing_ok=True)  # else a stop could leave it beside the facts of the new one
                results = shrink({"file_name": name} for name in names)
                _write_shard(tar, folder, _counted(results, bar), {"settings": settings, "names": digest})
            else:
                bar.update(len(names))
            facts.append(_facts(tar, settings, digest))
    if not any(shard["files"] for shard in facts):
        first = facts[0]["unreadable"][0]["reason"]
        raise ValueError(f"none of the {total} images in {folder} can be read; the first: {first}")
    return _finish(output, facts, skipped)


def _check_output(output: Path, shards: int) -> None:
    """Refuse files that are replaced at the end, and tar files that an unfinished run would not have left."""
    index, *lists = _outputs(output)
    require_index_or_nothing(index)
    for path in lists:
        if path.exists() and not any(output.glob("*.tar")):
            raise ValueError(f"{path} exists, but {output} holds no tar file: take it away, or name another --output")
    expected = {f"{number:05}.tar" for number in range(shards)}
    for tar in sorted(output.glob("*.tar")):
        if tar.name not in expected or not tar.with_suffix(".json").is_file():
            raise ValueError(f"{tar} is not of this folder: delete {output}, or name another folder by --output")


def _outputs(output: Path) -> tuple[Path, Path, Path]:
    """Return the paths of the index, the checksums and the list of unreadable images, beside the tar files."""
    index, manifest, unreadable = (output.with_name(output.name + end) for end in (".index", ".jsonl", ".unreadable"))
    return index, manifest, unreadable


def _shards(folder: Path) -> Iterator[list[str]]:
    names = walk_images(folder, Counter())
    while shard := list(itertools.islice(names, SHARD)):
        yield shard


def _counted(results: Iterator[Shrunk], bar: tqdm) -> Iterator[Shrunk]:
    for result in results:
        bar.update()
        yield result


def _shrink(record: dict, max_side: int, quality: int, white_level: int) -> Shrunk:
    """Read an image in a worker process, and return it as a small JPEG."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    path = record["file_name"]
    try:
        data = read_bytes(path)
        image = read_image(path, white_level=white_level)
        height, width = image.shape[:2]
        scale = min(1, max_side / max(height, width))
        if scale < 1 or data[:2] != b"\xff\xd8":
            size = max(1, round(height * scale)), max(1, round(width * scale))
            image = AntialiasedResizeTransform(height, width, *size, Image.BILINEAR).apply_image(image)
            image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
            small = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
        else:
            small = data
        return Shrunk(path, before=len(data), data=small)
    except (UnreadableImageError, FileNotFoundError) as error:
        return Shrunk(path, str(error))
    except Exception as error:  # also of read_bytes, which does not name the file
        return Shrunk(path, f"cannot read {path}: {error}")


def _write_shard(tar: Path, folder: Path, results: Iterator[Shrunk], facts: dict) -> None:
    """Write a tar file and, before it appears, its facts. The same images give the same bytes."""
    facts |= {"before": 0, "after": 0, "unreadable": [], "files": []}
    with atomic_write(tar) as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for result in results:
                if result.error:
                    facts["unreadable"].append({"path": result.path, "reason": result.error})
                    continue
                name = Path(result.path).relative_to(folder).as_posix()
                if not name.lower().endswith((".jpg", ".jpeg")):
                    name += ".jpg"
                    while (folder / name).exists():  # another image, which keeps its name
                        name = f"{name.removesuffix('.jpg')}_.jpg"
                member = tarfile.TarInfo(name)
                member.size = len(result.data)
                archive.addfile(member, io.BytesIO(result.data))
                facts["before"] += result.before
                facts["after"] += len(result.data)
                checksum = hashlib.sha256(result.data).hexdigest()
                facts["files"].append({"path": f"{tar.name}/{member.name}", "bytes": member.size, "sha256": checksum})
        with atomic_write(tar.with_suffix(".json")) as description:
            description.write(json.dumps(facts).encode())


def _facts(tar: Path, settings: dict, digest: str) -> dict:
    """Read the facts of a tar file, and check that it is of these images and settings."""
    path = tar.with_suffix(".json")
    try:
        facts = json.loads(path.read_text())
    except ValueError:
        facts = None
    known = isinstance(facts, dict) and facts.keys() >= FACTS
    if not known:
        raise ValueError(f"{path} does not hold the facts of {tar.name}: delete both, and they are written again")
    if facts["settings"] != settings:
        raise ValueError(f"{tar} was written with {facts['settings']}, not {settings}: name another --output")
    if facts["names"] != digest:
        raise ValueError(f"the folder has other images than when {tar} was written: delete {tar.parent} to start anew")
    return facts


def _finish(output: Path, facts: list[dict], skipped: Counter) -> bool:
    """Write index, checksums and the list of unreadable images; print a summary."""
    index, manifest, unreadable = _outputs(output)
    bad = [file["reason"] for shard in facts for file in shard["unreadable"]]
    unreadable.unlink(missing_ok=True)
    if bad:
        with atomic_write(unreadable) as file:
            file.writelines(f"{line}\n".encode(errors="surrogateescape") for line in bad)
        for line in bad[:EXAMPLES]:
            print(line, file=sys.stderr)
    with atomic_write(manifest) as file:
        file.writelines(f"{json.dumps(entry)}\n".encode() for shard in facts for entry in shard["files"])
    count = write_index(index, output, tar_members(output, Counter()), tar=True)
    before, after = (sum(shard[key] for shard in facts) / 1e6 for key in ("before", "after"))
    text = (
        f"{count:,} images in {index}: {before:,.1f} MB became {after:,.1f} MB ({after / before:.2f}); "
        f"{len(bad):,} could not be read{f', named in {unreadable}' if bad else ''}; "
        f"skipped: {counted(skipped) or 'nothing'}"
    )
    print(printable(text))
    return not bad


if __name__ == "__main__":
    sys.exit(main())

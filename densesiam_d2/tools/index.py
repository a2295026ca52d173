"""Write an index of the images in a folder, which all processes of later runs map into memory.

    python -m densesiam_d2.tools.index /data/photos                       writes /data/photos.index
    python train_net.py ... DATASETS.TRAIN "('index:/data/photos.index',)"

``folder:/data/photos`` uses ``/data/photos.index`` if it exists. A run then starts at once and needs no memory for the
list, even for millions of images. After adding images, write the index again.

For a folder of uncompressed tar files (such as webdataset's shards), the index names the images inside. They are read
from the tar files, which is faster on storage that is slow with many small files. Write tar files of some thousand
images by ``tar --sort=name -cf shard-0000.tar folder``. Links in a tar file are left out and counted.
"""

import argparse
import itertools
import sys
import time
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from densesiam_d2.data.file_walk import walk_files
from densesiam_d2.data.image_index import TAR_SUFFIXES, ImageFiles, tar_members, write_index
from densesiam_d2.data.image_listing import walk_images
from densesiam_d2.data.path_datasets import folder_of, index_beside
from densesiam_d2.text_lines import counted, printable
from densesiam_d2.tools.command_line import tool

__all__ = ["main"]


@tool
def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="folder with images, at any depth, or with tar files")
    parser.add_argument("--output", type=Path, metavar="INDEX", help="default: FOLDER.index")
    args = parser.parse_args(argv)
    folder = folder_of(args.folder)
    print(_index(folder, args.output or index_beside(folder)))


def _index(folder: Path, output: Path) -> str:
    start, skipped = time.monotonic(), Counter()
    if not folder.is_dir():
        raise FileNotFoundError(f"the folder {folder} does not exist")
    if output.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"--output {output} lies in {folder}")
    tars = next(walk_files(folder, TAR_SUFFIXES, Counter()), None) is not None
    if tars:
        if next(walk_images(folder, Counter()), None) is not None:
            raise ValueError(f"{folder} holds both images and tar files: put them into separate folders")
        images = tar_members(folder, skipped)
    else:
        length = len(str(folder)) + 1
        images = (name[length:] for name in walk_images(folder, skipped))
    first = next(images, None)
    if first is None:
        raise ValueError(
            f"{folder} holds no images and no tar file (*.tar) with images; other files there: "
            f"{counted(skipped) or 'nothing'}; unpack them if they hold images"
        )
    images = tqdm(itertools.chain([first], images), unit=" images", disable=None)
    count = write_index(output, folder, images, tar=tars)
    first = ImageFiles.open(output)[0]["file_name"]
    seconds = time.monotonic() - start
    text = f"{count:,} images in {output} ({seconds:.1f} s); first {first}; skipped: {counted(skipped) or 'nothing'}"
    return printable(text)


if __name__ == "__main__":
    sys.exit(main())

"""Read every image once before a long run, and report which cannot be read and why.

    python -m densesiam_d2.tools.check_data /data/photos --report report.json --list good.txt

A source is a folder (also as folder:/path), list:/path.txt or index:/path.index, as in DATASETS.TRAIN; an index
can contain images in tar files. To train on the readable images only, set DATASETS.TRAIN "('list:good.txt',)".

A source with labels is coco:FILE.json[,images=DIR], masks:IMAGES,labels=DIR[,classes=FILE], or the name of any other
dataset, such as voc_2007_trainval. Its labels are checked as at the start of a run, but all label maps and
image headers instead of a sample of 1,000. Findings are errors (a run would stop), warnings, or repairs.

    python -m densesiam_d2.tools.check_data coco:/data/train.json,images=/data/train --report report.json

An image that can be read may still be damaged: most damage within a file gives wrong pixels, not an error. Checksums
find it: write a manifest where the data are intact, and compare every copy with it.

    python -m densesiam_d2.tools.check_data /data/photos --write-manifest photos.jsonl
    python -m densesiam_d2.tools.check_data /copy/of/photos --manifest photos.jsonl

The report is JSON: "sources", "images" (count), "unreadable" (path, reason), "small" (paths), "megapixels" (min,
median, max), "kinds" (count of each format), "skipped" (count of other files by ending, and of images named again); if
16-bit images use 12 bits or fewer, "dark" ("images", their "highest" value, "WHITE_LEVEL" to set in INPUT); with labels
"labels", for each dataset "name", "classes", "images", "annotations" (counts) and "findings" (level, kind, where, text,
count, up to 1,000 examples); with checksums "duplicates" and "manifest" (missing, changed, new).

Exit status: 0 if all is well; 1 if an image is unreadable, missing or changed (by the manifest), or labels have an
error; 2 for wrong usage.
"""

import argparse
import json
import math
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from operator import itemgetter
from pathlib import Path
from statistics import median

from detectron2.data import DatasetCatalog, MetadataCatalog
from tqdm import tqdm

from densesiam_d2.atomic import atomic_write
from densesiam_d2.data.image_listing import names_in_list, no_images, open_index, walk_images
from densesiam_d2.data.label_checks import LabelledSet, adopt, look_at
from densesiam_d2.data.path_datasets import (
    INDEX_PREFIX,
    LIST_PREFIX,
    UNLABELLED_PREFIXES,
    folder_of,
    register_path_datasets,
)
from densesiam_d2.data.white_level import DARK, dark_text, white_level_for
from densesiam_d2.evaluation.cityscapes import ensure_cityscapes_api
from densesiam_d2.labels.findings import Finding
from densesiam_d2.text_lines import counted, printable
from densesiam_d2.tools.command_line import check_output_file, tool
from densesiam_d2.tools.reader_pool import CheckedImage, check_images

__all__ = ["main"]

SMALL = 32  # pixels; images with a shorter side are reported
EXAMPLES = 10  # of each finding are printed; the report has all


@tool
def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "sources", nargs="+", metavar="SOURCE", help="folder, list:/path.txt, index:/path.index or dataset, see above"
    )
    parser.add_argument("--report", type=Path, metavar="JSON", help="write all findings here")
    parser.add_argument("--list", type=Path, metavar="TXT", help="write the absolute paths of the readable images here")
    parser.add_argument("--write-manifest", type=Path, metavar="JSONL", help="write the checksum of each file here")
    parser.add_argument("--manifest", type=Path, metavar="JSONL", help="compare with a file of --write-manifest")
    parser.add_argument("--boxes", action="store_true", help="instances need no masks (MODEL.MASK_ON False)")
    parser.add_argument(
        "--accept", nargs="+", default=(), metavar="KIND", help="findings to accept, as DATASETS.ACCEPT"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that read (default %(default)s)")
    parser.add_argument("--timeout", type=float, default=60, help="seconds for one image (default %(default)s)")
    args = parser.parse_args(argv)
    return 0 if _check(args) else 1


def _common_folder(records: list[dict]) -> str:
    """Return the folder below which all images lie, so that a manifest fits a copy of them."""
    return os.path.commonpath([Path(record["file_name"]).parent for record in records]) if records else ""


def _check(args: argparse.Namespace) -> bool:
    """Run all checks, write the files, and tell whether nothing is wrong."""
    if args.workers < 1 or not 0 < args.timeout < math.inf:
        raise ValueError(f"--workers {args.workers} and --timeout {args.timeout} must be positive and finite")
    _check_outputs(args)
    with_checksums = bool(args.manifest or args.write_manifest)
    if with_checksums and len(args.sources) > 1:
        raise ValueError("paths in a manifest are relative to one folder: give one source")
    manifest = _read_manifest(args.manifest) if args.manifest else None
    root, records, labels, skipped = _gather(args)
    paths = [path for path, _ in records]
    if with_checksums and (twice := [path for path, number in Counter(paths).items() if number > 1]):
        raise ValueError(f"{twice[0]} stands twice in its tar file; a manifest cannot tell such images apart")
    if args.list and any("file_part" in record for record in records.values()):
        raise ValueError("--list cannot name images in tar files; training replaces unreadable images by itself")

    files = check_images(records.values(), args.workers, args.timeout, with_checksums)
    report, checksums = _summarize(tqdm(files, total=len(paths), unit=" images", disable=None))  # no bar in a log file
    report = {"sources": args.sources, **report, "skipped": skipped}
    if labels:
        report["labels"] = [_label_report(labelled) for labelled in labels]
    if with_checksums:
        report["duplicates"] = _find_duplicates(checksums)
        by_name = {os.path.relpath(path, root): checksums.get(path) for path in paths}
    if args.manifest:
        report["manifest"] = _compare(manifest, by_name)
    if args.report:
        _write_lines(args.report, [json.dumps(report, indent=1)])
    _print_report(report)

    if args.write_manifest:
        lines = ({"path": name, "bytes": sums[0], "sha256": sums[1]} for name, sums in by_name.items() if sums)
        _write_lines(args.write_manifest, map(json.dumps, lines))
    if args.list:
        unreadable = {file["path"] for file in report["unreadable"]}
        good = [path for path in paths if path not in unreadable]
        _write_lines(args.list, filter(_fits_list, good))
        _print_findings("left out of the list, which cannot hold such names", [p for p in good if not _fits_list(p)])
    differences = report.get("manifest", {"missing": [], "changed": []})
    wrong_labels = any(labelled.findings.of("error") for labelled in labels)
    return not (report["unreadable"] or differences["missing"] or differences["changed"] or wrong_labels)


def _check_outputs(args: argparse.Namespace) -> None:
    """Check that the files to write can be written, and differ."""
    outputs = {}
    for option in ("--report", "--list", "--write-manifest"):
        if path := getattr(args, option.strip("-").replace("-", "_")):
            check_output_file(option, path)
            if (other := outputs.setdefault(path.resolve(), option)) != option:
                raise ValueError(f"{other} and {option} both name {path}: give two files")


def _gather(args: argparse.Namespace) -> tuple[str, dict[tuple, dict], list[LabelledSet], Counter]:
    """Find the images of all sources, and check the labels of those that have some.

    Returns:
        The folder of the last source's images, for a manifest; (file name, part of a tar file) -> record of each image;
        the sets with labels; how many files were skipped, by ending.
    """
    skipped, records, labels = Counter(), {}, []
    for source in args.sources:
        register_path_datasets([source])
        metadata = MetadataCatalog.get(source) if source in DatasetCatalog else None
        if metadata and metadata.get("image_roots") and not metadata.get("sem_seg_root"):  # ImageNet, and such
            found = _absolute(record["file_name"] for record in DatasetCatalog.get(source))
            root = _common_folder(found)
        elif metadata and not source.startswith(UNLABELLED_PREFIXES):
            labels.append(_look_at_labels(source, args))
            found = _absolute(labels[-1].images)
            root = metadata.get("image_root") or _common_folder(found)
        else:
            root, found = _find_images(source, skipped)
        for record in found:
            key = record["file_name"], record.get("file_part")  # tar files may hold a name twice
            if key in records:
                skipped["named again"] += 1
            records[key] = record
    return root, records, labels, skipped


def _absolute(paths: Iterable[str]) -> list[dict]:
    return [{"file_name": os.path.abspath(path)} for path in paths]  # noqa: PTH100  resolve() would follow links


def _look_at_labels(name: str, args: argparse.Namespace) -> LabelledSet:
    """Check all labels of a dataset."""
    adopt(name)  # which sets the kind, if ``register_pascal_voc`` has not
    kind = MetadataCatalog.get(name).get("evaluator_type")
    semantic, masks = kind in ("sem_seg", "cityscapes_sem_seg"), not args.boxes and kind != "pascal_voc"
    ensure_cityscapes_api([name])
    labelled = look_at(name, semantic=semantic, masks=masks, sample=None)
    labelled.findings = labelled.findings.accept(args.accept)
    return labelled


def _label_report(labelled: LabelledSet) -> dict:
    return {
        "name": labelled.name,
        "classes": labelled.classes,
        "images": len(labelled.images),
        "annotations": labelled.num_annotations,
        "findings": [asdict(finding) for finding in labelled.findings],
    }


def _find_images(source: str, skipped: Counter) -> tuple[Path, Sequence[dict]]:
    """Return the folder of a source, and its images by their absolute paths; count the other files by their ending."""
    if source.startswith(INDEX_PREFIX):
        files = open_index(Path(source.removeprefix(INDEX_PREFIX)).expanduser())
        return Path(files.root), files
    if source.startswith(LIST_PREFIX):  # as load_image_list, but files may be missing
        path = Path(source.removeprefix(LIST_PREFIX)).expanduser().absolute()
        root, paths = path.parent, [str(path.parent / name) for name in names_in_list(path)]
    else:
        root, others = folder_of(source).absolute(), Counter()
        if root.is_file():
            raise ValueError(f"{root} is a file: give a folder, or list:{root} if it is a list of images")
        paths = sorted(walk_images(root, others))
        if not paths:
            raise no_images(root, others)
        skipped.update(others)
    return root, [{"file_name": name} for name in paths]


def _summarize(files: Iterable[CheckedImage]) -> tuple[dict, dict[str, tuple[int, str]]]:
    """Return a report, sorted by path, and the checksums by path where they are known."""
    report = {"images": 0, "unreadable": [], "small": [], "megapixels": {}, "kinds": Counter()}
    megapixels, checksums, highest = [], {}, []
    for file in files:
        report["images"] += 1
        if file.checksum is not None:
            checksums[file.path] = file.checksum
        if file.error is not None:
            report["unreadable"].append({"path": file.path, "reason": file.error})
            continue
        megapixels.append(file.size[0] * file.size[1] / 1e6)
        report["kinds"][file.kind or "unknown"] += 1
        if file.highest is not None:
            highest.append(file.highest)
        if min(file.size) < SMALL:
            report["small"].append(file.path)
    report["unreadable"].sort(key=itemgetter("path"))
    report["small"].sort()
    if megapixels:
        report["megapixels"] = {"min": min(megapixels), "median": median(megapixels), "max": max(megapixels)}
    if highest and max(highest) <= DARK:
        brightest = max(highest)
        report["dark"] = {"images": len(highest), "highest": brightest, "WHITE_LEVEL": white_level_for(brightest)}
    return report, checksums


def _find_duplicates(checksums: dict[str, tuple[int, str]]) -> list[list[str]]:
    groups = defaultdict(list)
    for path, checksum in checksums.items():
        groups[checksum].append(path)
    return sorted(sorted(paths) for paths in groups.values() if len(paths) > 1)


def _read_manifest(path: Path) -> dict[str, tuple[int, str]]:
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return {line["path"]: (line["bytes"], line["sha256"]) for line in lines}
    except (ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"  # the repr of a UnicodeDecodeError has the whole file
        raise ValueError(f"--manifest {path} has not been written by --write-manifest: {reason}") from error


def _compare(manifest: dict[str, tuple[int, str]], found: dict[str, tuple[int, str] | None]) -> dict[str, list[str]]:
    return {
        "missing": [name for name in manifest if name not in found],
        "changed": [name for name in manifest if name in found and found[name] != manifest[name]],
        "new": [name for name in found if name not in manifest],
    }


def _fits_list(path: str) -> bool:
    """Tell whether a list of images, in UTF-8 and with one name a line, can hold a path."""
    return path == path.strip() and len(path.splitlines()) == 1 and path.encode(errors="ignore").decode() == path


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    with atomic_write(path) as file:
        file.writelines(f"{line}\n".encode() for line in lines)


def _print_report(report: dict) -> None:
    print(f"{report['images']} images, {len(report['unreadable'])} unreadable")
    for key in ("kinds", "skipped"):
        print(f"{key}: {counted(report[key]) or 'none'}")
    print("megapixels:", ", ".join(f"{key} {value:.3g}" for key, value in report["megapixels"].items()) or "unknown")
    for labelled in report.get("labels", ()):
        counts = f"{labelled['images']} images" + (
            f", {labelled['annotations']} annotations" if labelled["annotations"] else ""
        )
        print(printable(f"{labelled['name']}: {counts}, classes: {', '.join(labelled['classes'] or ['unknown'])}"))
        for finding in labelled["findings"]:
            print(printable(f"  {finding['level']}: {Finding(**finding)}"))
    if "dark" in report:
        print(dark_text(report["dark"]["images"], report["dark"]["highest"]))
    _print_findings("unreadable", [file["reason"] for file in report["unreadable"]])
    _print_findings(f"with a side below {SMALL} pixels", report["small"])
    _print_findings("sets of equal files", [", ".join(paths) for paths in report.get("duplicates", [])])
    for key, names in report.get("manifest", {}).items():
        _print_findings(f"{key} by the manifest", names)


def _print_findings(title: str, found: list[str]) -> None:
    """Print the first findings."""
    if found:
        print(f"{len(found)} {title}:")
    for text in found[:EXAMPLES]:
        print(" ", printable(text))
    if len(found) > EXAMPLES:
        print("  ...")


if __name__ == "__main__":
    sys.exit(main())

"""A hundred million images: what an index and the order of images cost. Needs 4 GB of disk for a moment."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.harness import Options, Row
from densesiam_d2.data.image_index import KIND

__all__ = ["of_count", "run"]

# Run in a process of its own, whose heap holds nothing else.
_CHILD = """
import json, sys, time, tracemalloc
import numpy as np
from densesiam_d2.data.image_index import ImageFiles
from densesiam_d2.data.order import EndlessBatches
tracemalloc.start()
begin = time.perf_counter()
files = ImageFiles.open(sys.argv[1])
batches = iter(EndlessBatches(len(files), 256, seed=0))
first = [files[index]["file_name"] for index, *_ in next(batches)]
start_up = time.perf_counter() - begin
heap = tracemalloc.get_traced_memory()[1]
tracemalloc.stop()
begin = time.perf_counter()
for _, batch in zip(range(40), batches):
    for index, *_ in batch:
        files[index]
record = (time.perf_counter() - begin) / 40 / 256
other = EndlessBatches(len(files), 256, seed=0, rank=3, world_size=8)
other.start = len(files) // 256 - 1
begin = time.perf_counter()
next(iter(other))
print(json.dumps({"start_up": start_up, "heap": heap, "record": record, "resume": time.perf_counter() - begin,
                  "distinct": len(set(first))}))
"""


def _write(index: Path, count: int) -> None:
    """Write the index of ``count`` images that do not exist, of names of 20 characters."""
    index.mkdir()
    block = 1 << 20
    with (index / "names.bin").open("wb") as names, (index / "ends.bin").open("wb") as ends:
        for start in range(0, count, block):
            numbers = np.arange(start, min(start + block, count))
            digits = numbers[:, None] // 10 ** np.arange(8, -1, -1) % 10 + ord("0")
            text = np.empty((len(numbers), 20), np.uint8)
            text[:] = np.frombuffer(b"000/000/000000000.j_", np.uint8)
            text[:, 0:3], text[:, 4:7], text[:, 8:17] = digits[:, :3], digits[:, 3:6], digits
            names.write(text.tobytes())
            ends.write((20 * (numbers + 1)).astype(np.int64).tobytes())
    facts = {**KIND, "images": count, "bytes": 20 * count, "tar": False, "sha256": "", "root": "."}
    (index / "index.json").write_text(json.dumps(facts))


def of_count(options: Options, count: int) -> dict[str, list[float]]:
    """Return "heap" (bytes), "start_up", "resume" and "record" (seconds) of an index of ``count`` images."""
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder) / "many.index"
        _write(index, count)
        found = []
        for _ in range(min(options.repeats, 5)):
            child = subprocess.run([sys.executable, "-c", _CHILD, str(index)], capture_output=True, check=True)
            found.append(json.loads(child.stdout))
    assert all(entry["distinct"] == min(256, count) for entry in found)
    return {key: [entry[key] for entry in found] for key in ("heap", "start_up", "resume", "record")}


def run(options: Options) -> Iterator[list[Row]]:
    """Measure the index, beside that of 1,000 images."""
    count, less = options.size(100_000_000, 10_000), {"higher_is_better": False}
    few, many = of_count(options, 1000), of_count(options, count)
    start_up = [a / b for a, b in zip(many["start_up"], few["start_up"], strict=True)]
    name = f"{count:,} images"
    yield [
        Row.of(name, "heap, bytes per image", [x / count for x in many["heap"]], goal=1, **less),
        Row.of(name, "seconds to the first batch's names", many["start_up"], **less),
        Row.of(name, "seconds to the first batch's names / those of 1,000 images", start_up, goal=2, **less),
        Row.of(name, "seconds to resume at an epoch's end, rank 3 of 8", many["resume"], **less),
        Row.of(name, "microseconds for order and name of an image", [1e6 * x for x in many["record"]], **less),
    ]

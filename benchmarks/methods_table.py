"""``python -m benchmarks.methods_table RESULTS.json DOCUMENT.md``: write the methods' steps into a document.

The table replaces what stands between the lines ``<!-- begin methods -->`` and ``<!-- end methods -->``.
"""

import json
import sys
from pathlib import Path

from densesiam_d2.grid import insert_table
from densesiam_d2.modeling.meta_arch import METHODS

__all__ = ["markdown"]

OUTPUTS = {method.__name__: method.output for method in METHODS}
HEADER = (
    "| method | s per pair | its backbone | lightly | ours / lightly | time above the FLOPs' share | FLOPs / backbone "
    "| MiB per pair | its backbone | lightly |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n"
)


def markdown(records: list[dict]) -> str:
    """Return a table with a line for each "... step R<depth>" of the records of ``python -m benchmarks methods``."""
    steps: dict[str, dict] = {}
    for record in records:
        if " step R" in record["name"]:
            steps.setdefault(record["name"], {})[record["peer"]] = record
    lines = [_line(name, rows) for name, rows in sorted(steps.items(), key=lambda item: _order(item[0]))]
    return HEADER + "".join(lines)


def _order(name: str) -> tuple:
    """Order pretraining by depth and name; segmentation comes last."""
    method, depth = name.split(" step ")
    return OUTPUTS[method] != "features", depth, method


def _line(name: str, rows: dict[str, dict]) -> str:
    def median(peer: str, digits: str = ".2f") -> str:
        return f"{rows[peer]['median']:{digits}}" if peer in rows else ""

    def spread(peer: str) -> str:
        return f"{median(peer)} ({rows[peer]['min']:.2f} to {rows[peer]['max']:.2f})"

    cells = [
        name.replace(" step", ","),
        *(median(f"{what}, seconds per pair") for what in ("ours", "backbone", "lightly")),
        spread("ours / lightly") if "ours / lightly" in rows else "",
        spread("ours / backbone, FLOPs of the heads counted in"),
        median("FLOPs, ours / backbone"),
        *(median(f"{what}, peak MiB per pair", ".0f") for what in ("ours", "backbone", "lightly")),
    ]
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    results, document = map(Path, sys.argv[1:])
    document.write_text(insert_table(document.read_text(), "methods", markdown(json.loads(results.read_text()))))

"""``python -m benchmarks.methods_table RESULTS.json ...``: write the methods' steps into docs/.

Of a step that is in several files, the last file counts.

Tables replace what stands between the lines ``<!-- begin methods -->`` and ``<!-- end methods -->`` of performance.md
and between ``<!-- begin steps -->`` and ``<!-- end steps -->`` of methods.md.
"""

import argparse
import json
from pathlib import Path

from densesiam_d2.grid import insert_table
from densesiam_d2.modeling.meta_arch import METHODS

__all__ = ["beside_simsiam", "markdown"]

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


def beside_simsiam(records: list[dict]) -> str:
    """Return a table of the pretraining methods' steps with ResNet-18 beside SimSiam's, the quickest first.

    Args:
        records: of ``python -m benchmarks methods``; methods without records are named below the table.
    """
    medians = {(record["name"], record["peer"]): record["median"] for record in records}

    def of(method: str, unit: str) -> float | None:
        return medians.get((f"{method} step R18", f"ours, {unit} per pair"))

    def cells(method: str, unit: str, digits: str) -> list[str]:
        own, simsiam = of(method, unit), of("SimSiam", unit)
        return [f"{own:{digits}}", f"{own / simsiam:.2f}" if simsiam else ""]

    pretraining = [method for method, output in OUTPUTS.items() if output == "features"]
    measured = sorted((m for m in pretraining if of(m, "seconds")), key=lambda m: of(m, "seconds"))
    lines = ["| method | s per pair | times SimSiam's | MiB per pair | times SimSiam's |\n|---|---:|---:|---:|---:|\n"]
    for method in measured:
        row = [method, *cells(method, "seconds", ".2f"), *cells(method, "peak MiB", ".0f")]
        lines.append(f"| {' | '.join(row)} |\n")
    missing = sorted(set(pretraining) - set(measured))
    return "".join(lines) + (f"\nNot measured: {', '.join(missing)}.\n" if missing else "")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    help_text = "written by python -m benchmarks methods"
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULTS.json", help=help_text)
    results = [record for path in parser.parse_args().results for record in json.loads(path.read_text())]
    pages = {"performance": ("methods", markdown(results)), "methods": ("steps", beside_simsiam(results))}
    for page, (name, lines) in pages.items():
        document = Path("docs") / f"{page}.md"
        document.write_text(insert_table(document.read_text(), name, lines))

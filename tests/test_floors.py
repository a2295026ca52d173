"""Imports between the parts of the package go down only (CONTRIBUTING.md)."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "densesiam_d2"
FLOORS = {
    0: {"atomic", "geometry", "image_io", "losses", "layers", "labels", "samples", "processes", "rules", "text_lines"}
    | {"yaml_keys"},
    1: {"data", "modeling", "solver", "evaluation", "checkpoint"},
    2: {"config", "config_checks", "config_rules", "engine", "grid", "probe", "reporting"},
    3: {"tools", "demo", "__init__"},
}
FLOOR = {part: floor for floor, parts in FLOORS.items() for part in parts}
# Parts of one floor that may import each other: below, where losses stand on layers, and above, where nothing ends.
FREE = {0, 2, 3}
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path, text: str) -> set[str]:
    """Return the modules that the text of a file imports, with absolute names."""
    names = set()
    package = ["densesiam_d2", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{module}.{alias.name}" for alias in node.names} if module == "densesiam_d2" else {module}
    return names


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("import densesiam_d2.tools.grid", {"densesiam_d2.tools.grid"}),
        ("from densesiam_d2.tools import grid", {"densesiam_d2.tools"}),
        ("from densesiam_d2 import tools, data", {"densesiam_d2.tools", "densesiam_d2.data"}),
        ("from .. import tools", {"densesiam_d2.tools"}),
        ("from ..tools import grid", {"densesiam_d2.tools"}),
        ("from .mlp import conv_mlp", {"densesiam_d2.layers.mlp"}),
    ],
)
def test_imports_are_found_in_every_form(line, expected):
    assert imports(PACKAGE / "layers" / "anything.py", line) == expected


def test_every_part_has_a_floor():
    assert {part_of(path) for path in FILES} == set(FLOOR)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path):
    part = part_of(path)
    for name in imports(path, path.read_text()):
        first, *rest = name.split(".")
        if FLOOR[part] == 0:
            assert first not in ("detectron2", "fvcore"), f"{name}: the ground floor needs torch and numpy only"
        if first != "densesiam_d2" or not rest or rest[0] == part:
            continue
        assert FLOOR[rest[0]] < FLOOR[part] or (FLOOR[rest[0]] == FLOOR[part] in FREE), f"{part} imports {name}"

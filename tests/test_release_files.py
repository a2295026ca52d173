"""The files that a release must change agree on its version."""

import re
from pathlib import Path

import yaml

import densesiam_d2

ROOT = Path(__file__).parents[1]


def test_one_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    setup = re.search(r'version="([^"]+)"', (ROOT / "setup.py").read_text())[1]
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1]
    assert citation["version"] == setup == newest == densesiam_d2.__version__

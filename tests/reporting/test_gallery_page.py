"""The gallery's page: its content, and in a real browser where Chromium is installed."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from densesiam_d2.reporting.gallery import Gallery
from densesiam_d2.reporting.gallery_page import write_gallery
from densesiam_d2.reporting.label_colors import palette

SHA = "ab" * 32


@pytest.fixture
def gallery():
    """Cluster 2 has 3/4 of the pixels, cluster 0 the others, cluster 1 none."""
    labels = np.full((40, 40), 2, np.uint8)
    labels[:20, :20] = 0
    shared = np.zeros((3, 3))
    shared[2] = [1, 0, 3]
    gallery = Gallery(3)
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    gallery.add(Path('town/"a" <b>.jpg'), image, labels, np.full((40, 40), 0.5, np.float32), shared)
    return gallery


def write(gallery, path, names=(None, None, None), sha256=SHA):
    write_gallery(path, gallery, names, palette(3), source="town <1>", checkpoint="model.pth", sha256=sha256)
    return path.read_text(encoding="utf-8")


def test_each_cluster_that_occurs_has_its_facts(gallery, tmp_path):
    text = write(gallery, tmp_path / "gallery.html")
    assert re.findall(r'<section id="c(\d)"', text) == ["2", "0"]  # the largest first
    assert "75.00 % of all pixels, in 1 of 1 images" in text
    assert "1 images; 2 of 3 clusters occur. Without a pixel: 1." in text
    assert f"background:rgb({','.join(map(str, palette(3)[2]))})" in text
    assert re.search(r'href="#c0" data-near="0">.*?<span>0</span> \(25 %\)', text)
    assert text.count("<input class=") == 2
    assert text.count("data:image/jpeg;base64,") == 2


def test_the_page_needs_no_other_file_and_names_are_escaped(gallery, tmp_path):
    text = write(gallery, tmp_path / "gallery.html", names=("</script><b>", None, 'a"b'))
    assert not re.search(r'(src|href)="(?!data:|#)', text) and "<link" not in text
    assert "://" not in text and "@import" not in text
    assert "</script><b>" not in text and "<b>.jpg" not in text and "town <1>" not in text
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])
    assert data == {"sha256": SHA, "checkpoint": "model.pth", "names": ["</script><b>", None, 'a"b']}


def test_classes_get_no_fields(gallery, tmp_path):
    text = write(gallery, tmp_path / "gallery.html", names=("sky", "car", "road"), sha256=None)
    assert "<input" not in text and "<script" not in text
    assert "road</h2>" in text and "<h1>Classes of town &lt;1&gt;</h1>" in text


def test_in_a_browser(gallery, tmp_path):
    """The script runs, counts the unnamed clusters, and lists the names that were typed before."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium is installed")
    write(gallery, tmp_path / "gallery.html", names=("Straße", None, None))
    words = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    page = subprocess.run(
        [browser, *words, (tmp_path / "gallery.html").as_uri()], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    assert "1 of 2 clusters are unnamed" in page
    assert "Straße (1)</span>" in page
    assert '<option value="ignore"></option><option value="Straße"></option>' in page

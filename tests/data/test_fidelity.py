"""Fast, but the same augmentation: views have the distribution of torchvision's recipe on PIL images."""

import pytest

from benchmarks.data import fidelity
from benchmarks.harness import Options

from .photos import find_photos


@pytest.mark.parametrize(
    ("kind", "words"), [("bundled", ()), ("real", ()), ("bundled", ("INPUT.SSL.COLOR_ON_DEVICE", True))]
)
def test_distribution_is_that_of_torchvision_on_pil(kind, words):
    images = None if kind == "bundled" else find_photos(1)[0].parent.parent
    rows = fidelity(Options(images=images), 4, *words)
    assert {row.name for row in rows if row.passes() is False} == set(), rows
    assert len(rows) == 4


def test_it_notices_another_distribution(monkeypatch):
    """A resize that does not smooth before it shrinks: the mistake that such a test exists for."""
    import cv2

    from densesiam_d2.data.augmentation import AntialiasedResizeTransform

    def aliased(self, img, interp=None):
        x0, y0 = getattr(self, "x0", 0), getattr(self, "y0", 0)
        return cv2.resize(img[y0 : y0 + self.h, x0 : x0 + self.w], (self.new_w, self.new_h))

    for kind in (AntialiasedResizeTransform, *AntialiasedResizeTransform.__subclasses__()):
        monkeypatch.setattr(kind, "apply_image", aliased)
    rows = {row.name: row for row in fidelity(Options(), rounds=2)}
    assert not rows["gradient energy of crops, deviation"].passes()

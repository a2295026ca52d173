import base64
import re
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from densesiam_d2.reporting.page import Section, compare, write_report


class References(HTMLParser):
    """Collects every address that a page could load, and the text of its cells."""

    def __init__(self):
        super().__init__()
        self.addresses, self.open = [], []

    def handle_starttag(self, tag, attrs):
        self.addresses += [value for key, value in attrs if key in ("src", "href", "srcset", "data", "action")]
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag  # well-formed


def test_report_is_one_file_and_holds_what_was_given(tmp_path):
    image = np.zeros((10, 20, 3), np.uint8)
    image[:, :10, 0] = 255  # red on the left
    section = Section("Numbers & pictures")
    section.text("1 < 2").command("python -m x 'a b'").verdict("It works.")
    section.table(["method", "mIoU", "images"], [["ours", 12.345, 7], ["none", float("nan"), None]])
    section.figure(image, "two halves", photo=False).figure(image, "again")
    section.panels([(image, "small")]).headline("Less").warning("Not <good>.")
    section.table(["", ""], [["a", "b"]], words=True, folded="more")
    path = write_report(tmp_path / "new" / "report.html", "A <title>", ["Hello."], [section])

    text = path.read_text()
    references = References()
    references.feed(text)
    assert references.open == []
    anchor, *images = references.addresses
    assert anchor == "#numbers-pictures" and 'id="numbers-pictures"' in text
    assert len(images) == 3 and all(address.startswith("data:image/") for address in images)
    assert "http:" not in text and "https:" not in text and "@import" not in text and "url(" not in text
    for expected in (
        "A &lt;title&gt;",
        "Hello.",
        "Numbers &amp; pictures",
        "1 &lt; 2",
        "It works.",
        "two halves",
        "small",
        "Not &lt;good&gt;.",
    ):
        assert expected in text
    cells = re.findall(r"<td>(.*?)</td>", text)
    assert cells == ["ours", "12.3", "7", "none", "n/a", "n/a", "a", "b"]

    png, jpeg, _ = (base64.b64decode(a.partition(",")[2]) for a in images)
    decoded = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    np.testing.assert_array_equal(decoded, image)
    assert jpeg[:2] == b"\xff\xd8"


def test_ragged_table_is_refused():
    with pytest.raises(ValueError, match="has 1 cells, the header"):
        Section("x").table(["a", "b"], [["only one"]])


@pytest.mark.parametrize(
    ("ours", "other", "expected"),
    [
        (12.0, 8.0, "ours: 12.0 AP; beats scratch (8.0) by 4.0."),
        (8.0, 12.0, "ours: 8.0 AP; does not beat scratch (12.0): 4.0 below it."),
        (8.5, 8.0, "ours: 8.5 AP; does not beat scratch (8.0): no clear difference."),
        (8.0, 8.5, "ours: 8.0 AP; does not beat scratch (8.5): no clear difference."),
        (8.0, float("nan"), "ours: 8.0 AP; scratch has none, nothing was predicted."),
        (8.0, None, "ours: 8.0 AP; scratch has none, nothing was predicted."),
        (None, 8.0, "ours has no AP: nothing was predicted."),
        (float("nan"), 8.0, "ours has no AP: nothing was predicted."),
    ],
)
def test_verdict_follows_the_numbers(ours, other, expected):
    assert compare("AP", ("ours", ours), [("scratch", other)]) == expected

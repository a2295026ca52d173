"""Write a report as one HTML file that contains its text, tables and pictures and needs no other file."""

import base64
import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from densesiam_d2.atomic import atomic_write

__all__ = ["Section", "compare", "write_report"]

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1c1e21; background: #fff; max-width: 1060px; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.7rem; margin-bottom: .3rem; }
h2 { font-size: 1.25rem; margin-top: 2.6rem; padding-top: .8rem; border-top: 1px solid #d8dce0; }
h1, h2, h3 { overflow-wrap: anywhere; }
p { max-width: 46rem; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem; text-align: right; border-bottom: 1px solid #e4e7ea; }
th { font-weight: 600; border-bottom: 2px solid #aab2ba; }
th:first-child, td:first-child { text-align: left; }
pre { background: #f4f6f8; border-radius: 6px; padding: .6rem .8rem; font-size: .82rem;
  white-space: pre-wrap; overflow-wrap: anywhere; }
figure { margin: 1.2rem 0; }
figure img { max-width: 100%; height: auto; display: block; }
figcaption { font-size: .88rem; color: #56606b; margin-top: .4rem; max-width: 46rem; }
.verdict { background: #f4f6f8; border-left: 4px solid #4a78b5; padding: .6rem .9rem; }
.warning { background: #fdf0ef; border-left: 4px solid #c0392b; padding: .6rem .9rem; }
.overflow { overflow-x: auto; }
.overflow td { overflow-wrap: anywhere; min-width: 5rem; }
.words td, .words th { text-align: left; vertical-align: top; }
.words td:first-child { overflow-wrap: normal; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 0 1.4rem; }
.panels figure { margin: .6rem 0; }
details { margin: 1rem 0; }
summary { cursor: pointer; }
nav { margin: 1.2rem 0; }
nav a { margin-right: 1.1rem; white-space: nowrap; color: #2f5f9e; }
"""


@dataclass
class Section:
    """A headline, and the text, tables and pictures below it. Each method adds one part to the end.

    Attributes:
        title: the headline.
    """

    title: str

    def __post_init__(self):
        self._parts: list[str] = []

    def text(self, text: str) -> "Section":
        """Add a paragraph of plain text."""
        return self._add(f"<p>{html.escape(text)}</p>")

    def headline(self, text: str) -> "Section":
        """Add a smaller headline."""
        return self._add(f"<h3>{html.escape(text)}</h3>")

    def verdict(self, text: str) -> "Section":
        """Add a highlighted paragraph, for the conclusion from the numbers."""
        return self._add(f'<p class="verdict">{html.escape(text)}</p>')

    def warning(self, text: str) -> "Section":
        """Add a highlighted paragraph about trouble."""
        return self._add(f'<p class="warning">{html.escape(text)}</p>')

    def command(self, command: str) -> "Section":
        """Add a command line."""
        return self._add(f"<pre>$ {html.escape(command)}</pre>")

    def links(self, addresses: Mapping[str, str]) -> "Section":
        """Add links in one line: text -> address."""
        links = [f'<a href="{html.escape(a, quote=True)}">{html.escape(t)}</a>' for t, a in addresses.items()]
        return self._add(f"<nav>{' '.join(links)}</nav>")

    def table(
        self, header: Sequence[str], rows: Sequence[Sequence[str | float]], *, words: bool = False, folded: str = ""
    ) -> "Section":
        """Add a table; numbers get one decimal, None and nan become n/a.

        Args:
            header: names of the columns; all "" for a table without a header.
            rows: the cells.
            words: whether the cells hold words, which are set to the left, or numbers.
            folded: if not empty, the table is hidden below this text, until a reader opens it.

        Raises:
            ValueError: a row and the header have different numbers of cells.
        """
        for row in rows:
            if len(row) != len(header):
                raise ValueError(f"row {list(row)} has {len(row)} cells, the header {list(header)} has {len(header)}")
        lines = ["".join(f"<th>{html.escape(str(cell))}</th>" for cell in header)] if any(header) else []
        lines += ["".join(f"<td>{html.escape(_format(cell))}</td>" for cell in row) for row in rows]
        body = "\n".join(f"<tr>{line}</tr>" for line in lines)
        table = f'<div class="overflow{" words" if words else ""}"><table>\n{body}\n</table></div>'
        return self._add(f"<details><summary>{html.escape(folded)}</summary>{table}</details>" if folded else table)

    def figure(self, image: np.ndarray, caption: str, *, photo: bool = True) -> "Section":
        """Add a picture.

        Args:
            image: (H, W, 3) uint8 RGB.
            caption: text that says what the picture shows.
            photo: True stores it as JPEG, False as PNG, which is better for lines and text.
        """
        return self._add(_figure(image, caption, photo=photo))

    def panels(self, pictures: Sequence[tuple[np.ndarray, str]]) -> "Section":
        """Add small pictures of lines and text, each with its caption, in as many columns as the window has room for.

        Args:
            pictures: (H, W, 3) uint8 RGB, and the caption.
        """
        figures = "\n".join(_figure(image, caption, photo=False) for image, caption in pictures)
        return self._add(f'<div class="panels">{figures}</div>')

    def _add(self, part: str) -> "Section":
        self._parts.append(part)
        return self

    def to_html(self) -> str:
        """Return the section as HTML."""
        head = f'<section id="{self.anchor}"><h2>{html.escape(self.title)}</h2>'
        return "\n".join([head, *self._parts, "</section>"])

    @property
    def anchor(self) -> str:
        """The part of an address that leads to this section."""
        return re.sub(r"\W+", "-", self.title.lower())


def _figure(image: np.ndarray, caption: str, *, photo: bool) -> str:
    suffix, options = (".jpg", [cv2.IMWRITE_JPEG_QUALITY, 88]) if photo else (".png", [])
    _, data = cv2.imencode(suffix, np.ascontiguousarray(image[..., ::-1]), options)
    kind = "jpeg" if photo else "png"
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    alt = html.escape(caption, quote=True)
    return f'<figure><img src="{source}" alt="{alt}"><figcaption>{html.escape(caption)}</figcaption></figure>'


def _format(cell: str | float | None) -> str:
    if cell is None or cell != cell:  # only nan differs from itself
        return "n/a"
    return f"{cell:.1f}" if isinstance(cell, float) else str(cell)


def compare(score: str, ours: tuple[str, float], others: Sequence[tuple[str, float]]) -> str:
    """Return a sentence that compares a score with others; differences below 1 are called "no clear difference".

    Args:
        score: name of the score, such as "mIoU".
        ours: name and value.
        others: names and values to compare with.

    Returns:
        A sentence such as "pretrained: 12.3 mask AP; beats random weights (8.2) by 4.1."
    """
    name, value = ours
    if value is None or value != value:
        return f"{name} has no {score}: nothing was predicted."
    parts = []
    for other_name, other in others:
        if other is None or other != other:
            parts.append(f"{other_name} has none, nothing was predicted")
        elif value >= other + 1:
            parts.append(f"beats {other_name} ({other:.1f}) by {value - other:.1f}")
        elif value > other - 1:
            parts.append(f"does not beat {other_name} ({other:.1f}): no clear difference")
        else:
            parts.append(f"does not beat {other_name} ({other:.1f}): {other - value:.1f} below it")
    return f"{name}: {value:.1f} {score}; {'; '.join(parts)}."


def write_report(path: Path, title: str, introduction: Sequence[str], sections: Sequence[Section]) -> Path:
    """Write a report as one self-contained HTML file.

    Args:
        path: the file to write; its folder is created if it does not exist.
        title: title of the page.
        introduction: paragraphs before the first section.
        sections: the sections, in this order.

    Returns:
        The path.
    """
    paragraphs = "\n".join(f"<p>{html.escape(text)}</p>" for text in introduction)
    links = "\n".join(f'<a href="#{section.anchor}">{html.escape(section.title)}</a>' for section in sections)
    body = "\n".join(section.to_html() for section in sections)
    text = (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{_STYLE}</style></head>\n'
        f"<body><h1>{html.escape(title)}</h1>\n{paragraphs}\n<nav>{links}</nav>\n{body}\n</body></html>\n"
    )
    with atomic_write(path, many_writers=True) as file:
        file.write(text.encode(errors="replace"))
    return path

"""Write the gallery of clusters as one HTML file in which a person types the names of the clusters."""

import html
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from densesiam_d2.atomic import atomic_write
from densesiam_d2.reporting.gallery import Gallery
from densesiam_d2.reporting.gallery_script import SCRIPT, STYLE

__all__ = ["write_gallery"]

_ABOUT = (
    "The pictures show the most typical connected regions of each {one}, outlined in red, from different images: those "
    "with the largest mean certainty (the highest softmax probability of each pixel) times the square root of the "
    "region's share of its image. Of nearly equal pictures only the best is shown. “Near” are the other {many} "
    "with the highest mean softmax probability on the pixels of this one."
)
_HELP = (
    "Type a name for each cluster. Several clusters may share a name. The name <b>ignore</b> leaves a cluster out; "
    "clusters without a name are left out as well. <kbd>Enter</kbd> goes to the next field, <kbd>Shift</kbd> + "
    "<kbd>Enter</kbd> back, <kbd>Ctrl</kbd> + <kbd>S</kbd> saves <code>names.json</code>."
)
_CONTROLS = """<div class="bar">
<span id="count" role="status" aria-live="polite"></span>
<span class="buttons"><button id="next" type="button">Next unnamed</button>
<button id="save" type="button" class="main">Save names</button>
<label class="button" tabindex="0">Load names<input id="load" type="file" accept=".json,application/json"></label>
</span><span id="message" role="alert"></span><span id="summary"></span></div>
<datalist id="known"></datalist>"""


def write_gallery(
    path: Path,
    gallery: Gallery,
    names: Sequence[str | None],
    colors: np.ndarray,
    *,
    source: str,
    checkpoint: str = "",
    sha256: str | None = None,
) -> None:
    """Write the page; it holds its pictures, style and script, and needs no other file and no network.

    Args:
        path: the file to write.
        gallery: what was collected.
        names: of the K ids: the classes of a supervised model, or what is typed in for each cluster (None for nothing).
        colors: (K, 3) uint8 RGB.
        source: the images, in words.
        checkpoint: name of the checkpoint file.
        sha256: of the checkpoint, which ``names.json`` then holds; None for classes, which get no fields.
    """
    editable = sha256 is not None
    order = [int(i) for i in np.argsort(-gallery.shares, kind="stable") if gallery.pixels[i]]
    one, many = ("cluster", "clusters") if editable else ("class", "classes")
    unused = [str(i) for i in range(len(names)) if not gallery.pixels[i]]
    title = f"{many.capitalize()} of {source}"
    facts = f"{gallery.num_images} images; {len(order)} of {len(names)} {many} occur."
    if unused:
        facts += f" Without a pixel: {', '.join(unused)}."
    data = {"sha256": sha256, "checkpoint": checkpoint, "names": list(names)}
    parts = [
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style></head>\n<body>",
        f"<header><h1>{html.escape(title)}</h1><p>{html.escape(facts)}</p>",
        f"<p>{_HELP}</p>" if editable else "",
        "<details><summary>What the pictures and numbers are</summary>",
        f"<p>{html.escape(_ABOUT.format(one=one, many=many))}</p></details></header>",
        _CONTROLS if editable else "",
        "<main>",
        *(_card(gallery, i, names, colors, editable) for i in order),
        "</main>",
        # "<" is written as an escape, so that no name can end the script element.
        f'<script type="application/json" id="data">{json.dumps(data).replace("<", chr(92) + "u003c")}</script>'
        f"\n<script>{SCRIPT}</script>"
        if editable
        else "",
        "</body></html>\n",
    ]
    with atomic_write(path) as file:
        file.writelines(f"{part}\n".encode(errors="replace") for part in parts)


def _card(gallery: Gallery, i: int, names: Sequence[str | None], colors: np.ndarray, editable: bool) -> str:
    """Return one cluster or class as HTML."""

    def swatch(j: int) -> str:
        return f'<i style="background:rgb({",".join(map(str, colors[j].tolist()))})"></i>'

    title = f"Cluster {i}" if editable else html.escape(names[i])
    field = (
        f'<input class="name" data-cluster="{i}" list="known" placeholder="name" aria-label="Name of cluster {i}" '
        f'value="{html.escape(names[i] or "", quote=True)}" autocomplete="off" spellcheck="false">'
        if editable
        else ""
    )
    near = " ".join(
        f'<a href="#c{j}" data-near="{j}">{swatch(j)}<span>{j if editable else html.escape(names[j])}</span> '
        f"({100 * probability:.0f} %)</a>"
        for j, probability in gallery.nearest(i)
    )
    pictures = "".join(
        f'<img src="{example.data_uri}" alt="{html.escape(example.image, quote=True)}" '
        f'title="{html.escape(example.image, quote=True)}" decoding="async">'
        for example in reversed(gallery.examples[i])
    )
    return (
        f'<section id="c{i}"><div class="facts"><h2>{swatch(i)}{title}</h2>{field}'
        f"<p>{100 * gallery.shares[i]:.2f} % of all pixels, in {gallery.images[i]} of {gallery.num_images} images</p>"
        f'<p class="near">{"Near: " + near if near else ""}</p></div><div class="pictures">{pictures}</div></section>'
    )

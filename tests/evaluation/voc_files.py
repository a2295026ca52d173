"""Small annotation files in Pascal VOC's layout."""


def voc_xml(*objects: tuple[str, tuple[float, ...]], size=(96, 64), tags: str = "") -> str:
    """Return XML with objects of a name and a box (xmin, ymin, xmax, ymax); ``tags`` stand in each object."""
    text = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
    for name, box in objects:
        corners = "".join(f"<{c}>{v}</{c}>" for c, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
        text += f"<object><name>{name}</name>{tags}<bndbox>{corners}</bndbox></object>"
    return f"<annotation>{text}</annotation>"

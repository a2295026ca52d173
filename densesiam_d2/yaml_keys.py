"""Read yaml, and refuse a key that occurs twice, of which yaml.safe_load silently keeps the last."""

from typing import IO

import yaml

__all__ = ["load_yaml"]


def load_yaml(source: str | bytes | IO) -> object:
    """Return the content of a yaml, as ``yaml.safe_load`` does.

    Args:
        source: a text, or an open file.

    Raises:
        yaml.YAMLError: it is no yaml, or a key occurs twice in one mapping; the message names key and lines.
    """
    loader = _Loader(source)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node, lines = super().compose_mapping_node(anchor), {}
        for key, _ in node.value:  # before the keys of "<<" are added, which may repeat
            name, line = (key.tag, str(key.value)), key.start_mark.line + 1
            if name in lines:
                raise yaml.YAMLError(f"the key {key.value} occurs twice, in lines {lines[name]} and {line}")
            lines[name] = line
        return node

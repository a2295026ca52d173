"""Fill in the placeholders of a grid's commands."""

import difflib
import os
import re
from collections.abc import Iterable, Mapping

from densesiam_d2.grid.cells import Cell

__all__ = ["Folders", "Value", "Words", "expand", "near"]

Value = str | int | float
Words = Mapping[str, str | list]


class Folders:
    """The folders of earlier cells, by stage; it notes which ones a command has asked for."""

    def __init__(self, earlier: Mapping[str, list[Cell]], axes: Mapping[str, Value]):
        self._earlier, self._axes, self.used = earlier, axes, []

    def __format__(self, spec: str) -> str:
        raise ValueError("{folder_of} stands without a stage: write {folder_of[STAGE]}")

    def __getitem__(self, stage: str | int) -> str:
        stage = str(stage)  # digits come as int
        if stage not in self._earlier:
            raise ValueError(f"{{folder_of[{stage}]}}: no earlier stage of this name{near(stage, self._earlier)}")
        fitting = [c for c in self._earlier[stage] if all(self._axes.get(a) == v for a, v in c.axes.items())]
        if not fitting:
            raise ValueError(f"{{folder_of[{stage}]}}: this stage has no cell with the same axes; is it skipped?")
        if fitting[0].name not in self.used:
            self.used.append(fitting[0].name)
        return str(fitting[0].folder)


def expand(word: str, given: Mapping, words: Words, above: tuple[str, ...] = ()) -> list[str]:
    """Return the words that one word of a template stands for.

    Args:
        word: the template.
        given: placeholder -> what it stands for.
        words: placeholder -> another template, or a list of them.
        above: the placeholders that this template is the text of.
    """

    class Texts(dict):
        def __missing__(self, name):
            return _text(name, given, words, above)

    alone = re.fullmatch(r"\{(\w+)\}", word)
    if alone and isinstance(words.get(alone[1]), list):
        _check_loop(alone[1], above)
        texts = [_with_environment(alone[1], part) for part in words[alone[1]]]
        return [w for text in texts for w in expand(text, given, words, (*above, alone[1]))]
    try:
        return [word.format_map(Texts(given))]
    except (IndexError, AttributeError, TypeError, KeyError) as error:
        raise ValueError(f"{word!r}: {error} (braces that are no placeholder are written twice)") from None


def _text(name: str, given: Mapping, words: Words, above: tuple[str, ...]) -> str:
    """Return the text of a placeholder that is another template."""
    if name not in words:
        raise ValueError(f"there is no placeholder {{{name}}}{near(name, [*given, *words])}")
    _check_loop(name, above)
    if isinstance(words[name], list):
        raise ValueError(f"{{{name}}} is a list of words, so it must stand alone, with spaces around it")
    return " ".join(expand(_with_environment(name, words[name]), given, words, (*above, name)))


def _with_environment(name: str, word: object) -> str:
    """Return one of the words as text, with the values of its environment variables."""
    if word is None:
        raise ValueError(f"{{{name}}} has no value: give --set {name}=...")
    if isinstance(word, Mapping):
        raise ValueError(f'{{{name}}} is {word!r}, which is no text: put it in quotes, such as {name}: "{{seed}}"')
    text = os.path.expandvars(str(word))
    if unset := re.search(r"\$\{?(\w+)", text):
        raise ValueError(f"{{{name}}} is the environment variable {unset[1]}, which is not set: give --set {name}=...")
    return text


def _check_loop(name: str, above: tuple[str, ...]) -> None:
    if name in above:
        raise ValueError(f"{{{name}}} stands for itself")


def near(name: object, known: Iterable) -> str:
    """Return the nearest known name, or all of them, as the end of a message about an unknown name."""
    found = difflib.get_close_matches(str(name), [str(k) for k in known], n=1)
    return f"; did you mean {found[0]}?" if found else f"; there are {', '.join(map(str, known))}" if known else ""

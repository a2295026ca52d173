"""Read a grid from a yaml and make its cells. ``configs/grids/methods.yaml`` is an example with comments."""

import itertools
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path

import yaml

from densesiam_d2.grid.cells import Cell, Score, check_folder_name
from densesiam_d2.grid.placeholders import Folders, Value, Words, expand, near
from densesiam_d2.yaml_keys import load_yaml

__all__ = ["Grid", "Stage"]

# Words that only a shell understands, but no shell runs a command: "|", "&&", "2>&1", ">log.txt", "$HOME/x".
_SHELL = re.compile(r"[|&;<>]+|\d?>\S*|\$\{?\w\S*")


@dataclass(frozen=True)
class Stage:
    """A command with placeholders, which is run once for each combination of some axes' values.

    Attributes:
        name: name of the stage.
        command: the command line with placeholders: {axis}, {word} of the grid's words, {folder} of the cell, and
            {folder_of[STAGE]} of the cell of an earlier stage with the same axes, which must then be done before. No
            shell runs it: for pipes and the like write sh -c '...'.
        over: names of the axes.
        skip: axis -> values for which the stage has no cells.
        scores: the numbers to read.
    """

    name: str
    command: str
    over: list[str]
    skip: Mapping[str, list[Value]] = field(default_factory=dict)
    scores: tuple[Score, ...] = ()


@dataclass(frozen=True)
class Grid:
    """Axes, and the stages that run over them.

    Attributes:
        axes: name -> values.
        stages: in the order in which they run.
        words: placeholder -> text, or a list of words where the placeholder stands alone. Both may hold placeholders.
        values: axis -> value -> words that hold for this value only, over those of the grid.
    """

    axes: Mapping[str, list[Value]]
    stages: list[Stage]
    words: Words = field(default_factory=dict)
    values: Mapping[str, Mapping[Value, Words]] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path, settings: Iterable[str] = ()) -> "Grid":
        """Read a yaml with the keys of this class.

        ``$NAME`` in one of ``words`` is an environment variable. A stage is written as name -> its other attributes, a
        score as name -> [file, path].

        Args:
            path: the yaml.
            settings: "axis=v1,v2", which replaces the values of an axis, or "word=text", also over ``values``.

        Raises:
            ValueError: the file or a setting is wrong; the message names it.
            FileNotFoundError: there is no such file.
        """
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        try:
            content = load_yaml(path.read_bytes())
            _check_keys(content, cls, "a grid")
            grid = cls(
                axes=_mapping(content["axes"], "axes"),
                stages=[_stage(str(name), keys) for name, keys in _mapping(content["stages"], "stages").items()],
                words=_mapping(content.get("words"), "words"),
                values=_values(content.get("values")),
            )
            grid.check()
            return grid._with(settings)
        except (yaml.YAMLError, ValueError) as error:
            raise ValueError(f"{path}: {' '.join(str(error).split())}") from error

    def check(self) -> None:
        """Check the names of axes, values and stages, and that no list has a value twice, which would count double.

        Raises:
            ValueError: one cannot be; the message names it.
        """
        for axis, values in self.axes.items():
            check_folder_name(str(axis), "axes")
            if axis in {"folder", "folder_of", *self.words}:
                raise ValueError(f"axes: {axis} is the name of another placeholder: give the axis another one")
            _check_axis(axis, values)
        for stage in self.stages:
            check_folder_name(stage.name, "stages")
            _check_list(stage.over, f"stage {stage.name}: over")
            for axis, values in stage.skip.items():
                _check_list(values, f"stage {stage.name}: skip {axis}")
        named = [(f"stage {stage.name}", {**dict.fromkeys(stage.over, ()), **stage.skip}) for stage in self.stages]
        for where, axes in [("values", self.values), *named]:
            for axis, values in axes.items():
                if axis not in self.axes:
                    raise ValueError(f"{where}: there is no axis {axis}{near(axis, self.axes)}")
                for value in values:
                    if value not in self.axes[axis]:
                        alike = [known for known in self.axes[axis] if str(known) == str(value)]
                        hint = f"; write it as in axes: {alike[0]!r}" if alike else near(value, self.axes[axis])
                        raise ValueError(f"{where}: {axis} has no value {value!r}{hint}")

    def _with(self, settings: Iterable[str]) -> "Grid":
        """Return the grid with other words, and with some of the values of its axes."""
        axes, words, fixed = dict(self.axes), dict(self.words), set()
        for setting in settings:
            name, equals, text = setting.partition("=")
            if not equals or name not in {**axes, **words}:
                raise ValueError(
                    f"--set {setting}: write NAME=VALUE with one of the names {', '.join([*axes, *words])}"
                )
            if name in words:
                words[name] = text
                fixed.add(name)
                continue
            texts = {str(value): value for value in self.axes[name]}  # a setting has no quotes to tell "0" from 0
            axes[name] = [texts[value] if value in texts else yaml.safe_load(value) for value in text.split(",")]
            numbers = all(isinstance(value, int | float) for value in [*self.axes[name], *axes[name]])
            for value in axes[name]:
                if value not in self.axes[name] and not numbers:
                    raise ValueError(f"--set {setting}: {name} has no value {value}{near(value, self.axes[name])}")
            _check_axis(name, axes[name])
        values = {
            axis: {value: {n: w for n, w in own.items() if n not in fixed} for value, own in of_axis.items()}
            for axis, of_axis in self.values.items()
        }
        return Grid(axes, self.stages, words, values)

    def cells(self, root: Path) -> list[Cell]:
        """Return all cells, in the order of the stages.

        Args:
            root: the grid's folder.

        Raises:
            ValueError: a command has an unknown placeholder, or an environment variable is not set; or there are no
                cells.
        """
        found: list[Cell] = []
        for stage in self.stages:
            for values in itertools.product(*(self.axes[axis] for axis in stage.over)):
                axes = dict(zip(stage.over, values, strict=True))
                if not any(axes.get(axis) in skipped for axis, skipped in stage.skip.items()):
                    found.append(self._cell(stage, axes, root.resolve(), found))
        names = Counter(cell.name for cell in found)
        if twice := [name for name, number in names.items() if number > 1]:
            raise ValueError(f"two cells have the name {twice[0]}: give the values of its axes other names")
        if not found:
            raise ValueError("the grid has no cells: it has no stages, or they skip all values")
        return found

    def _cell(self, stage: Stage, axes: dict[str, Value], root: Path, earlier: list[Cell]) -> Cell:
        name = "/".join([stage.name, *(_folder_name(axis, value) for axis, value in axes.items())])
        folders = Folders({cell.stage: [c for c in earlier if c.stage == cell.stage] for cell in earlier}, axes)
        words = dict(self.words)
        for axis, value in axes.items():
            words.update(self.values.get(axis, {}).get(value, {}))
        given = {**axes, "folder": str(root / name), "folder_of": folders}
        try:
            template = shlex.split(stage.command, comments=True)
            if shell := next(filter(_SHELL.fullmatch, template), None):
                raise ValueError(f"{shell!r} in the command is for a shell, but none runs it: write sh -c '...'")
            command = [w for word in template for w in expand(word, given, words)]
            if not command:
                raise ValueError("its command has no words")
        except ValueError as error:
            raise ValueError(f"cell {name}: {error}") from None
        return Cell(name, stage.name, tuple(command), root, axes, tuple(folders.used), stage.scores)


def _stage(name: str, content: object) -> Stage:
    what = f"stage {name}"
    _check_keys(content, Stage, what)
    if not isinstance(content["command"], str):
        raise ValueError(f"{what}: command must be one text, such as python train_net.py, not {content['command']!r}")
    scores = []
    for score, place in _mapping(content.get("scores"), f"{what}: scores").items():
        if not (isinstance(place, list) and len(place) == 2 and all(isinstance(part, str) for part in place)):
            raise ValueError(f"{what}: score {score} must be [FILE, PATH], not {place!r}")
        scores.append(Score(str(score), *place))
    skip = _mapping(content.get("skip"), f"{what}: skip")
    return Stage(name, content["command"], content["over"], skip, tuple(scores))


def _values(content: object) -> dict[str, dict[Value, Words]]:
    found = {}
    for axis, of_axis in _mapping(content, "values").items():
        of_axis = _mapping(of_axis, f"values: {axis}")
        found[axis] = {value: _mapping(own, f"values: {axis}: {value}") for value, own in of_axis.items()}
    return found


def _check_keys(content: object, kind: type, what: str) -> None:
    """Check that a mapping has keys of a class only, and all those that have no default."""
    needed = {f.name: f.default is f.default_factory is MISSING for f in fields(kind) if f.name != "name"}
    if not isinstance(content, Mapping):
        raise ValueError(f"{what} has the keys {', '.join(needed)}")
    for key in content:
        if key not in needed:
            raise ValueError(f"{what} has no key {key}{near(key, needed)}")
    for key in needed:
        if needed[key] and key not in content:
            raise ValueError(f"{what} needs the key {key}")


def _mapping(content: object, what: str) -> Mapping:
    """Return a mapping; an empty one for a key without a value."""
    if content is not None and not isinstance(content, Mapping):
        raise ValueError(f"{what} must be lines of NAME: VALUE, not {content!r}")
    return content or {}


def _check_axis(axis: str, values: object) -> None:
    _check_list(values, f"axis {axis}")
    if not values:
        raise ValueError(f"axis {axis} has no values")
    for value in values:
        check_folder_name(str(value), f"axis {axis}")


def _check_list(values: object, what: str) -> None:
    if not isinstance(values, list):
        raise ValueError(f"{what} must be a list, such as [a, b], not {values!r}")
    for i, value in enumerate(values):
        if not isinstance(value, Value):
            raise ValueError(f"{what}: {value!r} is no text and no number; in quotes it is a text")
        if value in values[:i]:
            raise ValueError(f"{what} has {value} twice: name it once")


def _folder_name(axis: str, value: Value) -> str:
    return value if isinstance(value, str) else f"{axis}_{value}"

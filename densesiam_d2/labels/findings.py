"""Problems found in labels: counted by kind, with examples, in one message."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from densesiam_d2.text_lines import printable

__all__ = ["Finding", "Findings", "LabelsError", "Tally"]

KEPT = 1000  # examples of a finding, for the JSON report
SHOWN = 3  # of them in a message
LEVELS = ("error", "warning", "repaired")


class LabelsError(ValueError):
    """The labels cannot be used; the message lists all problems, with counts and examples."""


@dataclass
class Finding:
    """One kind of problem in one file or dataset.

    Attributes:
        level: "error" (stops a run), "warning", or "repaired" (corrected or left out).
        kind: short name, for DATASETS.ACCEPT.
        where: the file or dataset.
        text: what it is and what to do; "{n}" in it stands for the count.
        count: how many annotations, files or classes.
        examples: the first ones, each with its annotation id or file name.
    """

    level: str
    kind: str
    where: str
    text: str
    count: int = 1
    examples: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        more = "; ..." if self.count > SHOWN and self.examples else ""
        such_as = f" ({'; '.join(map(printable, self.examples[:SHOWN]))}{more})" if self.examples else ""
        return f"{self.where}: {self.text.replace('{n}', f'{self.count:,}')}{such_as} [{self.kind}]"


class Findings(list):
    """A list of :class:`Finding`."""

    def add(
        self, level: str, kind: str, where: str, text: str, *, count: int = 1, examples: Iterable[object] = ()
    ) -> None:
        """Append a finding, unless its count is 0."""
        assert level in LEVELS, level
        if count:
            self.append(Finding(level, kind, where, text, count, list(map(str, itertools.islice(examples, KEPT)))))

    def accept(self, kinds: Sequence[str]) -> "Findings":
        """Return the findings, with warnings of some kinds removed and errors of these kinds as warnings."""
        kept = Findings()
        for finding in self:
            if finding.kind not in kinds or finding.level == "repaired":  # repairs are always reported
                kept.append(finding)
            elif finding.level == "error":
                kept.append(Finding(**{**asdict(finding), "level": "warning"}))
        return kept

    def of(self, level: str) -> list[Finding]:
        """Return the findings of one level."""
        return [finding for finding in self if finding.level == level]

    def raise_errors(self) -> None:
        """Raise one exception if there is an error; its message lists the other findings too, which may explain it.

        Raises:
            LabelsError: the labels cannot be used.
        """
        if self.of("error"):
            others = [f"({finding.level}) {finding}" for finding in self if finding.level != "error"]
            lines = [*map(str, self.of("error")), *others]
            separator = "\n  " if len(lines) > 1 else " "
            raise LabelsError(separator.join(["the labels cannot be used:", *lines]))


class Tally:
    """Count problems by kind, and keep the first examples of each."""

    def __init__(self, kinds: Mapping[str, tuple[str, str]], where: str):
        """Store the kinds.

        Args:
            kinds: kind -> (level, text), as in :class:`Finding`.
            where: the file or dataset.
        """
        self._kinds, self._where = kinds, where
        self._counts, self._examples = Counter(), defaultdict(list)

    def note(self, kind: str, example: object) -> None:
        """Count one problem."""
        self._counts[kind] += 1
        if len(self._examples[kind]) < KEPT:
            self._examples[kind].append(str(example))

    def __contains__(self, kind: str) -> bool:
        return self._counts[kind] > 0

    def findings(self) -> Findings:
        """Return one finding for each kind that occurred, errors first."""
        found = Findings()
        for kind, (level, text) in self._kinds.items():
            count, examples = self._counts[kind], self._examples[kind]
            found.add(level, kind, self._where, text, count=count, examples=examples)
        return Findings(sorted(found, key=lambda finding: LEVELS.index(finding.level)))

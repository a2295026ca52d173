"""What values a config key may have: a rule is a check and the words that follow "it must be"."""

from collections.abc import Callable
from typing import Any

__all__ = [
    "NOT_NEGATIVE",
    "POSITIVE",
    "PROBABILITY",
    "PROBABILITY_PAIR",
    "SHARE_BELOW_1",
    "WIDTHS",
    "Rule",
    "all_of",
    "one_of",
]

Rule = tuple[Callable[[Any], bool], str]


def one_of(*names: str) -> Rule:
    """Return the rule that a value is one of some names."""
    return lambda v: v in names, "one of " + ", ".join(repr(name) if name == "" else name for name in names)


def all_of(check: Callable[[Any], bool], length: int | None = None) -> Callable[[Any], bool]:
    """Return a check that a list is not empty, has a length, and holds values that pass ``check`` only."""
    return lambda v: (length is None or len(v) == length) and len(v) > 0 and all(check(x) for x in v)


def _probability(v: float) -> bool:
    return 0 <= v <= 1


POSITIVE: Rule = (lambda v: v > 0, "> 0")
NOT_NEGATIVE: Rule = (lambda v: v >= 0, ">= 0")
PROBABILITY: Rule = (_probability, "in [0, 1]")
PROBABILITY_PAIR: Rule = (all_of(_probability, 2), "two numbers in [0, 1], one per view")
SHARE_BELOW_1: Rule = (lambda v: 0 <= v < 1, "in [0, 1)")
WIDTHS: Rule = (all_of(lambda v: isinstance(v, int) and v > 0), "a list of widths > 0")

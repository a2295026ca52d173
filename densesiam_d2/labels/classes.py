"""Class names of a model and of a test set."""

import unicodedata
from collections.abc import Sequence

from densesiam_d2.text_lines import listed

__all__ = ["class_order"]


def class_order(model_classes: Sequence[str], test_classes: Sequence[str]) -> list[int] | None:
    """Return, for each class of a model, its number in the test set; None if both have the same order.

    Args:
        model_classes: names in the order of the model's outputs.
        test_classes: names in the order of the test set's numbers.

    Raises:
        ValueError: the names differ, or a name occurs twice; the message says which.
    """
    model_classes, test_classes = list(model_classes), list(test_classes)
    if model_classes == test_classes:
        return None
    if sorted(model_classes) != sorted(test_classes):
        only = [[n for n in a if n not in b] for a, b in ((model_classes, test_classes), (test_classes, model_classes))]
        alike = [{unicodedata.normalize("NFKC", name).strip() for name in names} for names in only]
        if alike[0] == alike[1]:  # for a reader; spaces or forms of Unicode differ
            only = [list(map(ascii, names)) for names in only]
        raise ValueError(
            f"{len(model_classes)} classes in training, {len(test_classes)} in the test set; only in training: "
            f"{listed(only[0])}; only in the test set: {listed(only[1])}"
        )
    twice = sorted({name for name in test_classes if test_classes.count(name) > 1})
    if twice:
        raise ValueError(f"the order differs, but classes go by name, and several are called {listed(twice)}")
    return [test_classes.index(name) for name in model_classes]

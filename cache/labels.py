"""What the labels of a table or an array plainly are: class names, or numbers of classes."""

import re
from collections.abc import Sequence

from .common.errors import CacheError
from .common.text import match_names, nfc

_WHOLE = re.compile(r"[+-]?\d+(\.0*)?")


def whole_numbers(labels: Sequence[str]) -> list[int] | None:
    """Read texts such as ``3`` and ``3.0`` as integers; None if one is anything else."""
    if not all(_WHOLE.fullmatch(label) for label in labels):
        return None
    return [int(label.partition(".")[0]) for label in labels]


def outside_hint(numbers: Sequence[int], classes: int) -> str:
    """Return the end of an error about numbers outside of `classes`, which count from 0."""
    if (min(numbers), max(numbers)) == (1, classes):
        return "; the labels seem to count from 1, so subtract 1 from each"
    return ""


def name_labels(labels: Sequence[str], class_names: Sequence[str]) -> tuple[dict[str, str], str]:
    """Find the class that each label of a list means.

    Args:
        labels: The labels that occur, each once.
        class_names: The classes in order; empty for those that occur.

    Returns:
        The class by label, and what the labels were understood as; '' if they are taken as they
        are.

    Raises:
        CacheError: the labels are numbers, and one is not that of a class.
    """
    names = {label: nfc(label.strip()) for label in labels}
    numbers = whole_numbers([*names.values()])
    if not class_names:
        if numbers is None or all(name.isdecimal() for name in names.values()):
            return names, ""
        return dict(zip(labels, map(str, numbers), strict=True)), "integers"
    spelled = match_names(names.values(), class_names)
    if numbers is not None and len(spelled) < len({*names.values()}):
        classes = len(class_names)
        for label, number in zip(labels, numbers, strict=True):
            if not 0 <= number < classes:
                raise CacheError(
                    f"has the label {label!r}, which is neither one of the {classes} classes nor "
                    f"the number of one, from 0{outside_hint(numbers, classes)}"
                )
        return {
            label: class_names[number] for label, number in zip(labels, numbers, strict=True)
        }, "class numbers from 0"
    found = {label: spelled.get(name, name) for label, name in names.items()}
    differing = [f"{label!r} as {name!r}" for label, name in found.items() if nfc(label) != name]
    return found, f"class names in another spelling ({', '.join(differing)})" if differing else ""

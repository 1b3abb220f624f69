"""Texts from data: which a cache can store, how they are shown, and counts in words."""

import re
import unicodedata
from pathlib import Path

from .errors import FedclipError

# Not printable to Python, yet parts of words in Persian, Hindi and others: joiners.
_JOINERS = frozenset("\u200c\u200d")


def flaw(text: str) -> str:
    """Return why `text` cannot be stored, worded to follow the text, or '' if it can."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return "that is not UTF-8"
    return "with a NUL character, which a cache cannot store" if "\0" in text else ""


def check_utf8(path: Path | str) -> None:
    """Refuse a path that a cache or its manifest cannot store.

    Raises:
        FedclipError: the path is not UTF-8, or contains a NUL.
    """
    if flaw(str(path)):
        raise FedclipError(f"{str(path)!r}: this name is not UTF-8; rename it")


def printable(text: str) -> str:
    r"""Return `text` with everything escaped that moves or colors what is around it.

    Control characters, line breaks, marks of writing direction and lone surrogates become escapes
    such as ``\x1b``; letters of any script, joiners and spaces stay.
    """
    if text.isprintable():
        return text
    return "".join(
        each if _shows(each) else each.encode("unicode_escape").decode() for each in text
    )


def _shows(character: str) -> bool:
    return (
        character.isprintable()
        or character in _JOINERS
        or unicodedata.category(character) == "Zs"  # spaces of other widths
    )


def counted(count: int, noun: str, plural: str = "") -> str:
    """Return a count and its noun: `1 row`, `2 rows`.

    Args:
        count: How many.
        noun: In the singular.
        plural: The noun's plural if it is not the singular and an s.
    """
    return f"{count} {inflected(count, noun, plural)}"


def inflected(count: int, noun: str, plural: str = "") -> str:
    """Return a noun as it follows `count`, which is written by the caller."""
    return noun if count == 1 else plural or f"{noun}s"


def short_exponent(number: str) -> str:
    """Write a number's exponent as one types it: `5e-5` for `5e-05`."""
    return re.sub(r"e([+-])0*(?=\d)", lambda sign: f"e{sign[1].replace('+', '')}", number)


def duration(seconds: float) -> str:
    """Return a time in its two largest units: `45 s`, `2 min 5 s`, `1 d 14 h`."""
    left = round(seconds)
    parts = []
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        parts.append((count, unit))
    first = next((at for at, (count, _) in enumerate(parts) if count), len(parts) - 1)
    return " ".join(f"{count} {unit}" for count, unit in parts[first : first + 2] if count) or "0 s"

"""Texts from data: which are one name, which a cache can store, how they are shown and counted."""

import re
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from .errors import FedclipError

# Not printable to Python, yet parts of words in Persian, Hindi and others: joiners.
_JOINERS = frozenset("\u200c\u200d")


def nfc(text: str) -> str:
    """Compose a name's characters, so that equal names are equal texts wherever they come from.

    Systems write accents in two ways, as one character or as a letter and a mark (Unicode's forms
    NFC and NFD). Every name passes through here before it is compared or stored.
    """
    return unicodedata.normalize("NFC", text)


def name_key(name: str) -> str:
    """Return what two spellings of a name share: case, underscores and spaces do not matter."""
    return nfc(" ".join(nfc(name).casefold().replace("_", " ").split()))


def match_names(names: Iterable[str], known: Iterable[str]) -> dict[str, str]:
    """Find the known name that each of `names` means, exactly or else by its `name_key`.

    A name that matches none of them, or several by their keys alone, is left out.
    """
    exact = {nfc(each): each for each in known}
    by_key: dict[str, list[str]] = defaultdict(list)
    for each in exact.values():
        by_key[name_key(each)].append(each)
    found = {}
    for name in names:
        alike = by_key.get(name_key(name), [])
        if nfc(name) in exact:
            found[name] = exact[nfc(name)]
        elif len(alike) == 1:
            found[name] = alike[0]
    return found


def near_twins(names: Iterable[str]) -> list[tuple[str, str]]:
    """Find the names with equal keys: each later one, after the first one that it is like."""
    first: dict[str, str] = {}
    pairs = [(first.setdefault(name_key(name), name), name) for name in names]
    return [pair for pair in pairs if pair[0] != pair[1]]


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
    if flaw(str(path)) and sys.getfilesystemencoding() != "utf-8":
        raise FedclipError(
            f"{str(path)!r}: this name cannot be read with the locale's encoding, "
            f"{sys.getfilesystemencoding()}; set PYTHONUTF8=1"
        )
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

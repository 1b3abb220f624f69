"""Which texts a cache can store: those that fixed-length UTF-8, padded with NULs, can hold."""

from pathlib import Path

from .errors import FedclipError


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

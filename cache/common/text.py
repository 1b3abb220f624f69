"""Which texts a cache can keep: fixed-length UTF-8, which NULs fill up."""

from pathlib import Path

from .errors import FedclipError


def flaw(text: str) -> str:
    """Say what keeps a text out of a cache, in words that follow its name; nothing where none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return "that is not UTF-8"
    return "with a NUL character, which a cache cannot keep" if "\0" in text else ""


def check_utf8(path: Path | str) -> None:
    """Refuse a path that a cache or its manifest could not hold.

    Raises:
        FedclipError: its name is not UTF-8.
    """
    if flaw(str(path)):
        raise FedclipError(f"{str(path)!r}: this name is not UTF-8; rename it")

"""Files that are either whole or absent, and names that are safe as file names."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import FedclipError

TEMPORARY_PREFIX = ".tmp-"
MAX_NAME_BYTES = 200
_SAFE_NAME = re.compile(r"[^\W_][\w.+-]*")


def check_name(name: str, what: str) -> str:
    """Return `name` if it can be a file's name on any system.

    Raises:
        FedclipError: it is empty, starts with a dot or holds a separator, say.
    """
    if not _SAFE_NAME.fullmatch(name) or len(name.encode(errors="replace")) > MAX_NAME_BYTES:
        raise FedclipError(
            f"{what} {name!r} cannot name a file: use letters, digits, '_', '-', '+' and '.', "
            f"starting with a letter or a digit, {MAX_NAME_BYTES} bytes at most"
        )
    return name


def client_name(domain: str) -> str:
    """Name the client of a domain: lower-cased, spaces to underscores.

    Raises:
        FedclipError: the name cannot be a file's.
    """
    return check_name(domain.lower().replace(" ", "_"), "domain")


def slug(text: str) -> str:
    """Turn free text into a name that `check_name` accepts, or into an empty string."""
    return re.sub(r"[^\w.+-]+", "-", text).strip("-._+")[:100]


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it takes `path`'s place.

    The content is fsynced before the rename, so a reader, a crash or a full disk
    finds the old file or the new one, whole.

    Raises:
        OSError: it cannot be written; the error names `path`.
    """
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{path.name}")
    try:
        with _naming(path, temporary):
            yield temporary
            with temporary.open("r+b") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it becomes `path`, new or empty.

    Raises:
        FedclipError: there is something already, which is said before anything is made.
        OSError: it cannot be written; the error names `path`, or a file to be in it.
    """
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise FedclipError(
            f"{path}: is there already, and not empty; move or remove it, and it is made anew"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{path.name}")
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed process with our number
    temporary.mkdir()
    try:
        with _naming(path, temporary):
            yield temporary
            temporary.replace(path)
            sync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _naming(path: Path, temporary: Path) -> Iterator[None]:
    """Have an error name the file that a user knows, where it names the temporary one or none."""
    try:
        yield
    except OSError as error:
        name = str(error.filename or temporary)
        if error.errno is not None and name.startswith(str(temporary)):
            error.filename, error.filename2 = name.replace(str(temporary), str(path), 1), None
        raise


def to_json(value: Any) -> str:
    """Format `value` for people: sorted keys, indented, no NaN."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON in place of `path`, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(to_json(value), encoding="utf-8")

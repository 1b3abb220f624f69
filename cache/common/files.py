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
        FedclipError: the name is unsafe, for example empty or with a separator.
    """
    if not _SAFE_NAME.fullmatch(name) or len(name.encode(errors="replace")) > MAX_NAME_BYTES:
        raise FedclipError(
            f"{what} {name!r} cannot name a file: use letters, digits, '_', '-', '+' and '.', "
            f"starting with a letter or a digit, {MAX_NAME_BYTES} bytes at most"
        )
    return name


def client_name(domain: str) -> str:
    """Return the name of a domain's client: in lower case, with underscores for spaces.

    Raises:
        FedclipError: the name is unsafe as a file name.
    """
    return check_name(domain.lower().replace(" ", "_"), "domain")


def slug(text: str) -> str:
    """Turn free text into a name that `check_name` accepts, or into an empty string."""
    return re.sub(r"[^\w.+-]+", "-", text).strip("-._+")[:100]


def sync_folder(folder: Path) -> None:
    """Fsync `folder`, so that the names in it survive a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path`.

    The content is fsynced before the rename, so that `path` is always the whole old file or
    the whole new one, even after a crash or with a full disk.

    Raises:
        OSError: the file cannot be written; the error names `path`.
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
    """Yield a temporary folder beside `path`; on success it becomes `path`.

    Raises:
        FedclipError: `path` is a file or a folder that is not empty; checked first.
        OSError: the folder cannot be written; the error names `path` or a file in it.
    """
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise FedclipError(f"{path}: exists and is not empty; move or remove it, then run again")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{path.name}")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a killed process with our id
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
    """Make errors name `path` in place of its temporary path or of none."""
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
    """Write `value` to `path` as JSON, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(to_json(value), encoding="utf-8")

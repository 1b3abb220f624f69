"""Files that are either whole or absent, and names that are safe as file names.

Sites keep their data on file systems of many kinds. What one of them lacks, such as locks or the
fsync of a folder, is done without; what cannot be written is refused.
"""

import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import stat
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import IO, Any

from .errors import FedclipError
from .text import nfc

logger = logging.getLogger(__name__)

TEMPORARY_PREFIX = ".tmp-"
MAX_NAME_BYTES = 200
MAX_SLUG_BYTES = 100
_SAFE_NAME = re.compile(r"[^\W_][\w.+-]*")

# How NFS, SMB and FUSE answer a request that they do not know, as opposed to one that failed.
_UNSUPPORTED = frozenset(
    {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
)

# Clients' names are stored whole, whatever their length, up to this.
MAX_CLIENT_BYTES = 1024

# Names that are files' names as they are, on any system. The mark before the hash is not among
# their characters, so that no such name equals the safe form of another.
_SIMPLE_NAME = re.compile(r"[a-z0-9]([a-z0-9_.+-]*[a-z0-9_+-])?")
_MARK = "~"
_HASH_DIGITS = 16
_READABLE = 40

# Names of devices on Windows, with or without a suffix, and the suffixes of files in a run.
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?")
_RUN_SUFFIXES = (".json", ".jsonl", ".safetensors")


def check_name(name: str, what: str) -> str:
    """Return `name`, composed, if it can be a file's name on any system.

    Raises:
        FedclipError: the name is unsafe, for example empty or with a separator.
    """
    if not _is_safe(name):
        raise FedclipError(
            f"{what} {name!r} cannot name a file: use letters, digits, '_', '-', '+' and '.', "
            f"starting with a letter or a digit, {MAX_NAME_BYTES} bytes at most"
        )
    return nfc(name)


def _is_safe(name: str) -> bool:
    # In many scripts letters are followed by marks, which \w does not match.
    letters = "".join(char for char in name if not _is_mark(char))
    fits = len(name.encode(errors="replace")) <= MAX_NAME_BYTES
    return fits and _SAFE_NAME.fullmatch(letters) is not None and not _is_mark(name[0])


def _is_mark(char: str) -> bool:
    return unicodedata.category(char).startswith("M")


def client_name(domain: str) -> str:
    """Return the name of a domain's client.

    It is the domain's name in lower case with underscores for spaces if that can name a file:
    `Real World` is real_world. Any other name, such as `Real World (old)`, is kept as it is.

    Raises:
        FedclipError: the name cannot be stored.
    """
    plain = nfc(nfc(domain).lower().replace(" ", "_"))
    if _SAFE_NAME.fullmatch(plain) and len(plain.encode(errors="replace")) <= MAX_NAME_BYTES:
        return plain
    if domain != domain.strip():
        return client_name(domain.strip())
    return check_client(domain)


def check_client(name: str) -> str:
    """Return a client's name, composed, if a cache can store it.

    Raises:
        FedclipError: it has no visible character besides punctuation, is too long, or contains
            line breaks or other control characters.
    """
    kinds = [unicodedata.category(char) for char in name]
    if not any(kind[0] in "LNS" for kind in kinds):
        problem = "has no letter, digit or symbol"
    elif {"Cc", "Cs", "Zl", "Zp"} & {*kinds}:
        problem = "contains a line break, a control character or bytes that are not UTF-8"
    elif len(name.encode()) > MAX_CLIENT_BYTES:
        problem = f"is longer than {MAX_CLIENT_BYTES} bytes"
    else:
        return nfc(name)
    shown = name if len(name) <= MAX_NAME_BYTES else f"{name[:MAX_NAME_BYTES]}..."
    raise FedclipError(f"domain {shown!r} {problem}; rename it")


def file_name(name: str) -> str:
    """Return the name of the file or folder that belongs to a client, safe on any system.

    A simple name such as real_world is returned as it is. Any other gets a readable part in ASCII,
    and a hash of the name so that different names have different files, also where file systems
    ignore case.
    """
    name = nfc(name)
    if (
        _SIMPLE_NAME.fullmatch(name)
        and len(name) <= MAX_NAME_BYTES
        and not _DEVICE.fullmatch(name)
        and not name.endswith(_RUN_SUFFIXES)
    ):
        return name
    ascii_only = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    readable = re.sub(r"[^a-z0-9]+", "_", ascii_only)[:_READABLE].strip("_") or "client"
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()
    return f"{readable}{_MARK}{digest[:_HASH_DIGITS]}"


def path_for(folder: Path, name: str, suffix: str = "") -> Path:
    """Return the path in `folder` of what belongs to a client: a file if it has a suffix.

    Earlier versions used names such as `übung` as they are; such a file or folder is still found.
    """
    safe = file_name(name)
    if safe != nfc(name) and folder.is_dir():
        for path in folder.iterdir():
            if nfc(path.name) == f"{nfc(name)}{suffix}" and path.is_file() == bool(suffix):
                return path
    return folder / f"{safe}{suffix}"


def slug(text: str) -> str:
    """Turn free text into a name that `check_name` accepts, or into an empty string."""
    runs = groupby(nfc(text), lambda char: _is_mark(char) or re.match(r"[\w.+-]", char) is not None)
    name = "".join("".join(run) if kept else "-" for kept, run in runs).strip("-._+")
    while name and _is_mark(name[0]):
        name = name[1:].lstrip("-._+")
    return name.encode()[:MAX_SLUG_BYTES].decode(errors="ignore")


def regular(path: Path) -> Path:
    """Return the path of a file that is about to be read, or of none or a folder.

    Raises:
        FedclipError: it is a pipe, a socket or a device, which may have no end.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # opening it says why
        return path
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise FedclipError(f"{path}: is not a regular file; save its content as one, and pass that")
    return path


def sync(handle: int) -> None:
    """Fsync a file or a folder, where the file system can."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise


def sync_folder(folder: Path) -> None:
    """Fsync `folder`, so that the names in it survive a power failure."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:  # files can be made in a folder that cannot be read
        return
    try:
        sync(handle)
    finally:
        os.close(handle)


def lock(handle: int, path: Path) -> bool:
    """Lock an open file or folder until it is closed; return whether nobody else holds the lock.

    On a file system without locks this warns, once, and returns True.

    Args:
        handle: Its descriptor.
        path: What is written under this lock, for the warning.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        _warn_of_no_locks(path, os.fstat(handle).st_dev, str(error.strerror))
    return True


@contextmanager
def holding(path: Path, busy: FedclipError) -> Iterator[None]:
    """Hold the lock file `path`, which is removed in the end.

    The operating system releases the lock when its holder ends, even if it is killed.

    Raises:
        FedclipError: another process holds it: `busy`.
    """
    with path.open("w") as file:
        if not _held(file, path):
            raise busy
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _held(file: IO[str], path: Path) -> bool:
    try:
        # The previous holder may have removed the file after it was opened here.
        return (
            lock(file.fileno(), path.parent)
            and path.stat().st_ino == os.fstat(file.fileno()).st_ino
        )
    except FileNotFoundError:
        return False


_without_locks: set[int] = set()


def _warn_of_no_locks(path: Path, device: int, reason: str) -> None:
    if device not in _without_locks:
        _without_locks.add(device)
        logger.warning(
            "%s: its file system has no locks (%s); make sure that no other process writes here",
            path,
            reason,
        )


def check_writable(folder: Path, setting: str) -> None:
    """Refuse a folder in which no file can be made, before the work whose result goes there.

    A file is tried where the folder is or will be. The folder itself is not made and removed
    again, which would take it from under another process that has just made it.

    Args:
        folder: The folder, which may not exist yet.
        setting: The option that chooses it, with its value.

    Raises:
        FedclipError: the folder cannot be made, or no file in it.
    """
    above = (each for each in (folder, *folder.parents) if each.exists() or each.is_symlink())
    probe = next(above) / f"{TEMPORARY_PREFIX}{os.getpid()}-probe"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise FedclipError(
            f"{setting}: cannot be written ({error.strerror}); choose another place"
        ) from None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path`.

    The content is fsynced before the rename, so that `path` is always the whole old file or
    the whole new one, even after a crash or with a full disk. Its mode follows the umask,
    whatever wrote the content.

    Raises:
        OSError: the file cannot be written; the error names `path`.
    """
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{path.name}")
    try:
        with _naming(path, temporary):
            mode = _mode_of_new_file(temporary)
            yield temporary
            with temporary.open("r+b") as file:
                if stat.S_IMODE(os.fstat(file.fileno()).st_mode) != mode:
                    os.fchmod(file.fileno(), mode)
                sync(file.fileno())
            temporary.replace(path)
            sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _mode_of_new_file(path: Path) -> int:
    """Make an empty file and return its mode: what the umask, or the folder's ACL, asks for."""
    path.unlink(missing_ok=True)  # left by a killed process with our id
    path.touch(exist_ok=False)
    return stat.S_IMODE(path.stat().st_mode)


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


def folder_size(path: Path | str) -> int:
    """Return the size of all files below a folder, in bytes; what cannot be read has none."""
    return sum(map(entry_size, entries_of(path)))


def entry_size(entry: os.DirEntry[str]) -> int:
    """Return the size of a file, or of all files below a folder, in bytes."""
    try:
        if entry.is_dir(follow_symlinks=False):
            return folder_size(entry.path)
        return entry.stat(follow_symlinks=False).st_size
    except OSError:  # it was removed meanwhile
        return 0


def entries_of(path: Path | str) -> list[os.DirEntry[str]]:
    """List what is in a folder; nothing if it does not exist or cannot be read."""
    try:
        with os.scandir(path) as entries:
            return [*entries]
    except (OSError, ValueError):  # a path with a NUL is a ValueError
        return []

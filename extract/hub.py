"""Repositories on the Hugging Face hub: a revision's commit, its files, their download.

Files are kept where the hub's own client keeps them (``HF_HOME``) and are found there
by it. Only the transfer is ours: the client begins a file again where a process ended
midway, and this goes on.
"""

import errno
import io
import logging
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rich.filesize import decimal

from ..cache import FedclipError
from ..cache.common.errors import first_line
from ..cache.common.files import replacing
from ..cache.common.progress import Progress, no_progress
from ..cache.key import file_sha256
from .datasets.sources import FileSource

logger = logging.getLogger(__name__)

DATASET = "dataset"
MODEL = "model"
MAIN = "main"


class UnreachableError(FedclipError):
    """The hub cannot be reached, or the connection broke."""


_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_SHA256_DIGITS = 64
_KILO, _MEGA = 10**3, 10**6
_WORTH_TELLING = 10 * _KILO


@dataclass(frozen=True)
class Repository:
    """A repository at a revision.

    Attributes:
        id: ``owner/name``.
        kind: ``dataset`` or ``model``.
        revision: A branch, tag or commit.

    Raises:
        FedclipError: on construction, where this is no repository's name.
    """

    id: str
    kind: str
    revision: str = MAIN

    def __post_init__(self) -> None:
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id

        try:
            validate_repo_id(self.id)
        except HFValidationError:
            raise FedclipError(f"{self}: a repository on the hub is called OWNER/NAME") from None

    def __str__(self) -> str:
        prefix = "hf:" if self.kind == DATASET else "hf-hub:"
        return f"{prefix}{self.id}" + (f" at {self.revision}" if self.revision != MAIN else "")

    @property
    def storage(self) -> Path:
        """Where the hub's client keeps it."""
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        folder = repo_folder_name(repo_id=self.id, repo_type=self.kind)
        return Path(constants.HF_HUB_CACHE) / folder

    def command(self, *files: str) -> str:
        """Say what gets it, or some of its files, on a machine that is connected."""
        kind = ["--repo-type", "dataset"] if self.kind == DATASET else []
        revision = ["--revision", self.revision] if self.revision != MAIN else []
        return shlex.join(["hf", "download", self.id, *files, *kind, *revision])


@dataclass(frozen=True)
class HubFile:
    """A file of a repository: its size, and the hash under which its content is kept."""

    size: int
    etag: str


@dataclass(frozen=True)
class Snapshot:
    """A repository's files at one commit.

    Attributes:
        repository: Whose they are.
        commit: The commit that the revision means.
        files: Their sizes and hashes by path; None for one that is known from disk only.
        partial: Whether it lists what is on this machine, which may not be all.
    """

    repository: Repository
    commit: str
    files: Mapping[str, HubFile | None]
    partial: bool = False

    @property
    def folder(self) -> Path:
        """Where its files are, once they are here."""
        return self.repository.storage / "snapshots" / self.commit

    def version(self, path: str) -> str:
        """Identify the content of a file that is here."""
        blob = (self.folder / path).resolve()
        if _HASH.fullmatch(blob.name):
            return blob.name
        return FileSource(blob).stamp()  # a disk without links has the file itself


@contextmanager
def offline(wanted: bool) -> Iterator[None]:
    """Keep the hub's client, and every library that uses it, off the network if `wanted`."""
    if not wanted:
        yield
        return
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def look_up(repository: Repository) -> Snapshot:
    """Resolve a revision to a commit and list its files; of those here, where offline.

    Raises:
        FedclipError: there is no such repository or revision, it is not ours to read, or it
            can neither be reached nor is it here.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.hf_api import RepoFile

    if constants.HF_HUB_OFFLINE:
        return _local(repository)
    api = HfApi()
    try:
        with explained(repository, how_to_carry(repository)):
            commit = api.repo_info(
                repository.id, repo_type=repository.kind, revision=repository.revision
            ).sha
            assert commit is not None
            entries = api.list_repo_tree(
                repository.id, repo_type=repository.kind, revision=commit, recursive=True
            )
            files = {
                entry.path: HubFile(entry.size, entry.lfs.sha256 if entry.lfs else entry.blob_id)
                for entry in entries
                if isinstance(entry, RepoFile)
            }
    except UnreachableError as error:
        here = _commit(repository)
        if here is None:
            raise
        logger.warning("%s; commit %s is used, which is on this machine", error, here[:8])
        return _local(repository)
    _check_names(repository, commit, files)
    return Snapshot(repository, commit, files)


def _check_names(repository: Repository, commit: str, files: Mapping[str, HubFile]) -> None:
    """Refuse an answer that would name a file outside of the repository's folder."""
    for name in (commit, *(file.etag for file in files.values())):
        if not _HASH.fullmatch(name):
            raise FedclipError(f"{repository}: the hub answered {name!r} where a hash belongs")
    for path in map(PurePosixPath, files):
        if path.is_absolute() or ".." in path.parts:
            raise FedclipError(
                f"{repository}: the hub lists {str(path)!r}, which leaves the folder"
            )


def _commit(repository: Repository) -> str | None:
    """Look up which commit a revision meant when it was last here."""
    names = [repository.revision]
    ref = repository.storage / "refs" / repository.revision
    if ref.is_file():
        names.append(ref.read_text())
    for name in names:
        if _HASH.fullmatch(name) and (repository.storage / "snapshots" / name).is_dir():
            return name
    return None


def _local(repository: Repository) -> Snapshot:
    commit = _commit(repository)
    if commit is None:
        raise FedclipError(f"{repository}: is not on this machine; {how_to_carry(repository)}")
    snapshot = Snapshot(repository, commit, {})
    paths = (path for path in snapshot.folder.rglob("*") if path.is_file())
    files = {path.relative_to(snapshot.folder).as_posix(): None for path in paths}
    return Snapshot(repository, commit, files, partial=True)


def is_here(repository: Repository) -> bool:
    """Tell whether a repository was downloaded, at least in part."""
    return _commit(repository) is not None


def how_to_carry(repository: Repository, *files: str) -> str:
    """Say how it, or some of its files, comes to a machine without a network."""
    return (
        f"run '{repository.command(*files)}' on a machine that is connected and carry the folder "
        f"{repository.storage.name} of its HF_HOME/hub to {repository.storage.parent}"
    )


def download(snapshot: Snapshot, paths: Sequence[str], progress: Progress = no_progress) -> Path:
    """Download what is not here yet of `paths`, and return the folder that has them.

    A connection that breaks is taken up again where it broke, and so is, by the next
    call, a download that was given up. Large files are checked against their SHA-256.

    Raises:
        FedclipError: the files cannot be had, arrive damaged or do not fit on the disk.
    """
    from huggingface_hub import constants, snapshot_download

    repository = snapshot.repository
    absent = [path for path in paths if not (snapshot.folder / path).exists()]
    if not absent:
        return snapshot.folder
    if constants.HF_HUB_OFFLINE:
        raise FedclipError(
            f"{repository}: {absent[0]} is not on this machine; "
            + how_to_carry(repository, *absent)
        )
    with explained(repository, "run again to go on where it stopped"), _quiet():
        _transfer(snapshot, absent, progress)
        # Nothing is left to transfer: this links the files.
        snapshot_download(
            repository.id,
            repo_type=repository.kind,
            revision=snapshot.commit,
            allow_patterns=list(paths),
        )
    return snapshot.folder


def remember(snapshot: Snapshot) -> None:
    """Record what the revision means, for when the hub is not asked; its files must be here."""
    repository = snapshot.repository
    if snapshot.partial or repository.revision == snapshot.commit:
        return
    ref = repository.storage / "refs" / repository.revision
    ref.parent.mkdir(parents=True, exist_ok=True)
    with replacing(ref) as temporary:
        temporary.write_text(snapshot.commit)


def _transfer(snapshot: Snapshot, paths: Sequence[str], progress: Progress) -> None:
    blobs = snapshot.repository.storage / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    wanted = {path: file for path in paths if (file := snapshot.files[path]) is not None}
    begun = {file.etag: _size(blobs, file.etag) for file in wanted.values()}
    total = sum({file.etag: file.size for file in wanted.values()}.values())
    left = total - sum(begun.values())
    if left >= _WORTH_TELLING:
        logger.info(
            "download   %s: %d files, %s%s",
            snapshot.repository,
            len(wanted),
            decimal(left),
            f" of {decimal(total)} (the rest is here)" if left < total else "",
        )
    free = shutil.disk_usage(blobs).free
    if free < left:
        raise FedclipError(
            f"{blobs}: {snapshot.repository} needs {decimal(left)} here and {decimal(free)} are "
            "free; make room, or keep downloads on another disk with HF_HOME"
        )
    unit, scale = ("MB", _MEGA) if total >= 10 * _MEGA else ("kB", _KILO)

    def told(etag: str, size: int) -> None:
        begun[etag] = size
        if left >= _WORTH_TELLING:
            done = sum(begun.values())
            progress(str(snapshot.repository), done // scale, total // scale, unit)

    for path, file in wanted.items():
        told(file.etag, begun[file.etag])
        _transfer_file(snapshot, path, file, told)


def _size(blobs: Path, etag: str) -> int:
    places = (place for place in (blobs / etag, _partial(blobs / etag)) if place.exists())
    return next((place.stat().st_size for place in places), 0)


def _partial(blob: Path) -> Path:
    return blob.with_name(f"{blob.name}.fedclip.incomplete")


def _transfer_file(
    snapshot: Snapshot, path: str, file: HubFile, told: Callable[[str, int], None]
) -> None:
    from huggingface_hub.utils import WeakFileLock

    storage = snapshot.repository.storage
    blob = storage / "blobs" / file.etag
    lock = storage.parent / ".locks" / storage.name / f"{file.etag}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if blob.exists():
            return
        partial = _partial(blob)
        with _Watched(partial, lambda size: told(file.etag, size)) as content:
            _get(snapshot, path, file.size, content)
            content.flush()
            os.fsync(content.fileno())
        if len(file.etag) == _SHA256_DIGITS and file_sha256(partial) != file.etag:
            partial.unlink()
            raise FedclipError(
                f"{snapshot.repository}: {path} arrived damaged and was deleted; run again"
            )
        partial.replace(blob)


class _Watched(io.BufferedRandom):
    """A file, opened at its end, that tells its size as it grows."""

    def __init__(self, path: Path, told: Callable[[int], None]) -> None:
        path.touch()
        super().__init__(io.FileIO(path, "r+"))
        self.seek(0, os.SEEK_END)
        self._told = told

    def write(self, data: bytes) -> int:  # type: ignore[override]
        written = super().write(data)
        self._told(self.tell())
        return written


def _get(snapshot: Snapshot, path: str, size: int, content: _Watched) -> None:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    repository = snapshot.repository
    url = hf_hub_url(repository.id, path, repo_type=repository.kind, revision=snapshot.commit)
    while True:
        begun = content.tell()
        try:
            http_get(
                url, content, resume_size=begun, headers=build_hf_headers(), expected_size=size
            )
            return
        except Exception:
            if content.tell() <= begun:
                raise
            # A connection that brought something is worth another.


@contextmanager
def explained(repository: Repository, advice: str) -> Iterator[None]:
    """Turn what the hub's client raises of a repository into one line."""
    from huggingface_hub import constants, errors

    try:
        yield
    except FedclipError:
        raise
    except errors.GatedRepoError:
        raise FedclipError(
            f"{repository}: is gated; accept its terms on {_page(repository)}, then log in with "
            "'hf auth login' or set HF_TOKEN"
        ) from None
    except errors.RepositoryNotFoundError:
        raise FedclipError(
            f"{repository}: there is no such {repository.kind} on {constants.ENDPOINT}, or it is "
            "private; check the name, or log in with 'hf auth login'"
        ) from None
    except errors.RevisionNotFoundError:
        raise FedclipError(
            f"{repository}: there is no such revision; {_page(repository)} lists them"
        ) from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise FedclipError(
                f"{repository.storage}: the disk is full; make room, or keep downloads on another "
                "disk with HF_HOME, and run again: what has arrived is kept"
            ) from None
        raise UnreachableError(
            f"{repository}: cannot be had from {constants.ENDPOINT} ({first_line(error)}); {advice}"
        ) from None


def _page(repository: Repository) -> str:
    from huggingface_hub import constants

    prefix = "datasets/" if repository.kind == DATASET else ""
    return f"{constants.ENDPOINT}/{prefix}{repository.id}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the client from drawing bars and warning of what it tries again."""
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    logger = logging.getLogger("huggingface_hub")
    level, bars = logger.level, not are_progress_bars_disabled()
    logger.setLevel(logging.CRITICAL)
    disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars:
            enable_progress_bars()

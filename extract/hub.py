"""Repositories on the Hugging Face hub: a revision's commit, its files, their download.

The hub's own client downloads files to its own folder (``HF_HOME``). This module adds the total
size, checks of free space and hashes, and errors of one line.
"""

import errno
import logging
import re
import shlex
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from rich.filesize import decimal

from ..cache import FedclipError
from ..cache.common.errors import first_line
from ..cache.common.files import check_writable, replacing
from ..cache.common.progress import Progress, no_progress
from ..cache.common.text import counted
from ..cache.key import file_sha256
from .datasets.base import FileSource
from .datasets.registry import HF

logger = logging.getLogger(__name__)

DATASET = "dataset"
MODEL = "model"
MAIN = "main"


class UnreachableError(FedclipError):
    """The hub cannot be reached, or the connection broke."""


# As Git names branches and tags, hardly more: a revision is a part of a path here.
_REVISION = re.compile(r"[\w+#-][\w.+#/-]*")
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_SHA256_DIGITS = 64
_KILO, _MEGA = 10**3, 10**6
_WORTH_SHOWING = 10 * _KILO


@dataclass(frozen=True)
class Repository:
    """A repository at a revision.

    Attributes:
        id: ``owner/name``.
        kind: ``dataset`` or ``model``.
        revision: A branch, tag or commit.
        prefix: What users put before `id`; open_clip and timm have another one.

    Raises:
        FedclipError: on construction, if `id` is not a repository's name or `revision` not one
            of a revision.
    """

    id: str
    kind: str
    revision: str = MAIN
    prefix: str = "hf:"

    def __post_init__(self) -> None:
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id

        try:
            validate_repo_id(self.id)
        except HFValidationError:
            raise FedclipError(f"{self}: not a repository's name; use OWNER/NAME") from None
        if not _REVISION.fullmatch(self.revision) or ".." in self.revision:
            raise FedclipError(f"{self}: not the name of a branch, tag or commit")

    def __str__(self) -> str:
        return f"{self.prefix}{self.id}" + (f" at {self.revision}" if self.revision != MAIN else "")

    @property
    def storage(self) -> Path:
        """The folder in which the hub's client stores it."""
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        folder = repo_folder_name(repo_id=self.id, repo_type=self.kind)
        return Path(constants.HF_HUB_CACHE) / folder

    def command(self, *files: str) -> str:
        """Return the shell command that downloads the repository, or some of its files."""
        kind = ["--repo-type", "dataset"] if self.kind == DATASET else []
        revision = ["--revision", self.revision] if self.revision != MAIN else []
        return shlex.join(["hf", "download", self.id, *files, *kind, *revision])


@dataclass(frozen=True)
class HubFile:
    """A file of a repository: its size, and the hash under which its content is stored."""

    size: int
    etag: str


@dataclass(frozen=True)
class Snapshot:
    """A repository's files at one commit.

    Attributes:
        repository: The repository.
        commit: The commit that the revision points to.
        files: Their sizes and hashes by path; None if known from disk only.
        partial: Whether it lists only the files on this machine, which may not be all.
    """

    repository: Repository
    commit: str
    files: Mapping[str, HubFile | None]
    partial: bool = False

    @property
    def folder(self) -> Path:
        """The folder that contains its files once they are downloaded."""
        return self.repository.storage / "snapshots" / self.commit

    def version(self, path: str) -> str:
        """Identify the content of a downloaded file."""
        blob = (self.folder / path).resolve()
        if _HASH.fullmatch(blob.name):
            return blob.name
        return FileSource(blob).stamp()  # without symbolic links, `blob` is the file itself


@contextmanager
def offline(wanted: bool) -> Iterator[None]:
    """Keep the hub's client and the libraries that use it off the network if `wanted`."""
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
    """Resolve a revision to a commit and list its files; if offline, those on this machine.

    Raises:
        FedclipError: the repository or revision does not exist or is not accessible, or the hub
            cannot be reached and the repository is not on this machine.
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
        logger.warning("%s; using commit %s, which is on this machine", error, here[:8])
        return _local(repository)
    _check_names(repository, commit, files)
    return Snapshot(repository, commit, files)


def _check_names(repository: Repository, commit: str, files: Mapping[str, HubFile]) -> None:
    """Refuse an answer that names files outside the repository's folder."""
    for name in (commit, *(file.etag for file in files.values())):
        if not _HASH.fullmatch(name):
            raise FedclipError(f"{repository}: the hub answered {name!r} in place of a hash")
    for path in map(PurePosixPath, files):
        if path.is_absolute() or ".." in path.parts:
            raise FedclipError(
                f"{repository}: the hub lists {str(path)!r}, which is outside the repository"
            )


def _commit(repository: Repository) -> str | None:
    """Return the commit that a revision pointed to when it was last looked up."""
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


def commit_of(path: Path | None) -> str | None:
    """Return the commit of a downloaded file or folder; None of any other one."""
    parts = path.absolute().parts if path is not None else ()
    below = len(hub_folder().absolute().parts) + 1  # a repository's folder
    if len(parts) < below + 2 or Path(*parts[: below - 1]) != hub_folder().absolute():
        return None
    return parts[below + 1] if parts[below] == "snapshots" else None


def is_here(repository: Repository) -> bool:
    """Return whether a repository was downloaded, at least in part."""
    return _commit(repository) is not None


def how_to_carry(repository: Repository, *files: str) -> str:
    """Explain how to copy a repository, or some files, to a machine without a network."""
    return (
        f"run '{repository.command(*files)}' on a machine with a network and copy the folder "
        f"{repository.storage.name} from its HF_HOME/hub to {repository.storage.parent}"
    )


def download(snapshot: Snapshot, paths: Sequence[str], progress: Progress = no_progress) -> Path:
    """Download those of `paths` that are missing here, and return the folder that contains them.

    The hub's client resumes after a broken connection, and keeps complete files.
    Large files are checked against their SHA-256.

    Raises:
        FedclipError: a file cannot be downloaded, arrives damaged or does not fit on the disk.
    """
    from huggingface_hub import constants

    repository = snapshot.repository
    absent = [path for path in paths if not (snapshot.folder / path).exists()]
    if not absent:
        return snapshot.folder
    if constants.HF_HUB_OFFLINE or snapshot.partial:
        raise FedclipError(
            f"{repository}: {absent[0]} is not on this machine; "
            + how_to_carry(repository, *absent)
        )
    with explained(repository, "run again; complete files are kept"), _quiet():
        _transfer(snapshot, absent, progress)
    return snapshot.folder


def remember(snapshot: Snapshot) -> None:
    """Record the revision's commit for offline use; call this after downloading its files."""
    repository = snapshot.repository
    if snapshot.partial or repository.revision == snapshot.commit:
        return
    ref = repository.storage / "refs" / repository.revision
    ref.parent.mkdir(parents=True, exist_ok=True)
    with replacing(ref) as temporary:
        temporary.write_text(snapshot.commit)


def fetch_files(name: str, names: Sequence[str], progress: Progress = no_progress) -> Path:
    """Download those of some files that a model's repository has, and return their folder.

    Args:
        name: ``hf:OWNER/NAME``, or ``hf:OWNER/NAME@REVISION``.
        names: The files; the first one must be there.
        progress: Called with the bytes that have arrived.

    Raises:
        FedclipError: the repository does not exist, lacks the first file, or cannot be reached.
    """
    repository_id, _, revision = name.removeprefix(HF).partition("@")
    repository = Repository(repository_id, MODEL, revision or MAIN)
    snapshot = look_up(repository)
    wanted = [each for each in names if each in snapshot.files]
    if names[0] not in wanted:
        raise FedclipError(f"{name}: has no {names[0]}; check the name")
    folder = download(snapshot, wanted, progress)
    remember(snapshot)
    return folder


def upload(name: str, folder: Path, *, private: bool = False) -> str:
    """Upload a folder as a model's repository, which is created if necessary.

    Args:
        name: ``OWNER/NAME``.
        folder: Its files.
        private: Whether a new repository is private.

    Returns:
        The address of the repository.

    Raises:
        FedclipError: the hub refuses it or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, constants, errors

    repository = Repository(name, MODEL)
    if "/" not in name:
        raise FedclipError(f"{repository}: has no owner; use OWNER/NAME")
    if constants.HF_HUB_OFFLINE:
        raise FedclipError(f"{repository}: cannot be uploaded offline; unset HF_HUB_OFFLINE")
    api = HfApi()
    try:
        api.create_repo(name, repo_type=MODEL, private=private, exist_ok=True)
        with _quiet(), _without_bars():
            api.create_commit(
                name,
                [
                    CommitOperationAdd(path.relative_to(folder).as_posix(), path)
                    for path in sorted(folder.rglob("*"))
                    if path.is_file()
                ],
                repo_type=MODEL,
                commit_message="Upload an adapter with fedclip",
            )
    except errors.HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            raise FedclipError(
                f"{repository}: you may not write to it; log in with 'hf auth login' or set "
                "HF_TOKEN, with a token that may write"
            ) from None
        raise FedclipError(f"{repository}: was not uploaded ({first_line(error)})") from None
    except (FedclipError, KeyboardInterrupt):
        raise
    except Exception as error:  # the client passes on errors of the libraries beneath
        cause = first_line(error.__cause__ or error)
        raise UnreachableError(
            f"{repository}: was not uploaded to {constants.ENDPOINT} ({cause}); run again"
        ) from None
    return f"{constants.ENDPOINT}/{name}"


def _transfer(snapshot: Snapshot, paths: Sequence[str], progress: Progress) -> None:
    from huggingface_hub import constants, hf_hub_download

    repository = snapshot.repository
    check_writable(repository.storage.parent, f"HF_HOME {constants.HF_HOME}")
    blobs = repository.storage / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    wanted = {path: file for path in paths if (file := snapshot.files[path]) is not None}
    sizes = {file.etag: file.size for file in wanted.values() if not (blobs / file.etag).exists()}
    total, free = sum(sizes.values()), shutil.disk_usage(blobs).free
    if free < total:
        raise FedclipError(
            f"{blobs}: {repository} needs {decimal(total)} here, but only {decimal(free)} are "
            "free; make room, or set HF_HOME to a folder on another disk"
        )
    if total < _WORTH_SHOWING:
        progress = no_progress
    else:
        logger.info(
            "download   %s: %s, %s", repository, counted(len(sizes), "file"), decimal(total)
        )
    unit, scale = ("MB", _MEGA) if total >= 10 * _MEGA else ("kB", _KILO)
    arrived: Counter[str] = Counter()

    def count(etag: str, size: int) -> None:
        arrived[etag] = max(arrived[etag], size)
        progress(str(repository), arrived.total() // scale, total // scale, unit)

    for path, file in wanted.items():  # one after the other, so that Ctrl-C stops at once
        if file.etag in sizes:
            count(file.etag, 0)
        hf_hub_download(
            repository.id,
            path,
            repo_type=repository.kind,
            revision=snapshot.commit,
            tqdm_class=_bar(partial(count, file.etag)),
        )
        _check_content(snapshot, path, file.etag)
        if file.etag in sizes:
            count(file.etag, file.size)


def _bar(count: Callable[[int], None]) -> type[Any]:
    """Make a progress bar class for the hub's client that only passes on its count."""
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0
            count(int(self.n))

    return Bar


def _check_content(snapshot: Snapshot, path: str, etag: str) -> None:
    """Delete a large file that does not match its hash, which the hub's client does not check."""
    link = snapshot.folder / path
    content = link.resolve()
    if len(etag) == _SHA256_DIGITS and file_sha256(content) != etag:
        link.unlink()
        content.unlink(missing_ok=True)
        raise FedclipError(
            f"{snapshot.repository}: {path} arrived damaged and was deleted; run again"
        )


@contextmanager
def explained(repository: Repository, advice: str) -> Iterator[None]:
    """Turn errors of the hub's client about a repository into one line."""
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
            f"{repository}: no such {repository.kind} on {constants.ENDPOINT}, or it is "
            "private; check the name, or log in with 'hf auth login'"
        ) from None
    except errors.RevisionNotFoundError:
        raise FedclipError(
            f"{repository}: no such revision; {_page(repository)} lists them"
        ) from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise FedclipError(
                f"{repository.storage}: the disk is full; make room, or set HF_HOME to a folder on "
                "another disk, then run again; complete files are kept"
            ) from None
        cause = first_line(error.__cause__ or error)  # the client words some errors itself
        raise UnreachableError(
            f"{repository}: cannot be downloaded from {constants.ENDPOINT} ({cause}); {advice}"
        ) from None


def _page(repository: Repository) -> str:
    from huggingface_hub import constants

    prefix = "datasets/" if repository.kind == DATASET else ""
    return f"{constants.ENDPOINT}/{prefix}{repository.id}"


def hub_folder() -> Path:
    """Return the folder in which the hub's client keeps what it downloads."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def reach(seconds: float = 5.0) -> str:
    """Return whether the hub answers, in a few words.

    Args:
        seconds: How long to wait for it.
    """
    from huggingface_hub import constants, get_token
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return f"{constants.ENDPOINT}: not asked, as HF_HUB_OFFLINE is set"
    try:
        get_session().get(f"{constants.ENDPOINT}/api/models?limit=1", timeout=seconds)
    except Exception as error:  # the client passes on errors of the libraries beneath
        return f"{constants.ENDPOINT}: cannot be reached ({first_line(error)})"
    return (
        f"{constants.ENDPOINT}: answers, {'a token is set' if get_token() else 'without a token'}"
    )


@contextmanager
def _without_bars() -> Iterator[None]:
    """Hide the client's own progress bars."""
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            enable_progress_bars()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the client's warnings about retries."""
    client = logging.getLogger("huggingface_hub")
    level = client.level
    client.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        client.setLevel(level)

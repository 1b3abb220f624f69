"""The folder of caches: find, list, load, verify and remove them.

A cache is a folder ``<cache-dir>/<dataset>/<variant>/`` with one ``<client>.h5`` per
client, whose true name is inside. ``manifest.json`` beside them records how they were made;
reading the files does not need it.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .common.errors import BusyError, CacheError
from .common.fields import listed, suggest
from .common.files import TEMPORARY_PREFIX, holding, path_for, write_json
from .common.text import nfc
from .compatibility import check_compatible
from .parts import find_parts, remove_parts
from .reader import read_cache
from .schema import FeatureCache

MANIFEST = "manifest.json"
LOCK = ".lock"
SUFFIX = ".h5"


@dataclass(frozen=True)
class CacheFolder:
    """The folder of a cache, which may not exist yet."""

    path: Path

    @property
    def name(self) -> str:
        """The cache's name, as `--cache` takes it: ``<dataset>/<variant>``."""
        return nfc(f"{self.path.parent.name}/{self.path.name}")

    @property
    def files(self) -> list[Path]:
        """The clients' files, in alphabetical order."""
        return sorted(
            path for path in self.path.glob(f"[!.]*{SUFFIX}") if path.exists() and not path.is_dir()
        )

    @property
    def bytes(self) -> int:
        """Size of the clients' files."""
        return sum(path.stat().st_size for path in self.files)

    @property
    def made(self) -> float:
        """Time of the last extraction or import, in seconds since the epoch."""
        manifest = self.path / MANIFEST
        files = [manifest] if manifest.is_file() else self.files
        return max(path.stat().st_mtime for path in files)

    @property
    def begun(self) -> bool:
        """Whether an extraction was started here: it has left a manifest or parts."""
        return (self.path / MANIFEST).is_file() or bool(find_parts(self.path))

    def file(self, client: str) -> Path:
        """Path of a client's file."""
        return path_for(self.path, client, SUFFIX)

    def read_manifest(self) -> dict[str, Any]:
        """Read the manifest, which is optional: return {} if it is missing or invalid."""
        try:
            text = (self.path / MANIFEST).read_text(encoding="utf-8")
            manifest: dict[str, Any] = json.loads(text)
        except (OSError, ValueError, RecursionError):
            return {}
        if not _is_manifest(manifest):
            return {}
        if "clients" in manifest:
            clients = manifest["clients"].items()
            manifest["clients"] = {nfc(client): entry for client, entry in clients}
        return manifest

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """Write the manifest, whole or not at all."""
        write_json(self.path / MANIFEST, manifest)


def _is_manifest(value: Any) -> bool:
    """Return whether `value` has the structure that readers of the manifest rely on."""
    if not isinstance(value, dict) or not isinstance(value.get("imported", {}), dict):
        return False
    clients = value.get("clients", {})
    return isinstance(clients, dict) and all(
        isinstance(entry, dict) and isinstance(entry.get("skipped", []), list)
        for entry in clients.values()
    )


def find_caches(cache_dir: Path, *, begun: bool = False) -> list[CacheFolder]:
    """Find all caches below `cache_dir`, sorted by name; with `begun`, unfinished ones too."""
    folders = [CacheFolder(path) for path in sorted(cache_dir.glob("[!.]*/[!.]*")) if path.is_dir()]
    return [folder for folder in folders if folder.files or (begun and folder.begun)]


def resolve_cache(cache_dir: Path, name: str, *, begun: bool = False) -> CacheFolder:
    """Find the one cache that `name` refers to.

    Args:
        cache_dir: Where caches are kept.
        name: The cache's full name, its dataset or a prefix of its name.
        begun: Whether to include caches whose first extraction is unfinished.

    Raises:
        CacheError: no cache or several match; the message lists similar or matching ones.
    """
    found, name = find_caches(cache_dir, begun=begun), nfc(name)
    exact = [folder for folder in found if folder.name == name]
    dataset = [folder for folder in found if folder.name.split("/")[0] == name]
    beginning = [folder for folder in found if name and folder.name.startswith(name)]
    matches = exact or dataset or beginning
    if len(matches) == 1:
        return matches[0]
    if not found:
        raise CacheError(
            f"no caches in {cache_dir}; make one with 'fedclip extract' or 'fedclip cache import', "
            "or set --cache-dir"
        )
    names = [folder.name for folder in matches or found]
    if matches:
        raise CacheError(f"cache {name!r} is ambiguous; choose {listed(names)}")
    hint = suggest(name, names) or "; 'fedclip cache ls' lists them"
    raise CacheError(f"unknown cache {name!r} in {cache_dir}{hint}")


def latest_cache(cache_dir: Path) -> CacheFolder:
    """Find the cache that was extracted or imported last.

    Raises:
        CacheError: `cache_dir` contains no cache.
    """
    found = find_caches(cache_dir)
    return max(found, key=lambda folder: folder.made) if found else resolve_cache(cache_dir, "")


def load_cache(folder: CacheFolder) -> list[FeatureCache]:
    """Read every client of a cache, sorted by name.

    Raises:
        CacheError: a file is damaged, or the clients do not belong together.
    """
    paths = folder.files
    if not paths:
        raise CacheError(f"{folder.path}: contains no client's file; extract the dataset again")
    clients = [read_cache(path) for path in paths]
    check_compatible(paths, clients)
    return sorted(clients, key=lambda cache: cache.client)


def verify_cache(folder: CacheFolder) -> list[CacheError]:
    """Check every client of a cache.

    Returns:
        One error per damaged file; if no file is damaged, an error if the clients do not
        belong together.
    """
    paths = folder.files
    clients, wrong = [], []
    for path in paths:
        try:
            clients.append(read_cache(path))
        except CacheError as error:
            wrong.append(error)
    if not wrong:
        try:
            check_compatible(paths, clients)
        except CacheError as error:
            wrong.append(error)
    return wrong


@contextmanager
def writing(folder: CacheFolder) -> Iterator[None]:
    """Create a cache's folder and lock it against other writers; remove it if it stays empty.

    Raises:
        BusyError: another process is writing this cache.
    """
    folder.path.mkdir(parents=True, exist_ok=True)
    busy = BusyError(
        f"{folder.path}: another extraction is writing this cache; wait until it is done"
    )
    try:
        with holding(folder.path / LOCK, busy):
            for leftover in folder.path.glob(f"{TEMPORARY_PREFIX}*"):  # left by a killed writer
                leftover.unlink()
            yield
    finally:
        _remove_empty(folder)


def remove_cache(folder: CacheFolder) -> None:
    """Delete a cache's files, and its folders unless something else is in them."""
    with writing(folder):
        remove_parts(folder.path)
        for path in (*folder.files, folder.path / MANIFEST):
            path.unlink(missing_ok=True)


def _remove_empty(folder: CacheFolder) -> None:
    for path in (folder.path, folder.path.parent):
        with suppress(OSError):  # it is not empty, or gone
            path.rmdir()

"""Records of an extraction, by which the next one finds a cache up to date without an encoder."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..cache import CacheFolder, FedclipError, read_cache
from ..cache.common.errors import BusyError
from ..cache.parts import remove_parts
from ..cache.store import MANIFEST, writing
from .datasets.base import ClientImages, ImageDataset, Source
from .datasets.books import Books
from .datasets.hub_tables import LocatedTable
from .datasets.registry import HF, KNOWN
from .encoders.registry import library_versions
from .encoders.spec import EncoderName, folder_of, in_folder, is_file
from .request import ClientResult, Extraction, Request, Skipped


@dataclass(frozen=True)
class ClientEntry:
    """A client's record: the rows in its file, its listing at the time, and skipped images."""

    rows: int
    listing: str
    skipped: tuple[Skipped, ...]


def encoder_request(name: EncoderName) -> dict[str, Any]:
    """Describe the requested encoder, independently of the working directory."""
    model, pretrained = name.model, name.pretrained
    if folder := folder_of(model):
        model = in_folder(model, str(folder))
    if pretrained is not None and is_file(pretrained):
        pretrained = str(Path(pretrained).resolve())
    asked = {key: value for key, value in asdict(name).items() if value not in (None, ())}
    others = {"others": [encoder_request(each) for each in name.others]} if name.others else {}
    return {**asked, "model": model, "pretrained": pretrained, **others}


def stat_files(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Describe files by path, size and time of modification."""
    stats = [(path, path.stat()) for path in paths]
    return [
        {"path": str(path), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        for path, stat in stats
    ]


def listing(images: ClientImages) -> str:
    """Hash a client's ids, labels and the stamps of its images; equal if nothing changed."""
    digest = hashlib.sha256()
    for image in images.images:
        digest.update(f"{image.id}\0{image.label}\0{_stamp(image.source)}\n".encode())
    return digest.hexdigest()


def listings(dataset: ImageDataset) -> dict[str, str]:
    """Return the listing of each client by name."""
    return {client.name: listing(client) for client in dataset.clients}


def _stamp(source: Source) -> str:
    try:
        return source.stamp()
    except OSError:
        return "cannot be read"


def variants(cache_dir: Path, dataset: str) -> list[CacheFolder]:
    """List a dataset's caches that have a manifest, the newest first."""
    folders = [CacheFolder(path.parent) for path in (cache_dir / dataset).glob(f"*/{MANIFEST}")]
    return sorted(folders, key=lambda folder: -folder.made)


def check_root(cache_dir: Path, dataset: ImageDataset) -> None:
    """Refuse to keep caches of two folders under one name; separate sites have one folder each.

    Raises:
        FedclipError: a cache of this name was made from another folder that still exists, and
            from none of these samples: a folder that was moved has the same ones.
    """
    for folder in variants(cache_dir, dataset.name):
        manifest = folder.read_manifest()
        roots = {
            client: str(entry.get("root", manifest.get("root", dataset.root)))
            for client, entry in manifest.get("clients", {}).items()
        }
        if dataset.alone:
            ours = dataset.clients[0].name
            roots = {ours: roots.get(ours, str(dataset.root))}
        for root in roots.values():
            if (
                root != str(dataset.root)
                and _may_differ(root)
                and not _published(dataset, root)
                and not _moved(manifest, dataset)
            ):
                raise FedclipError(
                    f"{dataset.root}: the caches of {dataset.name!r} were made from {root}; "
                    "choose another name for this folder with --name"
                )


def _may_differ(root: str) -> bool:
    return root.startswith(HF) or Path(root).exists()


def _moved(manifest: Mapping[str, Any], dataset: ImageDataset) -> bool:
    """Return whether a cache was made from a client's very samples, wherever they were then."""
    entries = ((images, client_entry(manifest, images.name)) for images in dataset.clients)
    return any(entry and entry.listing == listing(images) for images, entry in entries)


def _published(dataset: ImageDataset, root: str) -> bool:
    """Return whether two roots hold the same published dataset, one of them on the hub."""
    known = KNOWN.get(dataset.name)
    return (
        known is not None
        and known.hub is not None
        and f"{HF}{known.hub.repository}" in (root, dataset.root)
    )


def recall(cache_dir: Path, dataset: str, name: EncoderName) -> CacheFolder | None:
    """Find the cache made by this encoder, if its weights and the libraries are unchanged."""
    for folder in variants(cache_dir, dataset):
        manifest = folder.read_manifest()
        if (
            manifest.get("request") == encoder_request(name)
            and manifest.get("versions") == library_versions(name)
            and _unchanged(manifest.get("weights"))
        ):
            return folder
    return None


def _unchanged(files: Any) -> bool:
    try:
        return bool(files == stat_files([Path(file["path"]) for file in files]))
    except (OSError, TypeError, KeyError):
        return False


def make_entry(
    dataset: ImageDataset, rows: int, seen: str, skipped: Sequence[Skipped]
) -> dict[str, Any]:
    """Make a client's record, including where its images are."""
    return {
        "rows": rows,
        "listing": seen,
        "skipped": [{"id": item.id, "reason": item.reason} for item in skipped],
        **origin(dataset),
    }


def books_with(manifest: Mapping[str, Any], dataset: ImageDataset) -> dict[str, Any]:
    """Return a manifest's books by root, with those of `dataset` added."""
    return {**_books(manifest), str(dataset.root): dataset.books.to_json()}


def _books(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    books = manifest.get("books")
    return books if isinstance(books, dict) else {}


def make_forced_entry(dataset: ImageDataset) -> dict[str, Any]:
    """Make the record of a client whose file must not be used until `--force` has replaced it."""
    return {"forced": True, **origin(dataset)}


def forced_clients(manifest: Mapping[str, Any]) -> set[str]:
    """Return the clients whose files a forced extraction still has to replace."""
    return {client for client, entry in manifest.get("clients", {}).items() if entry.get("forced")}


def origin(dataset: ImageDataset) -> dict[str, Any]:
    """Return where a dataset's images are."""
    return {"root": str(dataset.root), **({"hub": dict(dataset.hub)} if dataset.hub else {})}


def clients_from(manifest: Mapping[str, Any], facts: Mapping[str, Any]) -> list[str]:
    """List the clients extracted from these rows on the hub; empty if any is missing."""
    made = {client: entry.get("hub") for client, entry in manifest.get("clients", {}).items()}
    for record in made.values():
        clients = record.get("clients") if isinstance(record, dict) else None
        if (
            isinstance(clients, list)
            and record == {**facts, "clients": clients}
            and all(made.get(client) == record for client in clients)
        ):
            return clients
    return []


def client_entry(manifest: Mapping[str, Any], client: str) -> ClientEntry | None:
    """Read a client's record; None if the manifest has none."""
    try:
        entry = manifest["clients"][client]
        skipped = tuple(Skipped(str(item["id"]), str(item["reason"])) for item in entry["skipped"])
        return ClientEntry(int(entry["rows"]), str(entry["listing"]), skipped)
    except (KeyError, TypeError, ValueError):
        return None


def made_of(request: Request, table: LocatedTable) -> Extraction | None:
    """Summarize the cache made from exactly these rows, which need not be on this machine.

    Returns:
        None if no cache matches, or it lacks something that is requested.
    """
    start = time.perf_counter()
    folder = recall(request.cache_dir, table.name, request.encoder)
    if folder is None:
        return None
    manifest = folder.read_manifest()
    found = _in_use(request, folder, manifest, clients_from(manifest, table.facts), start)
    books = Books.from_json(_books(manifest).get(table.root)) or Books("rows")
    return found and replace(found, books=books)


def up_to_date(request: Request, dataset: ImageDataset) -> Extraction | None:
    """Summarize the cache made from exactly these images.

    Returns:
        None if no cache matches, or it lacks something that is requested.
    """
    start = time.perf_counter()
    folder = recall(request.cache_dir, dataset.name, request.encoder)
    if folder is None:
        return None
    manifest = folder.read_manifest()
    for images in dataset.clients:
        entry = client_entry(manifest, images.name)
        if entry is None or entry.listing != listing(images):
            return None
        if images.lost({item.id for item in entry.skipped}):
            return None
    clients = [images.name for images in dataset.clients]
    return _in_use(request, folder, manifest, clients, start, dataset)


def _in_use(
    request: Request,
    folder: CacheFolder,
    manifest: Mapping[str, Any],
    clients: Sequence[str],
    start: float,
    dataset: ImageDataset | None = None,
) -> Extraction | None:
    """Summarize a cache that has all that is requested, and record its use; None of another."""
    class_names = dataset.class_names if dataset is not None else None
    found = _read(folder, manifest, clients, request.templates, start, class_names)
    if found is None or request.force or (request.strict and found.skipped):
        return None
    _note_use(folder, dataset)
    return found


def _note_use(folder: CacheFolder, dataset: ImageDataset | None = None) -> None:
    """Record where a cache's images are, and by the manifest's time that it was used last.

    Does nothing while another process is writing the cache, which will record this itself, or if
    the folder is read-only.
    """
    with suppress(BusyError, OSError), writing(folder):
        manifest = folder.read_manifest()  # others may have changed it
        if dataset is not None:
            remove_parts(folder.path)  # left if a run was killed after its last file
            manifest["root"] = str(dataset.root)
            manifest["books"] = books_with(manifest, dataset)
            entries = manifest.get("clients", {})
            for client in entries.keys() & {images.name for images in dataset.clients}:
                entries[client].update(origin(dataset))
        folder.write_manifest(manifest)


def _read(
    folder: CacheFolder,
    manifest: Mapping[str, Any],
    clients: Sequence[str],
    templates: Sequence[str],
    start: float,
    class_names: Sequence[str] | None = None,
) -> Extraction | None:
    """Summarize clients' files; None if one is missing or does not match the request."""
    if not clients or not all(folder.file(client).exists() for client in clients):
        return None
    caches = [read_cache(folder.file(client)) for client in clients]
    results = []
    for client, cache in zip(clients, caches, strict=True):
        entry = client_entry(manifest, client)
        if (
            entry is None
            or (cache.client, len(cache.labels)) != (client, entry.rows)
            or cache.key != manifest.get("key")
            or cache.class_names != tuple(class_names or caches[0].class_names)
            or cache.templates != caches[0].templates
            or (cache.templates and not set(templates) <= set(cache.templates))
        ):
            return None
        results.append(ClientResult(client, entry.rows, 0, entry.skipped))
    return Extraction(
        folder=folder,
        clients=tuple(results),
        classes=len(caches[0].class_names),
        embed_dim=caches[0].embed_dim,
        encoded_texts=0,
        seconds=time.perf_counter() - start,
    )

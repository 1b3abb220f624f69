"""Stage one: find what is missing, encode it, hand it to the cache.

Neither torch nor an encoder is imported until there is something to encode.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from ..cache import CacheFolder, read_cache
from ..cache.common.errors import BusyError
from ..cache.common.progress import Progress, no_progress
from ..cache.parts import remove_parts
from ..cache.store import writing
from .datasets.base import ImageDataset
from .datasets.find import find_dataset, opened
from .datasets.hub_tables import LocatedTable
from .encoders.spec import RANDOM
from .encoding.distributed import Ranks
from .hub import offline
from .manifest import check_root, client_entry, clients_from, listing, origin, recall
from .request import ClientResult, Extraction, Request

logger = logging.getLogger(__name__)


def extract(request: Request, progress: Progress = no_progress) -> Extraction:
    """Bring a data set's cache up to date: download and encode what it lacks, and nothing else.

    Raises:
        FedclipError: the data set, the encoder or the cache at hand cannot be used.
    """
    extraction = extract_share(request, Ranks(), progress)
    assert extraction is not None
    return extraction


def extract_share(
    request: Request, ranks: Ranks, progress: Progress = no_progress
) -> Extraction | None:
    """Do one rank's share of an extraction; the first rank returns what came of it.

    Raises:
        FedclipError: as `extract` does.
    """
    with offline(request.offline), ranks.together(request.cache_dir):
        if ranks.leads:
            return _lead(request, ranks, progress)
        if not ranks.ask("up to date"):  # by then a drawn dataset is there
            from .encoding.job import help_encoding

            help_encoding(request, opened(find_dataset(request)), ranks)
        return None


def _lead(request: Request, ranks: Ranks, progress: Progress) -> Extraction:
    found = find_dataset(request, progress)
    extraction = _made_before(request, found) if isinstance(found, LocatedTable) else None
    if extraction is not None:
        logger.info("dataset    %s: as on the hub", extraction.folder.name)
        ranks.tell("up to date", True)
        return extraction
    dataset = opened(found, progress)
    _log_dataset(dataset, request)
    check_root(request.cache_dir, dataset)
    extraction = _up_to_date(request, dataset)
    ranks.tell("up to date", extraction is not None)
    if extraction is None:
        from .encoding.job import encode_missing

        extraction = encode_missing(request, dataset, ranks, progress)
    if not dataset.alone:
        _warn_of_strays(extraction, dataset)
    return extraction


def _log_dataset(dataset: ImageDataset, request: Request) -> None:
    images = sum(len(client.images) for client in dataset.clients)
    at = f" at {dataset.hub['commit'][:8]}" if dataset.hub else ""
    logger.info(
        "dataset    %s: %d clients, %d classes, %d images below %s%s",
        dataset.name,
        len(dataset.clients),
        len(dataset.class_names),
        images,
        dataset.root,
        at,
    )
    for warning in dataset.warnings:
        logger.warning("%s", warning)
    if request.encoder.pretrained == RANDOM:
        logger.warning(
            "RANDOM WEIGHTS: %s is not trained, and its features mean nothing; use them to try "
            "the pipeline, never to report a result",
            request.encoder.model,
        )


def _warn_of_strays(extraction: Extraction, dataset: ImageDataset) -> None:
    wanted = {extraction.folder.file(images.name) for images in dataset.clients}
    for path in sorted(set(extraction.folder.files) - wanted):
        logger.warning(
            "%s is of a domain that %s no longer has; delete it if it should not take part",
            path,
            dataset.root,
        )


def _up_to_date(request: Request, dataset: ImageDataset) -> Extraction | None:
    """Tell what the cache holds if there is nothing to do."""
    folder = recall(request.cache_dir, dataset.name, request.encoder)
    extraction = _complete(folder, dataset, request.templates) if folder else None
    return extraction if extraction and _suffices(extraction, request) else None


def _suffices(complete: Extraction, request: Request) -> bool:
    return not request.force and not (request.strict and complete.skipped)


def _made_before(request: Request, table: LocatedTable) -> Extraction | None:
    """Tell whether a cache was made of these very rows, which then need not be here."""
    start = time.perf_counter()
    folder = recall(request.cache_dir, table.name, request.encoder)
    if folder is None:
        return None
    manifest = folder.read_manifest()
    clients = clients_from(manifest, table.facts)
    made = _read(folder, manifest, clients, request.templates, start)
    if made is None or not _suffices(made, request):
        return None
    _note_use(folder)
    return made


def _complete(
    folder: CacheFolder, dataset: ImageDataset, templates: Sequence[str]
) -> Extraction | None:
    """Tell whether a cache already holds everything; None if something is to be done."""
    start = time.perf_counter()
    manifest = folder.read_manifest()
    for images in dataset.clients:
        entry = client_entry(manifest, images.name)
        if entry is None or entry.listing != listing(images):
            return None
    clients = [images.name for images in dataset.clients]
    complete = _read(folder, manifest, clients, templates, start, dataset.class_names)
    if complete is None:
        return None
    _note_use(folder, dataset)
    return complete


def _note_use(folder: CacheFolder, dataset: ImageDataset | None = None) -> None:
    """Have the manifest's time say which cache was asked for last, and its roots where images are.

    Where another process is writing the cache, that one does it; where nothing may be written,
    as in a folder that is shared to be read, there is nothing to note.
    """
    with suppress(BusyError, OSError), writing(folder):
        manifest = folder.read_manifest()  # as others left it in the meantime
        if dataset is not None:
            remove_parts(folder.path)  # of a run that was killed after its last file
            manifest["root"] = str(dataset.root)
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
    """Sum up clients' files; None if one is missing or is not what is asked for."""
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

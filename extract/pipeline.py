"""Stage one: find what is missing, encode it, hand it to the cache.

Neither torch nor an encoder is imported until there is something to encode.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from ..cache import CacheFolder, read_cache
from ..cache.parts import remove_parts
from ..cache.report import Report
from ..cache.store import writing
from .datasets import ImageDataset
from .find import find_dataset
from .hub import offline
from .manifest import check_root, client_entry, clients_from, listing, origin, recall
from .names import RANDOM
from .request import ClientResult, Extraction, Request
from .tables import LocatedTable


def extract(request: Request, report: Report) -> Extraction:
    """Bring a data set's cache up to date: download and encode what it lacks, and nothing else.

    Raises:
        FedclipError: the data set, the encoder or the cache at hand cannot be used.
    """
    with offline(request.offline):
        found = find_dataset(request, report)
        if isinstance(found, LocatedTable):
            made = _made_before(request, found)
            if made is not None:
                report.note(f"data set   {found.name}: as on the hub at {found.snapshot.commit}")
                return made
            found = found.open(report)
        return _extract(request, found, report)


def _extract(request: Request, dataset: ImageDataset, report: Report) -> Extraction:
    images = sum(len(client.images) for client in dataset.clients)
    at = f" at {dataset.hub['commit'][:8]}" if dataset.hub else ""
    report.note(
        f"data set   {dataset.name}: {len(dataset.clients)} clients, "
        f"{len(dataset.class_names)} classes, {images} images below {dataset.root}{at}"
    )
    for warning in dataset.warnings:
        report.warn(warning)
    check_root(request.cache_dir, dataset)
    if request.encoder.pretrained == RANDOM:
        report.warn(
            f"RANDOM WEIGHTS: {request.encoder.model} is not trained, and its features mean "
            "nothing; use them to try the pipeline, never to report a result"
        )
    recalled = recall(request.cache_dir, dataset.name, request.encoder)
    complete = recalled and _complete(recalled, dataset, request.templates)
    if complete and _suffices(complete, request):
        extraction = complete
    else:
        from .encode import encode_missing

        extraction = encode_missing(request, dataset, report)
    if not dataset.alone:
        wanted = {extraction.folder.file(images.name) for images in dataset.clients}
        for path in sorted(set(extraction.folder.files) - wanted):
            report.warn(
                f"{path} is of a domain that {dataset.root} no longer has; "
                "delete it if it should not take part"
            )
    return extraction


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
    with writing(folder):
        folder.write_manifest(manifest)  # its time says which cache was asked for last
    return made


def _complete(
    folder: CacheFolder, dataset: ImageDataset, templates: Sequence[str]
) -> Extraction | None:
    """Tell whether a cache already holds everything; None if something is to be done."""
    start = time.perf_counter()
    manifest = folder.read_manifest()
    for images in dataset.clients:
        known, _ = client_entry(manifest, images.name)
        if not folder.file(images.name).exists() or known != listing(images):
            return None
    clients = [images.name for images in dataset.clients]
    complete = _read(folder, manifest, clients, templates, start, dataset.class_names)
    if complete is None:
        return None
    # Its time says which cache was asked for last, its roots where the images are now.
    entries = {client: {**manifest["clients"][client], **origin(dataset)} for client in clients}
    with writing(folder):
        remove_parts(folder.path)  # of a run that was killed after its last file
        folder.write_manifest(
            {
                **manifest,
                "root": str(dataset.root),
                "clients": {**manifest["clients"], **entries},
            }
        )
    return complete


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
    for cache in caches:
        if (
            cache.key != manifest.get("key")
            or cache.class_names != tuple(class_names or caches[0].class_names)
            or cache.templates != caches[0].templates
            or not set(templates) <= set(cache.templates)
        ):
            return None
    results = [
        ClientResult(client, len(cache.labels), 0, client_entry(manifest, client)[1])
        for client, cache in zip(clients, caches, strict=True)
    ]
    return Extraction.of(folder, results, caches[0], 0, time.perf_counter() - start)

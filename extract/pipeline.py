"""Stage one: find what is missing, encode it, hand it to the cache.

Neither torch nor an encoder is imported until there is something to encode.
"""

import time
from collections.abc import Sequence

from ..cache import CacheFolder, read_cache
from ..cache.parts import remove_parts
from ..cache.report import Report, Silence
from ..cache.store import writing
from .datasets import ImageDataset, obtain_dataset, open_dataset
from .manifest import check_root, client_entry, listing, recall
from .names import RANDOM
from .ranks import Ranks
from .request import ClientResult, Extraction, Request


def extract(request: Request, report: Report) -> Extraction:
    """Bring a data set's cache up to date: encode what it lacks, and nothing else.

    Raises:
        FedclipError: the data set, the encoder or the cache at hand cannot be used.
    """
    extraction = extract_share(request, Ranks(), report)
    assert extraction is not None
    return extraction


def extract_share(request: Request, ranks: Ranks, report: Report) -> Extraction | None:
    """Do one rank's share of an extraction; the first rank reports and returns what came of it.

    Raises:
        FedclipError: as `extract` does.
    """
    if not ranks.leads:
        report = Silence()
    with ranks.leader_first("data set"):
        obtain_dataset(request.dataset, request.data_dir, report)
    dataset = open_dataset(request.dataset, request.data_dir, request.name)
    _report_dataset(dataset, request, report)
    check_root(request.cache_dir, dataset)
    if ranks.leads:
        extraction = _up_to_date(request, dataset)
        ranks.tell("up to date", extraction is not None)
    else:
        extraction = None
        if ranks.ask("up to date"):
            return None
    if extraction is None:
        from .encode import encode_missing

        extraction = encode_missing(request, dataset, ranks, report)
    if extraction is not None:
        _warn_of_strays(extraction, dataset, report)
    return extraction


def _report_dataset(dataset: ImageDataset, request: Request, report: Report) -> None:
    images = sum(len(client.images) for client in dataset.clients)
    report.note(
        f"data set   {dataset.name}: {len(dataset.clients)} clients, "
        f"{len(dataset.class_names)} classes, {images} images below {dataset.root}"
    )
    for warning in dataset.warnings:
        report.warn(warning)
    if request.encoder.pretrained == RANDOM:
        report.warn(
            f"RANDOM WEIGHTS: {request.encoder.model} is not trained, and its features mean "
            "nothing; use them to try the pipeline, never to report a result"
        )


def _warn_of_strays(extraction: Extraction, dataset: ImageDataset, report: Report) -> None:
    wanted = {extraction.folder.file(images.name) for images in dataset.clients}
    for path in sorted(set(extraction.folder.files) - wanted):
        report.warn(
            f"{path} is of a domain that {dataset.root} no longer has; "
            "delete it if it should not take part"
        )


def _up_to_date(request: Request, dataset: ImageDataset) -> Extraction | None:
    """Tell what the cache holds if there is nothing to do."""
    if request.force:
        return None
    folder = recall(request.cache_dir, dataset.name, request.encoder)
    extraction = _complete(folder, dataset, request.templates) if folder else None
    if extraction and request.strict and extraction.skipped:
        return None
    return extraction


def _complete(
    folder: CacheFolder, dataset: ImageDataset, templates: Sequence[str]
) -> Extraction | None:
    """Tell whether a cache already holds everything; None if something is to be done."""
    start = time.perf_counter()
    manifest = folder.read_manifest()
    results, caches = [], []
    for images in dataset.clients:
        known, skipped = client_entry(manifest, images.name)
        if not folder.file(images.name).exists() or known != listing(images):
            return None
        cache = read_cache(folder.file(images.name))
        results.append(ClientResult(images.name, len(cache.labels), 0, skipped))
        caches.append(cache)
    for cache in caches:
        if (
            cache.key != manifest.get("key")
            or cache.class_names != dataset.class_names
            or cache.templates != caches[0].templates
            or not set(templates) <= set(cache.templates)
        ):
            return None
    # Its time says which cache was asked for last, its root where the images are now.
    with writing(folder):
        remove_parts(folder.path)  # of a run that was killed after its last file
        folder.write_manifest({**manifest, "root": str(dataset.root)})
    return Extraction(
        folder=folder,
        clients=tuple(results),
        classes=len(dataset.class_names),
        embed_dim=caches[0].embed_dim,
        encoded_texts=0,
        seconds=time.perf_counter() - start,
    )

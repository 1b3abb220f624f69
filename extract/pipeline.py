"""Stage one: find what is missing, encode it, write the cache.

Neither torch nor an encoder is imported before something has to be encoded.
"""

import logging
from dataclasses import replace
from pathlib import Path

from ..cache import FedclipError
from ..cache.common.progress import Progress, no_progress
from ..cache.common.text import counted
from .datasets.base import ImageDataset
from .datasets.find import find_dataset, opened
from .datasets.hub_tables import LocatedTable
from .datasets.registry import noun
from .encoders.registry import family_of
from .encoders.spec import DEFAULT_MODEL, RANDOM, TRANSFORMERS, EncoderName
from .encoding.distributed import Ranks
from .hub import offline
from .manifest import check_root, made_of, up_to_date
from .request import Extraction, Request

logger = logging.getLogger(__name__)


def extract(request: Request, progress: Progress = no_progress) -> Extraction:
    """Bring a dataset's cache up to date: download and encode only what is missing.

    Raises:
        FedclipError: the dataset, the encoder or the cache on disk cannot be used.
    """
    extraction = extract_share(request, Ranks(), progress)
    assert extraction is not None
    return extraction


def extract_share(
    request: Request, ranks: Ranks, progress: Progress = no_progress
) -> Extraction | None:
    """Do one rank's share of an extraction; only the first rank returns the result.

    Raises:
        FedclipError: as `extract` does.
    """
    with offline(request.offline), ranks.together(request.cache_dir):
        if ranks.leads:
            return _lead(request, ranks, progress)
        if not ranks.ask("up to date"):  # by then, rank 0 has drawn it if needed
            from .encoding.job import help_encoding

            help_encoding(request, opened(find_dataset(request)), ranks)
        return None


def _lead(request: Request, ranks: Ranks, progress: Progress) -> Extraction:
    found = find_dataset(request, progress)
    extraction = made_of(request, found) if isinstance(found, LocatedTable) else None
    if extraction is not None:
        logger.info("dataset    %s: unchanged on the hub", extraction.folder.name)
        ranks.tell("up to date", True)
        return extraction
    dataset = opened(found, progress)
    check_kind(request.encoder, dataset)
    _log_dataset(dataset, request)
    check_root(request.cache_dir, dataset)
    extraction = up_to_date(request, dataset)
    ranks.tell("up to date", extraction is not None)
    if extraction is None:
        from .encoding.job import encode_missing

        extraction = encode_missing(request, dataset, ranks, progress)
    extraction = replace(extraction, books=dataset.books, samples=dataset.samples)
    if not dataset.alone:
        _warn_of_strays(extraction, dataset)
    return extraction


def check_kind(encoder: EncoderName, dataset: ImageDataset) -> None:
    """Refuse to encode texts as images, or images as texts.

    Raises:
        FedclipError: the dataset has other samples than the encoder takes.
    """
    encoded = family_of(encoder).samples
    if encoded != dataset.samples:
        example = f"{TRANSFORMERS}OWNER/NAME" if dataset.samples == "texts" else DEFAULT_MODEL
        raise FedclipError(
            f"--model {encoder.model}: encodes {encoded}, but {dataset.root} contains "
            f"{dataset.samples}; choose a model of {dataset.samples}, such as --model {example}"
        )


def _log_dataset(dataset: ImageDataset, request: Request) -> None:
    size = sum(len(client.images) for client in dataset.clients)
    at = f" at {dataset.hub['commit'][:8]}" if dataset.hub else ""
    logger.info(
        "dataset    %s: %s, %s, %s %s %s%s",
        dataset.name,
        counted(len(dataset.clients), "client"),
        counted(len(dataset.class_names), "class", "classes"),
        counted(size, noun(dataset.samples)),
        "in" if Path(dataset.root).is_file() else "below",
        dataset.root,
        at,
    )
    if dataset.layout:
        logger.info("           read as %s", dataset.layout)
    for warning in dataset.warnings:
        logger.warning("%s", warning)
    for encoder in request.encoder.each:
        if encoder.pretrained == RANDOM:
            logger.warning(
                "RANDOM WEIGHTS: %s is not trained, so its features are meaningless; use them to "
                "test the pipeline, never to report results",
                encoder.model,
            )


def _warn_of_strays(extraction: Extraction, dataset: ImageDataset) -> None:
    wanted = {extraction.folder.file(images.name) for images in dataset.clients}
    for path in sorted(set(extraction.folder.files) - wanted):
        logger.warning(
            "%s: belongs to a domain that is no longer in %s; delete it if it should not take part",
            path,
            dataset.root,
        )

"""Stage one: find what is missing, encode it, hand it to the cache.

Neither torch nor an encoder is imported until there is something to encode.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..cache import (
    CacheError,
    CacheFolder,
    FeatureCache,
    FedclipError,
    image_key,
    read_cache,
    write_cache,
)
from ..cache.key import differing_facts
from ..cache.report import Report
from ..cache.schema import content_digest
from .datasets import ClientImages, ImageDataset, obtain_dataset, open_dataset
from .manifest import (
    Skipped,
    check_root,
    client_entry,
    encoder_request,
    library_versions,
    listing,
    recall,
    stat_files,
)
from .names import RANDOM, EncoderName
from .prompts import prompt

if TYPE_CHECKING:
    from .encoders import Encoder

DEFAULT_BATCH_SIZE = 64
MAX_WORKERS = 16

Vector = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Request:
    """What to extract.

    Attributes:
        dataset: A published data set's name, or a folder.
        encoder: The encoder's name.
        templates: Prompt templates, each with one ``{}``.
        data_dir: Where data sets are looked for.
        cache_dir: Where caches are kept.
        name: What the caches are filed under; None for the data set's own name.
        batch_size: The one batch shape that the encoder sees.
        workers: Processes that decode images; None for what suits the device.
        device: ``auto`` or a torch device.
    """

    dataset: str
    encoder: EncoderName
    templates: tuple[str, ...]
    data_dir: Path
    cache_dir: Path
    name: str | None = None
    batch_size: int = DEFAULT_BATCH_SIZE
    workers: int | None = None
    device: str = "auto"


@dataclass(frozen=True)
class ClientResult:
    """What became of a client: rows in its file, how many were encoded now, what was left out."""

    client: str
    rows: int
    encoded: int
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True)
class Extraction:
    """What an extraction left behind.

    Attributes:
        folder: The cache.
        clients: What became of each client.
        classes: Number of classes.
        embed_dim: Width of the features.
        encoded_texts: Prompts encoded now.
        seconds: Wall-clock time of reading, encoding and writing; without loading the encoder.
    """

    folder: CacheFolder
    clients: tuple[ClientResult, ...]
    classes: int
    embed_dim: int
    encoded_texts: int
    seconds: float

    @property
    def encoded(self) -> int:
        """Images encoded now."""
        return sum(client.encoded for client in self.clients)


def extract(request: Request, report: Report) -> Extraction:
    """Bring a data set's cache up to date: encode what it lacks, and nothing else.

    Raises:
        FedclipError: the data set, the encoder or the cache at hand cannot be used.
    """
    obtain_dataset(request.dataset, request.data_dir, report)
    dataset = open_dataset(request.dataset, request.data_dir, request.name)
    images = sum(len(client.images) for client in dataset.clients)
    report.note(
        f"data set   {dataset.name}: {len(dataset.clients)} clients, "
        f"{len(dataset.class_names)} classes, {images} images below {dataset.root}"
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
    extraction = complete or _encode_missing(request, dataset, report)
    wanted = {extraction.folder.file(images.name) for images in dataset.clients}
    for path in sorted(set(extraction.folder.files) - wanted):
        report.warn(
            f"{path} is of a domain that {dataset.root} no longer has; "
            "delete it if it should not take part"
        )
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
    folder.write_manifest({**manifest, "root": str(dataset.root)})
    return _summary(folder, results, caches[0], 0, start)


def _summary(
    folder: CacheFolder,
    results: Sequence[ClientResult],
    cache: FeatureCache,
    encoded_texts: int,
    start: float,
) -> Extraction:
    return Extraction(
        folder=folder,
        clients=tuple(results),
        classes=len(cache.class_names),
        embed_dim=cache.embed_dim,
        encoded_texts=encoded_texts,
        seconds=time.perf_counter() - start,
    )


def _encode_missing(request: Request, dataset: ImageDataset, report: Report) -> Extraction:
    from ..cache.device import resolve_device
    from .encoders import load_encoder

    encoder = load_encoder(request.encoder, resolve_device(request.device))
    key = image_key(encoder.facts)
    folder = CacheFolder(request.cache_dir / dataset.name / f"{request.encoder.variant}-{key[:8]}")
    manifest = folder.read_manifest()
    batch_size = _batch_size(manifest, request)
    report.note(
        f"encoder    {' '.join(request.encoder.shown)}, {request.encoder.precision} on "
        f"{encoder.device}, batches of {batch_size}"
    )
    if batch_size != request.batch_size:
        report.note(f"           (this cache was begun with batches of {batch_size})")
    start = time.perf_counter()
    previous = _previous(folder, encoder)
    texts = _Texts.known(previous, dataset.class_names, request.templates)
    encoded_texts = texts.encode_missing(encoder, batch_size)
    vectors = {
        digest.tobytes(): vector
        for cache in previous
        for digest, vector in zip(cache.digests, cache.image_features, strict=True)
    }
    manifest = {
        "dataset": dataset.name,
        "root": str(dataset.root),
        "request": encoder_request(request.encoder),
        "weights": stat_files(encoder.sources),
        "versions": library_versions(),
        "key": key,
        "encoder": dict(encoder.facts),
        "batch_size": batch_size,
        "clients": manifest.get("clients", {}),
    }
    workers = _workers(request.workers, encoder)
    results = []
    with _kept_if_filled(folder.path):
        for images in dataset.clients:
            seen = listing(images)  # before reading, so that a later change is seen as one
            rows = _encode_client(encoder, images, vectors, batch_size, workers, report)
            cache = _client_cache(encoder, dataset, images, rows, texts)
            write_cache(cache, folder.file(images.name))
            skipped = tuple(
                Skipped(image.id, row.problem)
                for image, row in zip(images.images, rows, strict=True)
                if row.vector is None
            )
            encoded = sum(row.encoded for row in rows)
            results.append(ClientResult(images.name, len(cache.labels), encoded, skipped))
            manifest["clients"][images.name] = {
                "rows": len(cache.labels),
                "listing": seen,
                "skipped": [{"id": item.id, "reason": item.reason} for item in skipped],
            }
            folder.write_manifest(manifest)
    return _summary(folder, results, cache, encoded_texts, start)


def _batch_size(manifest: Mapping[str, Any], request: Request) -> int:
    """Keep to the batch shape that a cache was begun with: another moves vectors by rounding."""
    begun = manifest.get("batch_size")
    return begun if isinstance(begun, int) and begun > 0 else request.batch_size


def _previous(folder: CacheFolder, encoder: Encoder) -> list[FeatureCache]:
    """Read what the cache holds already.

    Raises:
        CacheError: a file is damaged, or of another encoder.
    """
    caches = []
    for path in folder.files:
        cache = read_cache(path)
        if cache.key != image_key(encoder.facts):
            facts = ", ".join(differing_facts(cache.encoder, encoder.facts))
            raise CacheError(
                f"{path}: is of another encoder than this cache ({facts}); move it elsewhere"
            )
        caches.append(cache)
    return caches


@contextmanager
def _kept_if_filled(folder: Path) -> Iterator[None]:
    """Make a folder, and remove it again if nothing came into it."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for path in (folder, folder.parent):
            if not any(path.iterdir()):
                path.rmdir()


@dataclass(frozen=True)
class _Row:
    """An image's vector and content hash, or why it has none."""

    vector: Vector | None
    digest: bytes
    problem: str = ""
    encoded: bool = False


@dataclass
class _Texts:
    """Text features by class and template, and which of them are wanted."""

    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    vectors: dict[tuple[str, str], Vector]

    @classmethod
    def known(
        cls,
        caches: Sequence[FeatureCache],
        class_names: tuple[str, ...],
        wanted: Sequence[str],
    ) -> _Texts:
        """Take over what caches hold; their templates stay, and stay first."""
        templates = [template for cache in caches for template in cache.templates]
        vectors = {
            (class_name, template): cache.text_features[row, column]
            for cache in caches
            for row, class_name in enumerate(cache.class_names)
            for column, template in enumerate(cache.templates)
        }
        return cls(class_names, tuple(dict.fromkeys([*templates, *wanted])), vectors)

    def encode_missing(self, encoder: Encoder, batch_size: int) -> int:
        """Encode the prompts not known yet, and return how many these were."""
        missing = [
            (class_name, template)
            for class_name in self.class_names
            for template in self.templates
            if (class_name, template) not in self.vectors
        ]
        if missing:
            prompts = [prompt(template, class_name) for class_name, template in missing]
            features = encoder.encode_texts(prompts, batch_size)
            self.vectors.update(zip(missing, features, strict=True))
        return len(missing)

    def features(self) -> Vector:
        """Stack the wanted vectors: (C, P, D) float32."""
        return np.stack(
            [
                np.stack([self.vectors[class_name, template] for template in self.templates])
                for class_name in self.class_names
            ]
        )


def _workers(requested: int | None, encoder: Encoder) -> int:
    if requested is not None:
        return requested
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    # On a CPU the encoder itself wants all cores; one process hides the reading.
    return 1 if encoder.device.type == "cpu" else max(1, min(cores - 1, MAX_WORKERS))


def _encode_client(
    encoder: Encoder,
    images: ClientImages,
    vectors: Mapping[bytes, Vector],
    batch_size: int,
    workers: int,
    report: Report,
) -> list[_Row]:
    """Give each of a client's images its row: carried over by content, or encoded now."""
    from .images import load_batches

    digests = [_digest(image.path) if vectors else None for image in images.images]
    missing = [index for index, digest in enumerate(digests) if digest not in vectors]
    rows = {
        index: _Row(vectors[digest], digest)
        for index, digest in enumerate(digests)
        if digest is not None and digest in vectors
    }
    done = skipped = 0
    if missing:
        report.progress(images.name, done, len(missing), "images")
    paths = [images.images[index].path for index in missing]
    indices = iter(missing)
    for batch in load_batches(paths, encoder.transform, encoder.pixel_shape, batch_size, workers):
        features = encoder.encode_images(batch.pixels)
        for vector, digest, problem in zip(features, batch.digests, batch.problems, strict=False):
            rows[next(indices)] = (
                _Row(None, digest, problem) if problem else _Row(vector, digest, encoded=True)
            )
        done += len(batch.digests)
        skipped += sum(map(bool, batch.problems))
        report.progress(
            images.name,
            done,
            len(missing),
            "images",
            f"{skipped} skipped" if skipped else "",
        )
    return [rows[index] for index in range(len(images.images))]


def _digest(path: Path) -> bytes | None:
    try:
        return content_digest(path.read_bytes())
    except OSError:
        return None  # decoding will say why


def _client_cache(
    encoder: Encoder,
    dataset: ImageDataset,
    images: ClientImages,
    rows: Sequence[_Row],
    texts: _Texts,
) -> FeatureCache:
    kept = [
        (image, row.digest, row.vector)
        for image, row in zip(images.images, rows, strict=True)
        if row.vector is not None
    ]
    if not kept:
        raise FedclipError(
            f"{images.name}: not one of its {len(rows)} images could be used; the first, "
            f"{images.images[0].path}, {rows[0].problem}"
        )
    try:
        return FeatureCache(
            dataset=dataset.name,
            client=images.name,
            encoder=encoder.facts,
            logit_scale=encoder.logit_scale,
            normalized=False,
            image_features=np.stack([vector for _, _, vector in kept]),
            labels=np.array([image.label for image, _, _ in kept], dtype=np.int32),
            ids=tuple(image.id for image, _, _ in kept),
            digests=np.stack([np.frombuffer(digest, np.uint8) for _, digest, _ in kept]),
            class_names=texts.class_names,
            templates=texts.templates,
            text_features=texts.features(),
        )
    except CacheError as error:
        raise FedclipError(
            f"{images.name}: what {encoder.name.model} made of it {error}; "
            "its weights or --precision do not suit"
        ) from None

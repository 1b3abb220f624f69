"""Stage one: find what is missing, encode it, hand it to the cache.

Neither torch nor an encoder is imported until there is something to encode.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

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
from ..cache.report import Report
from ..cache.schema import content_digest
from .datasets import ClientImages, ImageDataset, open_dataset
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
    return complete or _encode_missing(request, dataset, report)


def _complete(
    folder: CacheFolder, dataset: ImageDataset, templates: Sequence[str]
) -> Extraction | None:
    """Tell whether a cache already holds everything; None if something is to be done."""
    manifest = folder.read_manifest()
    start = time.perf_counter()
    results, embed_dim = [], 0
    for images in dataset.clients:
        known, skipped = client_entry(manifest, images.name)
        if not folder.file(images.name).exists() or known != listing(images):
            return None
        cache = read_cache(folder.file(images.name))
        if cache.class_names != dataset.class_names or not set(templates) <= set(cache.templates):
            return None
        results.append(ClientResult(images.name, len(cache.labels), 0, skipped))
        embed_dim = cache.embed_dim
    folder.write_manifest(manifest)  # its time says which cache was asked for last
    seconds = time.perf_counter() - start
    return Extraction(folder, tuple(results), len(dataset.class_names), embed_dim, 0, seconds)


def _encode_missing(request: Request, dataset: ImageDataset, report: Report) -> Extraction:
    from ..cache.device import resolve_device
    from .encoders import load_encoder

    encoder = load_encoder(request.encoder, resolve_device(request.device))
    key = image_key(encoder.facts)
    folder = CacheFolder(request.cache_dir / dataset.name / f"{request.encoder.variant}-{key[:8]}")
    manifest = folder.read_manifest()
    batch_size = int(manifest.get("batch_size", request.batch_size))
    report.note(
        f"encoder    {' '.join(request.encoder.shown)}, {request.encoder.precision} on "
        f"{encoder.device}, batches of {batch_size}"
    )
    if batch_size != request.batch_size:
        report.note(
            f"           (this cache was begun with batches of {batch_size}, and keeps to it)"
        )
    start = time.perf_counter()
    previous = [read_cache(path) for path in folder.files]
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
    results = []
    for images in dataset.clients:
        seen = listing(images)  # before reading, so that a later change is seen as one
        rows = _encode_client(
            encoder,
            images,
            vectors,
            batch_size,
            _workers(request.workers, encoder),
            report,
        )
        cache = _client_cache(encoder, dataset, images, rows, texts)
        folder.path.mkdir(parents=True, exist_ok=True)
        write_cache(cache, folder.file(images.name))
        skipped = tuple(
            Skipped(image.id, row.problem)
            for image, row in zip(images.images, rows, strict=True)
            if row.vector is None
        )
        manifest["clients"][images.name] = {
            "rows": len(cache.labels),
            "listing": seen,
            "skipped": [{"id": item.id, "reason": item.reason} for item in skipped],
        }
        folder.write_manifest(manifest)
        encoded = sum(row.encoded for row in rows)
        results.append(ClientResult(images.name, len(cache.labels), encoded, skipped))
    stale = {cache.client for cache in previous} - {images.name for images in dataset.clients}
    for client in sorted(stale):
        report.warn(
            f"{folder.file(client)} is of a domain that {dataset.root} no longer has; "
            "delete it if it should not take part"
        )
    return Extraction(
        folder=folder,
        clients=tuple(results),
        classes=len(dataset.class_names),
        embed_dim=cache.embed_dim,
        encoded_texts=encoded_texts,
        seconds=time.perf_counter() - start,
    )


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

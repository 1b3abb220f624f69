"""Encodes what a cache lacks. Importing this imports torch and open_clip."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
from ..cache.device import resolve_device
from ..cache.key import differing_facts
from ..cache.parts import read_parts, remove_parts, write_part
from ..cache.report import Report
from ..cache.schema import content_digest
from ..cache.store import writing
from .datasets import ClientImages, ImageDataset
from .encoders import Encoder, load_encoder
from .images import load_batches
from .manifest import (
    Skipped,
    encoder_request,
    library_versions,
    listing,
    make_entry,
    stat_files,
)
from .request import ClientResult, Extraction, Request
from .sources import Source
from .texts import Texts
from .weights import fetch_encoder

MAX_WORKERS = 16

# What a killed extraction loses at most: a dozen seconds on a CPU, none on a GPU.
PART_ROWS = 256

Vector = npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Row:
    """An image's vector and content hash, or why it has none."""

    vector: Vector | None
    digest: bytes
    problem: str = ""
    encoded: bool = False


# A client's images, what was seen of them, and their rows.
_EncodedClient = tuple[ClientImages, str, list[_Row]]


def encode_missing(request: Request, dataset: ImageDataset, report: Report) -> Extraction:
    """Encode what a cache lacks, client by client, and carry over the rest by content.

    Raises:
        FedclipError: the encoder or the cache at hand cannot be used, another process
            is writing the cache, or no image of a client can be decoded (with
            `strict`, one that cannot).
    """
    fetch_encoder(request.encoder, report)
    encoder = load_encoder(request.encoder, resolve_device(request.device))
    key = image_key(encoder.facts)
    folder = CacheFolder(request.cache_dir / dataset.name / f"{request.encoder.variant}-{key[:8]}")
    with writing(folder):
        return _encode_into(folder, key, encoder, request, dataset, report)


def _encode_into(
    folder: CacheFolder,
    key: str,
    encoder: Encoder,
    request: Request,
    dataset: ImageDataset,
    report: Report,
) -> Extraction:
    start = time.perf_counter()
    if request.force:
        remove_parts(folder.path)
    manifest = {} if request.force else folder.read_manifest()
    batch_size = _batch_size(manifest, request)
    report.note(
        f"encoder    {' '.join(request.encoder.shown)}, {request.encoder.precision} on "
        f"{encoder.device}, batches of {batch_size}"
    )
    if batch_size != request.batch_size:
        report.note(f"           (this cache was begun with batches of {batch_size})")
    previous = [] if request.force else _previous(folder, key, encoder)
    texts = Texts.known(previous, dataset.class_names, request.templates)
    encoded_texts = texts.encode_missing(encoder, batch_size)
    vectors = read_parts(folder.path)
    if vectors:
        report.note(f"           (taking up {len(vectors)} images that were encoded before)")
    for cache in previous:
        vectors |= zip(
            (digest.tobytes() for digest in cache.digests), cache.image_features, strict=True
        )
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
    task = _Encoding(folder, encoder, manifest, _workers(request.workers, encoder), report)
    # What was seen before reading, so that a later change is noticed as one.
    encoded: Iterator[_EncodedClient] = (
        (images, listing(images), task.encode(images, vectors)) for images in dataset.clients
    )
    if request.strict:
        encoded = iter(_without_problems(list(encoded)))
    results = []
    for images, seen, rows in encoded:
        cache = _client_cache(encoder, dataset, images, rows, texts)
        write_cache(cache, folder.file(images.name))
        skipped = _skipped(images, rows)
        fresh = sum(row.encoded for row in rows)
        results.append(ClientResult(images.name, len(cache.labels), fresh, skipped))
        manifest["clients"][images.name] = make_entry(dataset, len(cache.labels), seen, skipped)
        folder.write_manifest(manifest)
    remove_parts(folder.path)
    return Extraction.of(folder, results, cache, encoded_texts, time.perf_counter() - start)


def _batch_size(manifest: Mapping[str, Any], request: Request) -> int:
    """Keep to the batch shape that a cache was begun with: another moves vectors by rounding."""
    begun = manifest.get("batch_size")
    return begun if isinstance(begun, int) and begun > 0 else request.batch_size


def _previous(folder: CacheFolder, key: str, encoder: Encoder) -> list[FeatureCache]:
    """Read what the cache holds already.

    Raises:
        CacheError: a file is damaged, or of another encoder.
    """
    caches = []
    for path in folder.files:
        cache = read_cache(path)
        if cache.key != key:
            facts = ", ".join(differing_facts(cache.encoder, encoder.facts))
            raise CacheError(
                f"{path}: is of another encoder than this cache ({facts}); move it elsewhere"
            )
        caches.append(cache)
    return caches


def _skipped(images: ClientImages, rows: Sequence[_Row]) -> tuple[Skipped, ...]:
    return tuple(
        Skipped(image.id, row.problem)
        for image, row in zip(images.images, rows, strict=True)
        if row.vector is None
    )


def _without_problems(clients: list[_EncodedClient]) -> list[_EncodedClient]:
    """Let clients pass only if every image of every one could be used."""
    skipped = [item for images, _, rows in clients for item in _skipped(images, rows)]
    if skipped:
        raise FedclipError(
            f"{len(skipped)} images cannot be used, the first, {skipped[0].id}, "
            f"{skipped[0].reason}; mend or remove them, or leave out --strict"
        )
    return clients


def _workers(requested: int | None, encoder: Encoder) -> int:
    if requested is not None:
        return requested
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    # On a CPU the encoder itself wants all cores; one process hides the reading.
    return 1 if encoder.device.type == "cpu" else max(1, min(cores - 1, MAX_WORKERS))


@dataclass(frozen=True)
class _Encoding:
    """An extraction into one cache, whose `manifest` has the batch shape."""

    folder: CacheFolder
    encoder: Encoder
    manifest: dict[str, Any]
    workers: int
    report: Report

    def encode(self, images: ClientImages, vectors: Mapping[bytes, Vector]) -> list[_Row]:
        """Give each of a client's images its row: carried over by content, or encoded now."""
        digests = [_digest(image.source) if vectors else None for image in images.images]
        missing = [index for index, digest in enumerate(digests) if digest not in vectors]
        rows = {
            index: _Row(vectors[digest], digest)
            for index, digest in enumerate(digests)
            if digest is not None and digest in vectors
        }
        fresh = self._encode([images.images[index].source for index in missing], images.name)
        rows |= zip(missing, fresh, strict=True)
        return [rows[index] for index in range(len(images.images))]

    def _encode(self, sources: Sequence[Source], client: str) -> Iterator[_Row]:
        """Encode images in order, and keep every few hundred rows as a part."""
        if not sources:
            return
        batch_size = self.manifest["batch_size"]
        shape, done, skipped = self.encoder.pixel_shape, 0, 0
        unkept: list[_Row] = []
        self.report.progress(client, done, len(sources), "images")
        for batch in load_batches(sources, self.encoder.transform, shape, batch_size, self.workers):
            features = self.encoder.encode_images(batch.pixels)
            rows = [
                _Row(None, digest, problem) if problem else _Row(vector, digest, encoded=True)
                for vector, digest, problem in zip(
                    features, batch.digests, batch.problems, strict=False
                )
            ]
            yield from rows
            done += len(rows)
            skipped += sum(bool(row.problem) for row in rows)
            unkept += [row for row in rows if row.vector is not None]
            if len(unkept) >= PART_ROWS:
                self._keep(unkept)
                unkept = []
            detail = f"{skipped} skipped" if skipped else ""
            self.report.progress(client, done, len(sources), "images", detail)

    def _keep(self, rows: Sequence[_Row]) -> None:
        self.folder.write_manifest(self.manifest)  # first, as the batch shape goes with the part
        vectors = [row.vector for row in rows if row.vector is not None]
        write_part(self.folder.path, [row.digest for row in rows], vectors)


def _digest(source: Source) -> bytes | None:
    try:
        return content_digest(source.read())
    except OSError:
        return None  # decoding will say why


def _client_cache(
    encoder: Encoder,
    dataset: ImageDataset,
    images: ClientImages,
    rows: Sequence[_Row],
    texts: Texts,
) -> FeatureCache:
    kept = [
        (image, row.digest, row.vector)
        for image, row in zip(images.images, rows, strict=True)
        if row.vector is not None
    ]
    if not kept:
        raise FedclipError(
            f"{images.name}: not one of its {len(rows)} images could be used; the first, "
            f"{dataset.root}/{images.images[0].id}, {rows[0].problem}"
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

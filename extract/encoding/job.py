"""Encodes what a cache lacks. Importing this imports torch."""

import base64
import errno
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from ...cache import (
    CacheError,
    CacheFolder,
    FeatureCache,
    FedclipError,
    image_key,
    read_cache,
)
from ...cache.common.device import resolve_device
from ...cache.common.progress import Progress, no_progress
from ...cache.key import differing_facts
from ...cache.parts import PARTS, KnownVectors, find_parts, remove_parts
from ...cache.schema import content_digest
from ...cache.store import writing
from ...cache.writer import write_caches
from ..datasets.base import ClientImages, ImageDataset
from ..datasets.sources import Source
from ..encoders.base import ImageEncoder
from ..encoders.registry import fetch_encoder, library_versions, load_encoder
from ..encoders.spec import RESIZERS
from ..manifest import (
    Skipped,
    encoder_request,
    forced_clients,
    listing,
    listings,
    make_entry,
    make_forced_entry,
    stat_files,
)
from ..request import ClientResult, Extraction, Request
from .clock import Clock
from .distributed import Ranks
from .loader import UNREAD
from .texts import Texts
from .worker import ENCODING, WRITING, Receipt, Share, Task

logger = logging.getLogger(__name__)

MAX_WORKERS = 16

CPU_BATCH = 64
GPU_BATCH = 256

# Why an image cannot be read whatever its disk does: it may not be, or leads nowhere. One that
# was there before has another listing now.
_OWN_REASONS = frozenset({errno.EACCES, errno.EPERM, errno.ENOENT, errno.ELOOP, errno.EISDIR})


@dataclass(frozen=True)
class _Outcome:
    """An image's content hash, and why it has no vector, or an empty string."""

    digest: bytes
    problem: str = ""


@dataclass(frozen=True)
class _Job:
    """An extraction into one cache, seen from one rank."""

    request: Request
    dataset: ImageDataset
    encoder: ImageEncoder
    folder: CacheFolder
    ranks: Ranks
    progress: Progress
    key: str
    clock: Clock = field(default_factory=Clock)

    @classmethod
    def of(cls, request: Request, dataset: ImageDataset, ranks: Ranks, progress: Progress) -> Self:
        """Load the encoder, whose key names the cache."""
        encoder = load_encoder(request.encoder, resolve_device(request.device, ranks.local_rank))
        if not isinstance(encoder, ImageEncoder):
            raise FedclipError(
                f"{request.encoder.model}: encodes texts only; give a --model that encodes images"
            )
        key = image_key(encoder.facts)
        path = request.cache_dir / dataset.name / f"{request.encoder.variant}-{key[:8]}"
        return cls(request, dataset, encoder, CacheFolder(path), ranks, progress, key)

    @property
    def tasks(self) -> list[Task]:
        """Every image of every client, numbered through."""
        images = [
            (client.name, image) for client in self.dataset.clients for image in client.images
        ]
        return [Task(number, name, image.source) for number, (name, image) in enumerate(images)]

    def share(self, tasks: Sequence[Task], batch_size: int) -> Share:
        """Begin this rank's share of `tasks`; a batch is always one rank's."""
        workers = self.request.workers
        if workers is None:
            workers = default_workers(self.encoder.device, self.ranks.local_size)
        starts = self.ranks.share(range(0, len(tasks), batch_size))
        return Share(
            self.encoder,
            self.folder.path,
            [task for start in starts for task in tasks[start : start + batch_size]],
            batch_size,
            workers,
            self.clock,
            self.progress,
        )


def encode_missing(
    request: Request, dataset: ImageDataset, ranks: Ranks, progress: Progress = no_progress
) -> Extraction:
    """Encode what a cache lacks, with the help of the other ranks, and carry over the rest.

    Raises:
        FedclipError: the encoder or the cache at hand cannot be used, another process
            is writing the cache, or no image of a client can be decoded (with
            `strict`, one that cannot).
    """
    fetch_encoder(request.encoder, progress)
    ranks.tell("weights", "here")
    job = _Job.of(request, dataset, ranks, progress)
    with writing(job.folder):
        return _encode(job)


def help_encoding(request: Request, dataset: ImageDataset, ranks: Ranks) -> None:
    """Encode this rank's share of what the first finds missing, and tell what became of it.

    Raises:
        FedclipError: the encoder cannot be used, or it or the files here are others.
    """
    ranks.ask("weights")
    job = _Job.of(request, dataset, ranks, no_progress)
    plan = ranks.ask("plan")
    _check_plan(job, plan)
    tasks = job.tasks
    missing = np.unpackbits(np.frombuffer(base64.b64decode(plan["missing"]), np.uint8))
    share = job.share([tasks[number] for number in np.flatnonzero(missing)], plan["batch_size"])
    told = 0
    for receipt in share.encode():
        ranks.tell(f"receipt/{ranks.rank}/{told}", asdict(receipt))
        told += 1
    ranks.tell(f"receipt/{ranks.rank}/{told}", None)


def _check_plan(job: _Job, plan: Mapping[str, Any]) -> None:
    """Refuse to encode other images than the first rank means, or with another encoder."""
    rank, seen = job.ranks.rank, listings(job.dataset)
    if job.key != plan["key"]:
        raise FedclipError(
            f"{job.encoder.name.model}: rank {rank} has another encoder here, of the key "
            f"{job.key[:8]}, than rank 0, of {plan['key'][:8]}; all ranks must have the same "
            "weights and options"
        )
    if [*seen.items()] != [*plan["listings"].items()]:  # in order, as images are numbered through
        raise FedclipError(
            f"{job.dataset.root}: rank {rank} finds other images here than rank 0; all ranks must "
            "see the same files"
        )


def _encode(job: _Job) -> Extraction:
    start = time.perf_counter()
    request, dataset, folder, encoder = job.request, job.dataset, job.folder, job.encoder
    manifest = folder.read_manifest()
    entries = manifest.setdefault("clients", {})
    if request.force:
        remove_parts(folder.path)
        entries.update(_forced_entries(job))
    standing = _standing(folder, manifest)
    batch_size = _batch_size(job, manifest, standing)
    _note_encoder(job, batch_size)
    if not request.force and len(standing) < len(folder.files):
        logger.info("           (resuming what --force began)")
    known, texts = _known(job, () if request.force else standing)
    # What was seen before reading, so that a later change is noticed as one.
    seen = listings(dataset)
    tasks = job.tasks
    outcomes = _carried_over(tasks, known, job.progress)
    missing = [task for task in tasks if task.number not in outcomes]
    manifest = {
        "dataset": dataset.name,
        "root": str(dataset.root),
        "request": encoder_request(request.encoder),
        "weights": stat_files(encoder.sources),
        "versions": library_versions(request.encoder),
        "key": job.key,
        "encoder": encoder.facts.groups,
        "batch_size": batch_size,
        "clients": entries,
    }
    if missing:
        folder.write_manifest(manifest)  # the batch shape goes with the parts
    job.ranks.tell("plan", _plan(job.key, seen, len(tasks), missing, batch_size))
    share = job.share(missing, batch_size)
    with job.clock.timing(ENCODING):
        encoded_texts = texts.encode_missing()
    for template, one, other in texts.alike():
        logger.warning(
            "with the template %r the classes %r and %r have the same text and cannot be told "
            "apart; an encoder reads only the beginning of a long prompt",
            template,
            one,
            other,
        )
    for receipt in _receipts(share, job.ranks):
        _enter(receipt, outcomes, known, folder)
    results = list(_results(dataset, outcomes, {task.number for task in missing}))
    _check_storage(dataset, results, seen)
    if request.strict:
        _check_all_usable(results)
    with job.clock.timing(WRITING):
        write_caches(_caches(job, outcomes, known, texts))
        for result in results:
            entries[result.client] = make_entry(
                dataset, result.rows, seen[result.client], result.skipped
            )
        folder.write_manifest(manifest)
        remove_parts(folder.path)
    return Extraction(
        folder=folder,
        clients=tuple(results),
        classes=len(dataset.class_names),
        embed_dim=known.width,
        encoded_texts=encoded_texts,
        written=True,
        seconds=time.perf_counter() - start,
        spent=job.clock.seconds,
    )


def _forced_entries(job: _Job) -> dict[str, dict[str, Any]]:
    """Note, for when this is killed, whose files are not to be read but made anew."""
    return {
        client.name: make_forced_entry(job.dataset)
        for client in job.dataset.clients
        if job.folder.file(client.name).exists()
    }


def _standing(folder: CacheFolder, manifest: Mapping[str, Any]) -> list[Path]:
    """List the clients' files but for those that a forced extraction is to make anew."""
    forced = {folder.file(client) for client in forced_clients(manifest)}
    return [path for path in folder.files if path not in forced]


def _batch_size(job: _Job, manifest: Mapping[str, Any], standing: Sequence[Path]) -> int:
    """Keep to the batch shape of what was encoded before: another moves vectors by rounding."""
    begun = manifest.get("batch_size")
    if (standing or find_parts(job.folder.path)) and isinstance(begun, int) and begun > 0:
        return begun
    return job.request.batch_size or default_batch_size(job.encoder.device)


def default_batch_size(device: torch.device) -> int:
    """Choose the batch shape: a CPU gains nothing from larger ones, a GPU wants to be busy."""
    return GPU_BATCH if device.type == "cuda" else CPU_BATCH


def _note_encoder(job: _Job, batch_size: int) -> None:
    name, asked = job.request.encoder, job.request.batch_size
    facts = [
        f"{' '.join(name.shown)}, {name.precision} on {job.encoder.device}",
        f"batches of {batch_size}",
        *([f"resized by {name.resizer}"] if name.resizer != RESIZERS[0] else []),
        *(["compiled"] if name.compiled else []),
        *([f"{job.ranks.size} ranks"] if job.ranks.size > 1 else []),
    ]
    logger.info("encoder    %s", ", ".join(facts))
    if asked not in (None, batch_size):
        logger.info("           (this cache was begun with batches of %d)", batch_size)


def _known(job: _Job, standing: Sequence[Path]) -> tuple[KnownVectors, Texts]:
    """Learn what vectors the cache holds already: in parts, and in the files that are `standing`.

    Raises:
        CacheError: a file is damaged, or of another encoder.
    """
    known, texts = KnownVectors(), Texts(job.encoder, job.dataset.class_names)
    for path in find_parts(job.folder.path):
        try:
            known.add_part(path)
        except (CacheError, ValueError, EOFError):
            path.unlink()  # as if lost
    if known:
        logger.info("           (resuming after %d images that were encoded before)", len(known))
    for path in standing:
        cache = read_cache(path)
        if cache.key != job.key:
            facts = ", ".join(differing_facts(cache.encoder, job.encoder.facts))
            raise CacheError(
                f"{path}: is of another encoder than this cache ({facts}); move it elsewhere"
            )
        known.add_client(path, cache)
        texts.take_over(cache)
    texts.want(job.request.templates)
    return known, texts


def _carried_over(
    tasks: Sequence[Task], known: KnownVectors, progress: Progress
) -> dict[int, _Outcome]:
    """Find the images whose vectors are known by their content."""
    outcomes: dict[int, _Outcome] = {}
    if not known:
        return outcomes
    for done, task in enumerate(tasks):
        progress("comparing", done, len(tasks), "images")
        digest = _digest(task.source)
        if digest is not None and digest in known:
            outcomes[task.number] = _Outcome(digest)
    progress("comparing", len(tasks), len(tasks), "images")
    return outcomes


def _digest(source: Source) -> bytes | None:
    try:
        return content_digest(source.read())
    except (OSError, MemoryError):
        return None  # decoding will say why


def _plan(
    key: str, seen: Mapping[str, str], images: int, missing: Sequence[Task], batch_size: int
) -> dict[str, Any]:
    """Say with which encoder which images are to be encoded: of those listed, in a bit each."""
    bits = np.zeros(images, bool)
    bits[[task.number for task in missing]] = True
    return {
        "key": key,
        "listings": dict(seen),
        "missing": base64.b64encode(np.packbits(bits).tobytes()).decode(),
        "batch_size": batch_size,
    }


def _receipts(share: Share, ranks: Ranks) -> Iterator[Receipt]:
    """Encode this rank's share, then hear what became of the others'."""
    yield from share.encode()
    for rank in range(1, ranks.size):
        told = 0
        while (receipt := ranks.ask(f"receipt/{rank}/{told}")) is not None:
            yield Receipt(**receipt)
            told += 1


def _enter(
    receipt: Receipt, outcomes: dict[int, _Outcome], known: KnownVectors, folder: CacheFolder
) -> None:
    for number, digest, problem in zip(
        receipt.numbers, receipt.digests, receipt.problems, strict=True
    ):
        outcomes[number] = _Outcome(bytes.fromhex(digest), problem)
    if receipt.part:
        usable = [
            bytes.fromhex(digest)
            for digest, problem in zip(receipt.digests, receipt.problems, strict=True)
            if not problem
        ]
        known.add_part(folder.path / PARTS / Path(receipt.part).name, usable)


def _results(
    dataset: ImageDataset, outcomes: Mapping[int, _Outcome], encoded: set[int]
) -> Iterator[ClientResult]:
    number = 0
    for client in dataset.clients:
        skipped, fresh = [], 0
        for image in client.images:
            problem = outcomes[number].problem
            if problem:
                skipped.append(Skipped(image.id, problem))
            elif number in encoded:
                fresh += 1
            number += 1
        yield ClientResult(client.name, len(client.images) - len(skipped), fresh, tuple(skipped))


def _check_storage(
    dataset: ImageDataset, results: Sequence[ClientResult], seen: Mapping[str, str]
) -> None:
    """Refuse to leave out images that are only away: a good file would become a smaller one."""
    for client, result in zip(dataset.clients, results, strict=True):
        unread = {item.id: item for item in result.skipped if item.reason.startswith(UNREAD)}
        sources = [image.source for image in client.images if image.id in unread]
        if unread and not (listing(client) == seen[client.name] and all(map(_is_unfit, sources))):
            first = next(iter(unread.values()))
            raise FedclipError(
                f"{dataset.root}: {first.id} {first.reason}, as if its disk had gone away midway; "
                "the cache is as it was; see that all images are there, or remove what cannot be "
                "read, and extract again"
            )


def _is_unfit(source: Source) -> bool:
    """Tell whether an image still cannot be read, and for a reason of its own."""
    try:
        source.read()
    except OSError as error:
        return error.errno in _OWN_REASONS
    return False


def _check_all_usable(results: Sequence[ClientResult]) -> None:
    skipped = [item for result in results for item in result.skipped]
    if skipped:
        others = f", and {len(skipped) - 1} more" if len(skipped) > 1 else ""
        raise FedclipError(
            f"{skipped[0].id} cannot be used, it {skipped[0].reason}{others}; mend or remove what "
            "cannot be used, or leave out --strict"
        )


def _caches(
    job: _Job, outcomes: Mapping[int, _Outcome], known: KnownVectors, texts: Texts
) -> Iterator[tuple[Path, FeatureCache]]:
    """Assemble the clients' caches, one at a time, each with the path it belongs to."""
    number = 0
    for client in job.dataset.clients:
        mine = [outcomes[number + row] for row in range(len(client.images))]
        number += len(mine)
        yield job.folder.file(client.name), _client_cache(job, client, mine, known, texts)


def _client_cache(
    job: _Job,
    client: ClientImages,
    outcomes: Sequence[_Outcome],
    known: KnownVectors,
    texts: Texts,
) -> FeatureCache:
    kept = [
        (image, outcome.digest)
        for image, outcome in zip(client.images, outcomes, strict=True)
        if not outcome.problem
    ]
    if not kept:
        raise FedclipError(
            f"{client.name}: not one of its {len(outcomes)} images could be used; the first, "
            f"{job.dataset.root}/{client.images[0].id}, {outcomes[0].problem}"
        )
    digests = [digest for _, digest in kept]
    try:
        return FeatureCache(
            dataset=job.dataset.name,
            client=client.name,
            encoder=job.encoder.facts,
            logit_scale=job.encoder.logit_scale,
            normalized=False,
            image_features=known.gather(digests),
            labels=np.array([image.label for image, _ in kept], dtype=np.int32),
            ids=tuple(image.id for image, _ in kept),
            digests=np.frombuffer(b"".join(digests), np.uint8).reshape(len(kept), -1),
            class_names=texts.class_names,
            templates=texts.templates,
            text_features=texts.features(),
        )
    except CacheError as error:
        raise FedclipError(
            f"{client.name}: what {job.encoder.name.model} made of it {error}; "
            "its weights or --precision do not suit"
        ) from None


def default_workers(device: torch.device, local_ranks: int = 1) -> int:
    """Choose how many processes decode images for an encoder on `device`."""
    if device.type == "cpu":
        return 0  # it has all cores, and lends them between two batches
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return max(1, min(cores // local_ranks - 1, MAX_WORKERS))

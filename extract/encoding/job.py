"""Encodes what is missing in a cache. Importing this imports torch."""

import errno
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field
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
from ...cache.common.files import check_writable
from ...cache.common.progress import Progress, no_progress
from ...cache.common.text import counted
from ...cache.key import differing_facts
from ...cache.parts import KnownVectors, find_parts, remove_parts
from ...cache.schema import content_digest
from ...cache.store import writing
from ...cache.writer import write_caches
from ..datasets.base import ClientImages, ImageDataset, Source
from ..datasets.registry import noun
from ..encoders.base import SampleEncoder
from ..encoders.registry import library_versions, load_encoder
from ..encoders.spec import RESIZERS
from ..manifest import (
    books_with,
    encoder_request,
    forced_clients,
    listing,
    listings,
    make_entry,
    make_forced_entry,
    stat_files,
)
from ..request import ClientResult, Extraction, Request, Skipped
from .distributed import Ranks
from .texts import Texts
from .worker import ENCODING, WRITING, Clock, Outcome, Outcomes, Share, Task

logger = logging.getLogger(__name__)

MAX_WORKERS = 16

CPU_BATCH = 64
GPU_BATCH = 256

# Errors that are the image's own, not its disk's: missing permission, or a broken link. An image
# that has disappeared also changes the listing.
_OWN_REASONS = frozenset({errno.EACCES, errno.EPERM, errno.ENOENT, errno.ELOOP, errno.EISDIR})


@dataclass(frozen=True)
class _Job:
    """An extraction into one cache, as one rank sees it."""

    request: Request
    dataset: ImageDataset
    encoder: SampleEncoder
    folder: CacheFolder
    ranks: Ranks
    progress: Progress
    key: str
    clock: Clock = field(default_factory=Clock)

    @classmethod
    def of(cls, request: Request, dataset: ImageDataset, ranks: Ranks, progress: Progress) -> Self:
        """Load the encoder; its key is part of the cache's name."""
        device = resolve_device(request.device, ranks.local_rank)
        encoder = load_encoder(request.encoder, device, progress)
        key = image_key(encoder.facts)
        path = request.cache_dir / dataset.name / f"{request.encoder.variant}-{key[:8]}"
        return cls(request, dataset, encoder, CacheFolder(path), ranks, progress, key)

    def tasks(self, batch_size: int) -> list[Task]:
        """List this rank's images, one of every `size` batches, numbered across all clients."""
        images = [
            (client.name, image) for client in self.dataset.clients for image in client.images
        ]
        return [
            Task(number, name, image.source)
            for number, (name, image) in enumerate(images)
            if number // batch_size % self.ranks.size == self.ranks.rank
        ]

    def share(self, tasks: Sequence[Task], batch_size: int) -> Share:
        """Start encoding `tasks`."""
        workers = self.request.workers
        if workers is None:
            workers = default_workers(self.encoder.device, self.ranks.local_size)
        return Share(
            self.encoder,
            self.folder.path,
            tasks,
            batch_size,
            workers,
            self.clock,
            self.progress,
            self.ranks.check,
        )


def encode_missing(
    request: Request, dataset: ImageDataset, ranks: Ranks, progress: Progress = no_progress
) -> Extraction:
    """Encode missing vectors together with the other ranks, and write the cache.

    Raises:
        FedclipError: the encoder or the cache on disk cannot be used, another process
            is writing the cache, or no image of a client can be decoded (with
            `strict`, if any image cannot).
    """
    check_writable(request.cache_dir, f"--cache-dir {request.cache_dir}")
    job = _Job.of(request, dataset, ranks, progress)
    with writing(job.folder):
        return _encode(job)


def help_encoding(request: Request, dataset: ImageDataset, ranks: Ranks) -> None:
    """Encode this rank's share of the missing images, and send the outcomes to the first rank.

    Raises:
        FedclipError: the encoder cannot be used, or the encoder or the files differ from the
            first rank's.
    """
    job = _Job.of(request, dataset, ranks, no_progress)
    plan = ranks.ask("plan")
    _check_plan(job, plan)
    known, _ = _known(job, _standing(job.folder, job.folder.read_manifest()))
    outcomes, share = _begin_share(job, known, plan["batch_size"])
    for receipt in share.encode():
        outcomes |= receipt.outcomes
    ranks.tell("outcomes", _to_json(outcomes))


def _begin_share(
    job: _Job, known: KnownVectors, batch_size: int
) -> tuple[dict[int, Outcome], Share]:
    """Return the outcomes of this rank's `known` images, and start encoding the others."""
    tasks = job.tasks(batch_size)
    outcomes = _carried_over(job, tasks, known)
    missing = [task for task in tasks if task.number not in outcomes]
    return outcomes, job.share(missing, batch_size)


def _to_json(outcomes: Outcomes) -> list[Any]:
    return [
        [number, outcome.digest.hex(), *astuple(outcome)[1:]]
        for number, outcome in outcomes.items()
    ]


def _from_json(rows: Sequence[Any]) -> Outcomes:
    return {number: Outcome(bytes.fromhex(digest), *rest) for number, digest, *rest in rows}


def _check_plan(job: _Job, plan: Mapping[str, Any]) -> None:
    """Check that this rank has the same encoder and the same images as the first one."""
    rank, seen = job.ranks.rank, listings(job.dataset)
    if job.key != plan["key"]:
        raise FedclipError(
            f"{job.encoder.name.model}: the encoder of rank {rank} (key {job.key[:8]}) differs "
            f"from that of rank 0 (key {plan['key'][:8]}); start all ranks with the same weights "
            "and options"
        )
    if [[*each] for each in seen.items()] != plan[
        "listings"
    ]:  # their order determines the images' numbers
        raise FedclipError(
            f"{job.dataset.root}: rank {rank} finds other {job.dataset.samples} here than rank 0; "
            "make the same files available to all ranks"
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
        logger.info("           (resuming an extraction with --force)")
    # Listed before reading, so that later changes are noticed.
    seen = listings(dataset)
    manifest = {
        "dataset": dataset.name,
        "root": str(dataset.root),
        "request": encoder_request(request.encoder),
        "weights": stat_files(encoder.sources),
        "versions": library_versions(request.encoder),
        "key": job.key,
        "encoder": encoder.facts.groups,
        "batch_size": batch_size,
        "books": books_with(manifest, dataset),
        "clients": entries,
    }
    known, texts = _known(job, standing)
    folder.write_manifest(manifest)  # parts are only valid with their batch size
    parts = {*find_parts(folder.path)}  # before the other ranks write theirs
    plan = {"key": job.key, "listings": [*seen.items()], "batch_size": batch_size}
    job.ranks.tell("plan", plan)
    outcomes, share = _begin_share(job, known, batch_size)
    with job.clock.timing(ENCODING):
        encoded_texts = texts.encode_missing()
    for template, one, other in texts.alike():
        logger.warning(
            "template %r: the classes %r and %r have the same text features and cannot be "
            "distinguished; shorten the template, since encoders cut off long prompts",
            template,
            one,
            other,
        )
    for receipt in share.encode():
        outcomes |= receipt.outcomes
        if receipt.part is not None:
            known.add_part(receipt.part, receipt.digests)
            parts.add(receipt.part)
    for rank in range(1, job.ranks.size):
        outcomes |= _from_json(job.ranks.ask("outcomes", rank))
    for path in find_parts(folder.path):
        if path not in parts:  # written by another rank
            known.add_part(path)
    results = list(_results(dataset, outcomes))
    _check_storage(dataset, outcomes, seen)
    _check_no_loss(dataset, results)
    _warn_of_cut(dataset, outcomes)
    if request.strict:
        _check_all_usable(dataset, results)
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
    """List the clients whose files must be replaced, even if this process is killed first."""
    return {
        client.name: make_forced_entry(job.dataset)
        for client in job.dataset.clients
        if job.folder.file(client.name).exists()
    }


def _standing(folder: CacheFolder, manifest: Mapping[str, Any]) -> list[Path]:
    """List the clients' files except those that a forced extraction still has to replace."""
    forced = {folder.file(client) for client in forced_clients(manifest)}
    return [path for path in folder.files if path not in forced]


def _batch_size(job: _Job, manifest: Mapping[str, Any], standing: Sequence[Path]) -> int:
    """Return the batch size used so far, since another would change vectors by rounding."""
    used = manifest.get("batch_size")
    if (standing or find_parts(job.folder.path)) and isinstance(used, int) and used > 0:
        return used
    return job.request.batch_size or default_batch_size(job.encoder.device)


def default_batch_size(device: torch.device) -> int:
    """Choose the batch size: larger batches keep a GPU busy, but do not help a CPU."""
    return GPU_BATCH if device.type == "cuda" else CPU_BATCH


def _note_encoder(job: _Job, batch_size: int) -> None:
    name, asked = job.request.encoder, job.request.batch_size
    facts = [
        f"{' and '.join(' '.join(each.shown) for each in name.each)}, {name.precision} on "
        f"{job.encoder.device}",
        f"batches of {batch_size}",
        *([f"resized by {name.resizer}"] if name.resizer != RESIZERS[0] else []),
        *(["compiled"] if name.compiled else []),
        *([f"{job.ranks.size} ranks"] if job.ranks.size > 1 else []),
    ]
    logger.info("encoder    %s", ", ".join(facts))
    if asked not in (None, batch_size):
        logger.info("           (this cache was started with batches of %d)", batch_size)


def _known(job: _Job, standing: Sequence[Path]) -> tuple[KnownVectors, Texts]:
    """Find the vectors that the cache already has, in parts and in the `standing` files.

    Raises:
        CacheError: a file is damaged, or comes from another encoder.
    """
    known, texts = KnownVectors(), Texts(job.encoder, job.dataset.class_names)
    for path in find_parts(job.folder.path):
        try:
            known.add_part(path)
        except (CacheError, ValueError, EOFError):
            path.unlink(missing_ok=True)  # its images are encoded again
    if known:
        what = noun(job.dataset.samples)
        logger.info("           (resuming after %s)", counted(len(known), f"encoded {what}"))
    for path in () if job.request.force else standing:
        cache = read_cache(path)
        if cache.key != job.key:
            facts = ", ".join(differing_facts(cache.encoder, job.encoder.facts))
            raise CacheError(
                f"{path}: comes from another encoder than this cache ({facts}); move it elsewhere"
            )
        known.add_client(path, cache)
        texts.take_over(cache)
    texts.want(job.request.templates)
    return known, texts


def _carried_over(job: _Job, tasks: Sequence[Task], known: KnownVectors) -> dict[int, Outcome]:
    """Return the outcomes of samples whose content has a known vector."""
    outcomes: dict[int, Outcome] = {}
    if not known:
        return outcomes
    for done, task in enumerate(tasks):
        job.progress("comparing", done, len(tasks), job.dataset.samples)
        digest = _digest(task.source)
        if digest is not None and digest in known:
            outcomes[task.number] = Outcome(digest, encoded=False)
    job.progress("comparing", len(tasks), len(tasks), job.dataset.samples)
    return outcomes


def _digest(source: Source) -> bytes | None:
    try:
        return content_digest(source.read())
    except (OSError, MemoryError):
        return None  # decoding will report the reason


def _results(dataset: ImageDataset, outcomes: Outcomes) -> Iterator[ClientResult]:
    for client, mine in _by_client(dataset, outcomes):
        skipped = tuple(
            Skipped(image.id, outcome.problem)
            for image, outcome in zip(client.images, mine, strict=True)
            if outcome.problem
        )
        encoded = sum(outcome.encoded and not outcome.problem for outcome in mine)
        yield ClientResult(client.name, len(mine) - len(skipped), encoded, skipped)


def _by_client(
    dataset: ImageDataset, outcomes: Outcomes
) -> Iterator[tuple[ClientImages, list[Outcome]]]:
    number = 0
    for client in dataset.clients:
        yield client, [outcomes[number + row] for row in range(len(client.images))]
        number += len(client.images)


def _check_storage(dataset: ImageDataset, outcomes: Outcomes, seen: Mapping[str, str]) -> None:
    """Refuse to skip images that may be unreachable only now, since intact rows would be lost."""
    for client, mine in _by_client(dataset, outcomes):
        unread = [
            (image, outcome.problem)
            for image, outcome in zip(client.images, mine, strict=True)
            if outcome.unread
        ]
        unfit = all(_is_unfit(image.source) for image, _ in unread)
        if unread and not (unfit and listing(client) == seen[client.name]):
            first, problem = unread[0]
            raise FedclipError(
                f"{dataset.root}: {first.id} {problem}, as if its disk had been disconnected; the "
                f"cache is unchanged; make sure that all {dataset.samples} can be read, or remove "
                "those that "
                "cannot, and extract again"
            )


def _is_unfit(source: Source) -> bool:
    """Return whether an image still cannot be read, for a reason other than its disk."""
    try:
        source.read()
    except OSError as error:
        return error.errno in _OWN_REASONS
    return False


def _check_no_loss(dataset: ImageDataset, results: Sequence[ClientResult]) -> None:
    """Refuse to lose a client, or one of its classes, because none of its images can be used."""
    for client, result in zip(dataset.clients, results, strict=True):
        reasons = {item.id: item.reason for item in result.skipped}
        lost = client.lost(reasons)
        if lost:
            of_class = f" of {dataset.class_names[lost[0].label]!r}" if result.rows else ""
            raise FedclipError(
                f"{client.name}: none of its {len(lost) if of_class else len(reasons)} "
                f"{dataset.samples}{of_class} can be used; the first, {dataset.root}/{lost[0].id}, "
                f"{reasons[lost[0].id]}; convert, fix or remove them"
            )


def _warn_of_cut(dataset: ImageDataset, outcomes: Outcomes) -> None:
    cut = sum(outcome.cut for outcome in outcomes.values())
    if cut:
        logger.warning(
            "%s: %d of the %s encoded now are longer than what the encoder reads, and were cut off",
            dataset.name,
            cut,
            counted(sum(each.encoded for each in outcomes.values()), noun(dataset.samples)),
        )


def _check_all_usable(dataset: ImageDataset, results: Sequence[ClientResult]) -> None:
    skipped = [item for result in results for item in result.skipped]
    if skipped:
        others = f", and {len(skipped) - 1} more" if len(skipped) > 1 else ""
        raise FedclipError(
            f"{skipped[0].id}: {skipped[0].reason}{others}; fix or remove unusable "
            f"{dataset.samples}, or leave out --strict"
        )


def _caches(
    job: _Job, outcomes: Outcomes, known: KnownVectors, texts: Texts
) -> Iterator[tuple[Path, FeatureCache]]:
    """Yield each client's path and cache, assembled one at a time."""
    for client, mine in _by_client(job.dataset, outcomes):
        yield job.folder.file(client.name), _client_cache(job, client, mine, known, texts)


def _client_cache(
    job: _Job,
    client: ClientImages,
    outcomes: Sequence[Outcome],
    known: KnownVectors,
    texts: Texts,
) -> FeatureCache:
    kept = [
        (image, outcome.digest)
        for image, outcome in zip(client.images, outcomes, strict=True)
        if not outcome.problem
    ]
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
            f"{client.name}: the cache that {job.encoder.name.model} encoded {error}; "
            "check its weights, or choose another --precision"
        ) from None


def default_workers(device: torch.device, local_ranks: int = 1) -> int:
    """Choose how many processes decode images for an encoder on `device`."""
    if device.type == "cpu":
        return 0  # the encoder uses all cores, and threads decode between its batches
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return max(1, min(cores // local_ranks - 1, MAX_WORKERS))

"""Requests to extract a dataset, and their results."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..cache import CacheFolder
from .datasets.books import Books
from .datasets.registry import SampleKind
from .encoders.spec import EncoderName
from .options import TableOptions


@dataclass(frozen=True, kw_only=True)
class DatasetRequest:
    """The samples to find.

    Attributes:
        dataset: A published dataset's name, a folder, or ``hf:owner/name``. With `listed`, the
            folder that the list's paths are relative to, or None.
        data_dir: Folder to look for datasets in.
        name: First part of the caches' names; None for the dataset's own name.
        listed: A list, in place of a folder.
        client: The only client, to which all samples belong; None if there are several.
        class_names: Classes in order; empty for all that have a sample, sorted.
        table: How to read a dataset on the hub, and the splits to take.
        columns: Columns of a list, each as ``name=column``.
    """

    dataset: str | None
    data_dir: Path
    name: str | None = None
    listed: Path | None = None
    client: str | None = None
    class_names: tuple[str, ...] = ()
    table: TableOptions = TableOptions()
    columns: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Request(DatasetRequest):
    """An extraction to do.

    Attributes:
        encoder: The encoder's name.
        templates: Prompt templates, each with one ``{}``.
        cache_dir: Folder of the caches.
        batch_size: Size of every batch of the encoder; None for the device's default.
        workers: Number of processes that decode samples; None for the device's default.
        device: ``auto`` or a torch device.
        force: Whether to encode everything again.
        strict: Whether a sample that cannot be used is an error.
        offline: Whether to stay off the network.
    """

    encoder: EncoderName
    templates: tuple[str, ...]
    cache_dir: Path
    batch_size: int | None = None
    workers: int | None = None
    device: str = "auto"
    force: bool = False
    strict: bool = False
    offline: bool = False


@dataclass(frozen=True)
class Skipped:
    """A skipped sample: its id and the reason."""

    id: str
    reason: str


@dataclass(frozen=True)
class ClientResult:
    """A client's result: rows in its file, how many were encoded now, and skipped samples."""

    client: str
    rows: int
    encoded: int
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True)
class Extraction:
    """The result of an extraction.

    Attributes:
        folder: The cache.
        clients: The result of each client.
        classes: Number of classes.
        embed_dim: Width of the features.
        encoded_texts: Number of prompts encoded now.
        seconds: Wall-clock time of reading, encoding and writing, without loading the encoder.
        spent: Seconds that this process spent on each main activity.
        written: Whether the clients' files were written, even if only their labels changed.
        books: What was seen besides the samples.
        samples: What was encoded: images, or texts.
    """

    folder: CacheFolder
    clients: tuple[ClientResult, ...]
    classes: int
    embed_dim: int
    encoded_texts: int
    seconds: float
    spent: Mapping[str, float] = field(default_factory=dict)
    written: bool = False
    books: Books = Books()
    samples: SampleKind = "images"

    @property
    def encoded(self) -> int:
        """Number of samples encoded now."""
        return sum(client.encoded for client in self.clients)

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """All skipped samples."""
        return tuple(item for client in self.clients for item in client.skipped)

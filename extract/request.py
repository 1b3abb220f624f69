"""Requests to extract a dataset, and their results."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..cache import CacheFolder
from .datasets.books import Books
from .encoders.spec import EncoderName
from .options import TableOptions


@dataclass(frozen=True, kw_only=True)
class DatasetRequest:
    """The images to find.

    Attributes:
        dataset: A published dataset's name, a folder, or ``hf:owner/name``. With `listed`, the
            folder that the list's paths are relative to, or None.
        data_dir: Folder to look for datasets in.
        name: First part of the caches' names; None for the dataset's own name.
        listed: A list of images, in place of a folder.
        client: The only client, to which all images belong; None if there are several.
        class_names: Classes in order; empty for all that have an image, sorted.
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
        workers: Number of processes that decode images; None for the device's default.
        device: ``auto`` or a torch device.
        force: Whether to encode everything again.
        strict: Whether an image that cannot be used is an error.
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
    """A skipped image: its id and the reason."""

    id: str
    reason: str


@dataclass(frozen=True)
class ClientResult:
    """A client's result: rows in its file, how many were encoded now, and skipped images."""

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
        books: What was seen besides the images.
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

    @property
    def encoded(self) -> int:
        """Number of images encoded now."""
        return sum(client.encoded for client in self.clients)

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """All skipped images."""
        return tuple(item for client in self.clients for item in client.skipped)

"""What to extract, and what came of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..cache import CacheFolder
from .encoders.spec import EncoderName
from .options import TableOptions


@dataclass(frozen=True, kw_only=True)
class DatasetRequest:
    """Which images to find.

    Attributes:
        dataset: A published dataset's name, a folder, or ``hf:owner/name``; None for a list
            whose paths are not relative to a folder of their own.
        data_dir: Where datasets are looked for.
        name: What the caches are filed under; None for the dataset's own name.
        listed: A list of images to take instead of a folder's.
        client: Whose images these all are; None if there are several clients.
        class_names: The classes in their order; empty for all that have an image, sorted.
        table: How to read a dataset on the hub.
    """

    dataset: str | None
    data_dir: Path
    name: str | None = None
    listed: Path | None = None
    client: str | None = None
    class_names: tuple[str, ...] = ()
    table: TableOptions = TableOptions()


@dataclass(frozen=True, kw_only=True)
class Request(DatasetRequest):
    """What to extract.

    Attributes:
        encoder: The encoder's name.
        templates: Prompt templates, each with one ``{}``.
        cache_dir: Where caches are kept.
        batch_size: The one batch shape that the encoder sees; None for what suits the device.
        workers: Processes that decode images; None for what suits the device.
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
    """An image that was left out, by id, and why."""

    id: str
    reason: str


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
        spent: What the process at hand spent them on, the main parts by name.
        written: Whether the clients' files were written, if only with other labels.
    """

    folder: CacheFolder
    clients: tuple[ClientResult, ...]
    classes: int
    embed_dim: int
    encoded_texts: int
    seconds: float
    spent: Mapping[str, float] = field(default_factory=dict)
    written: bool = False

    @property
    def encoded(self) -> int:
        """Images encoded now."""
        return sum(client.encoded for client in self.clients)

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Images that were left out."""
        return tuple(item for client in self.clients for item in client.skipped)

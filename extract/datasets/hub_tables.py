"""Datasets on the hub as tables of images or texts: the files of each split, and their clients."""

import fnmatch
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ...cache import FedclipError
from ...cache.common.fields import suggest
from ...cache.common.files import client_name, slug
from ...cache.common.progress import Progress, no_progress
from ...cache.common.text import nfc
from .. import hub
from .base import ImageDataset, gather
from .books import Books
from .registry import HF, KNOWN, Columns, HubDataset

CARD = "README.md"
PARQUET_BRANCH = "refs/convert/parquet"
_SUFFIX = ".parquet"
_CUSTOMARY_SPLITS = ("train", "validation", "valid", "val", "test")


@dataclass(frozen=True)
class LocatedTable:
    """A dataset on the hub of which only the list of files is known so far.

    Attributes:
        name: First part of its caches' names.
        known: Its name as a published dataset, if it is one.
        snapshot: Its files.
        place: Its repository, split and columns.
        client: The client of all rows, for a table without a domain column.
        class_names: Classes in order; empty for all that occur, sorted.
    """

    name: str
    known: str | None
    snapshot: hub.Snapshot
    place: HubDataset
    client: str | None
    class_names: tuple[str, ...]

    @property
    def facts(self) -> dict[str, Any]:
        """The facts that determine the rows and the names of their clients and classes."""
        return {
            "repository": self.place.repository,
            "revision": self.snapshot.repository.revision,
            "commit": self.snapshot.commit,
            "split": self.place.split,
            "columns": _recorded(self.place.columns),
            "client": self.client,
            "class_names": list(self.class_names),
        }

    @property
    def root(self) -> str:
        """The dataset's name in errors and records."""
        return f"{HF}{self.place.repository}"

    def open(self, progress: Progress = no_progress) -> ImageDataset:
        """Download missing files, and list each client's rows.

        Raises:
            FedclipError: the dataset cannot be downloaded, has no such split or column, or has no
                rows.
        """
        from .parquet import RowFile, read_clients

        card = _card(self.snapshot, progress)
        splits = _splits(self.snapshot, card)
        by_split = {
            split: _split_files(self.snapshot, splits, split)
            for split in self.place.split.split("+")
        }
        paths = [path for files in by_split.values() for path in files]
        folder = hub.download(self.snapshot, paths, progress)
        hub.remember(self.snapshot)
        files = [
            RowFile(folder / path, self.snapshot.version(path), split)
            for split, paths in by_split.items()
            for path in paths
        ]
        samples, clients = read_clients(
            self.root,
            files,
            self.place.columns,
            _name_client(self.known),
            client=self.client,
            class_names=self.class_names,
            features=_card_features(card),
            spelled=_class_names(self.known, self.place.columns.label),
        )
        if not clients:
            raise FedclipError(
                f"{self.root}: its split {self.place.split!r} has no rows; choose another --split"
            )
        return gather(
            self.name,
            self.root,
            clients,
            class_names=self.class_names,
            samples=samples,
            known=self.known,
            alone=self.client is not None,
            hub=self.facts,
            books=Books(
                "rows", aside=tuple(f"split {name}" for name in sorted(splits.keys() - by_split))
            ),
        )


def locate_table(
    place: HubDataset,
    revision: str,
    *,
    name: str | None = None,
    known: str | None = None,
    client: str | None = None,
    class_names: Sequence[str] = (),
) -> LocatedTable:
    """Resolve a repository's revision.

    Raises:
        FedclipError: the repository or revision does not exist, or the hub cannot be reached.
    """
    snapshot = hub.look_up(hub.Repository(place.repository, hub.DATASET, revision))
    return LocatedTable(
        name=nfc(name or known or slug(place.repository.split("/")[-1].lower())),
        known=known,
        snapshot=snapshot,
        place=place,
        client=client_name(client) if client else None,
        class_names=tuple(class_names),
    )


def _recorded(columns: Columns) -> dict[str, str]:
    """Return the columns' names as caches record them, those of before texts too."""
    usual = columns.text == Columns.text
    return {key: name for key, name in asdict(columns).items() if not (key == "text" and usual)}


def _name_client(known: str | None) -> Callable[[str], str]:
    """Name the client of a domain as for a folder of that name: `Real World` is real_world."""
    names = {
        folder: domain.client
        for domain in (KNOWN[known].domains if known else ())
        for folder in domain.folders
    }
    return lambda domain: names.get(domain) or client_name(domain)


def _class_names(known: str | None, column: str) -> Mapping[str, str]:
    """Return a known dataset's names of the labels in its column of classes."""
    published = KNOWN[known] if known else None
    if published is None or published.hub is None or published.hub.columns.label != column:
        return {}
    return published.names


def _card(snapshot: hub.Snapshot, progress: Progress) -> Mapping[str, Any]:
    """Read the metadata at the top of a dataset's card; empty if it has none."""
    if CARD not in snapshot.files:
        return {}
    from huggingface_hub.repocard import metadata_load

    try:
        return metadata_load(hub.download(snapshot, [CARD], progress) / CARD) or {}
    except FedclipError:
        raise
    except Exception:  # cards are written by hand, and are optional
        return {}


def _listed(value: Any) -> list[Any]:
    """Return a card's value as a list, a single value as one of length 1; ignore other types."""
    if isinstance(value, (str, dict)):
        return [value]
    return value if isinstance(value, list) else []


def _card_features(card: Mapping[str, Any]) -> dict[str, Any]:
    """Read the names that a card's metadata gives to the numbers in class columns."""
    features: dict[str, Any] = {}
    for info in _listed(card.get("dataset_info")):
        for feature in _listed(info.get("features")) if isinstance(info, dict) else []:
            try:
                names = feature["dtype"]["class_label"]["names"]
                in_order = [names[key] for key in sorted(names, key=int)]
                features[feature["name"]] = {"names": in_order}
            except (KeyError, TypeError, ValueError):
                continue
    return features


def _splits(snapshot: hub.Snapshot, card: Mapping[str, Any]) -> dict[str, list[str]]:
    """Find each split's Parquet files, in order, by the card or else by their names.

    Raises:
        FedclipError: the repository has no Parquet files.
    """
    dataset = snapshot.repository
    tables = sorted(path for path in snapshot.files if path.endswith(_SUFFIX))
    if not tables and snapshot.partial:
        raise FedclipError(
            f"{dataset}: its tables are not on this machine; {hub.how_to_carry(dataset)}"
        )
    if not tables:
        raise FedclipError(
            f"{dataset}: contains no Parquet files; the hub converts most datasets, so try "
            f"--revision {PARQUET_BRANCH}"
        )
    return _card_splits(card, tables) or _named_splits(tables)


def _split_files(snapshot: hub.Snapshot, splits: Mapping[str, list[str]], split: str) -> list[str]:
    """Return a split's files.

    Raises:
        FedclipError: the split has no files, or some of a numbered series are missing.
    """
    dataset = snapshot.repository
    if split not in splits:
        raise FedclipError(f"{dataset}: unknown split {split!r}{suggest(split, splits)}")
    files = splits[split]
    for path in files:
        series = re.search(r"-of-(\d{5})", path)
        if series and len(files) < int(series[1]):
            raise FedclipError(
                f"{dataset}: has only {len(files)} of the split's {int(series[1])} files"
                + (f" here; {hub.how_to_carry(dataset)}" if snapshot.partial else "")
            )
    return files


def _card_splits(card: Mapping[str, Any], tables: Sequence[str]) -> dict[str, list[str]]:
    """Find files by the card's patterns for each split of its default configuration."""
    configs = [config for config in _listed(card.get("configs")) if isinstance(config, dict)]
    configs.sort(key=lambda config: not _is_default(config))
    splits: dict[str, list[str]] = {}
    for entry in _listed(configs[0].get("data_files")) if configs else ():
        split, patterns = ("train", entry) if isinstance(entry, str) else _entry(entry)
        for pattern in _listed(patterns):
            splits.setdefault(split, []).extend(fnmatch.filter(tables, str(pattern)))
    return {split: sorted(set(files)) for split, files in splits.items() if files}


def _is_default(config: Mapping[str, Any]) -> bool:
    return bool(config.get("default")) or config.get("config_name") == "default"


def _entry(entry: Any) -> tuple[str, Any]:
    if isinstance(entry, dict):
        return str(entry.get("split", "train")), entry.get("path", ())
    return "train", ()


def _named_splits(tables: Sequence[str]) -> dict[str, list[str]]:
    """Find splits by words in the files' paths; without such words, all files are train."""
    splits = {
        split: [path for path in tables if re.search(rf"(^|[/._-]){split}([/._-]|$)", path)]
        for split in _CUSTOMARY_SPLITS
    }
    return {split: files for split, files in splits.items() if files} or {"train": [*tables]}

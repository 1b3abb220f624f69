"""A cache for the Python API: every client's features, by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, overload

import numpy as np

from .common.errors import CacheError
from .common.extras import load_extra
from .common.fields import suggest
from .common.text import counted
from .schema import FeatureCache
from .store import CacheFolder, latest_cache, resolve_cache
from .store import load_cache as load_clients

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from torch import Tensor


class Tensors(NamedTuple):
    """A cache's content on a device.

    Attributes:
        features: (N, D) float32 image features, client after client.
        labels: (N,) int64 classes.
        clients: (N,) int64, each row's client as an index into the cache's `clients`.
        texts: (C, P, T) float32 text features by class and template.
    """

    features: Tensor
    labels: Tensor
    clients: Tensor
    texts: Tensor

    def __repr__(self) -> str:
        shapes = (f"{name} {tuple(getattr(self, name).shape)}" for name in self._fields)
        return f"<tensors on {self.features.device}: {', '.join(shapes)}>"


class Cache(Mapping[str, FeatureCache]):
    """Clients of one cache by name, in alphabetical order.

    ``cache["photo"]`` is one client's features, ``cache["photo", "sketch"]`` a cache of these two.

    Attributes:
        folder: Where the files are.
    """

    def __init__(self, folder: CacheFolder, clients: Sequence[FeatureCache]) -> None:
        self.folder = folder
        self._clients = {each.client: each for each in clients}

    @overload
    def __getitem__(self, which: str) -> FeatureCache: ...

    @overload
    def __getitem__(self, which: tuple[str, ...] | list[str]) -> Cache: ...

    def __getitem__(self, which: str | tuple[str, ...] | list[str]) -> FeatureCache | Cache:
        names = [which] if isinstance(which, str) else which
        for name in names:
            if name not in self._clients:
                raise CacheError(
                    f"{self.name}: unknown client {name!r}{suggest(name, self.clients)}"
                )
        if isinstance(which, str):
            return self._clients[which]
        return Cache(self.folder, [self._clients[name] for name in sorted({*names})])

    def __contains__(self, name: object) -> bool:
        return name in self._clients

    def __iter__(self) -> Iterator[str]:
        return iter(self._clients)

    def __len__(self) -> int:
        return len(self._clients)

    @property
    def name(self) -> str:
        """The cache's name, as `--cache` takes it."""
        return self.folder.name

    @property
    def clients(self) -> tuple[str, ...]:
        """The clients' names."""
        return tuple(self._clients)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes."""
        return self._first.class_names

    @property
    def templates(self) -> tuple[str, ...]:
        """The prompt templates whose text features the cache has."""
        return self._first.templates

    @property
    def _first(self) -> FeatureCache:
        return next(iter(self._clients.values()))

    def to_pandas(self, *, features: bool = False) -> pd.DataFrame:
        """Return a table with a row for each image: client, image and class.

        Args:
            features: Whether to add a column for each feature, named by its number.

        Raises:
            FedclipError: pandas is not installed.
        """
        pandas = load_extra("tables")
        tables = []
        for each in self.values():
            columns = {
                "client": each.client,
                "image": each.ids,
                "class": [each.class_names[label] for label in each.labels],
            }
            table = pandas.DataFrame(columns)
            if features:
                table = table.join(pandas.DataFrame(each.image_features))
            tables.append(table)
        joined: pd.DataFrame = pandas.concat(tables, ignore_index=True)
        return joined

    def tensors(self, device: str | torch.device = "cpu") -> Tensors:
        """Copy all rows to a device."""
        import torch

        rows = [len(each.labels) for each in self.values()]
        return Tensors(
            torch.from_numpy(np.concatenate([each.image_features for each in self.values()])).to(
                device
            ),
            torch.from_numpy(np.concatenate([each.labels for each in self.values()]))
            .long()
            .to(device),
            torch.arange(len(rows)).repeat_interleave(torch.tensor(rows)).to(device),
            torch.from_numpy(self._first.text_features.copy()).to(device),
        )

    def __repr__(self) -> str:
        rows = sum(len(each.labels) for each in self.values())
        return (
            f"<cache {self.name}: {counted(len(self), 'client')} ({', '.join(self.clients)}), "
            f"{counted(rows, 'row')} of {counted(self._first.embed_dim, 'feature')}, "
            f"{counted(len(self.class_names), 'class', 'classes')}>"
        )


def load_cache(name: str | None = None, cache_dir: str | Path = "caches") -> Cache:
    """Read a cache.

    Args:
        name: As `fedclip cache ls` names it, a prefix of that, or its dataset; None for the one
            extracted last.
        cache_dir: Where caches are kept.

    Raises:
        CacheError: no cache or several match, a file is damaged, or the clients do not belong
            together.
    """
    place = Path(cache_dir)
    folder = latest_cache(place) if name is None else resolve_cache(place, str(name))
    return Cache(folder, load_clients(folder))

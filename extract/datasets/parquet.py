"""Tables of images in Parquet files: rows as images, read row group by row group.

Nothing is unpacked to disk: a worker process holds the row group at hand and goes on
in order.
"""

import errno
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ...cache import FedclipError
from ...cache.common.errors import first_line
from ...cache.common.limits import check_unpacked
from .base import ClassImages, Source
from .registry import Columns

# Arrow has no array over 2 GiB: enough for so many images of 128 MB.
_ROWS_AT_ONCE = 16

_READING = Lock()


@dataclass(frozen=True)
class RowFile:
    """A Parquet file of a dataset.

    Attributes:
        path: Where it is.
        version: What identifies its content: its hash on the hub.
        split: The split that its rows belong to.
    """

    path: Path
    version: str
    split: str


@dataclass(frozen=True)
class RowSource:
    """The image in one row of a Parquet file."""

    file: RowFile
    column: str
    group: int
    row: int

    def read(self) -> bytes:
        """Take the image out of its row group, which is kept for the next row."""
        with _READING:  # threads wait for the one that reads their row group
            images = _group(self.file.path, self.column, self.group)
        return images[self.row].as_py() or b""

    def stamp(self) -> str:
        """Give the file's version and the row's place in it."""
        return f"{self.file.version}\0{self.group}\0{self.row}"


@lru_cache(maxsize=1)
def _group(path: Path, column: str, group: int) -> Any:
    """Read one column of a row group: an array of bytes, in chunks."""
    try:
        with reading(path.name), pq.ParquetFile(path, memory_map=True) as file:
            # Without threads, as worker processes are forked.
            batches = file.iter_batches(
                _ROWS_AT_ONCE, row_groups=[group], columns=[column], use_threads=False
            )
            arrays = [batch.column(0) for batch in batches]
    except FedclipError as error:
        raise OSError(errno.EIO, str(error)) from None
    return pa.chunked_array(
        [array.field("bytes") if pa.types.is_struct(array.type) else array for array in arrays]
    )


@contextmanager
def reading(file: Path | str) -> Iterator[None]:
    """Turn what Arrow raises on a file that it cannot read into one line.

    Raises:
        FedclipError: of a file that is no Parquet file, or damaged.
    """
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.strerror:
            raise  # the system's, which says what is wrong
        raise FedclipError(
            f"{file}: is no Parquet file, or damaged ({first_line(error)})"
        ) from None


def check_row_groups(file: Path, metadata: Any) -> None:
    """Refuse a file whose row groups would fill the memory.

    Raises:
        FedclipError: a row group would unpack beyond all measure.
    """
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        columns = [group.column(number) for number in range(group.num_columns)]
        packed = sum(column.total_compressed_size for column in columns)
        unpacked = sum(column.total_uncompressed_size for column in columns)
        check_unpacked(f"{file}: a row group", packed, unpacked)


def read_clients(
    dataset: str,
    files: Sequence[RowFile],
    columns: Columns,
    name_client: Callable[[str], str],
    *,
    client: str | None = None,
    class_names: Sequence[str] = (),
    features: Mapping[str, Any] | None = None,
) -> list[tuple[str, ClassImages]]:
    """List each client's rows by class; the images themselves stay unread.

    Args:
        dataset: What to call the dataset in errors.
        files: Its files, in order; a row's id is its split and its number in it.
        columns: What its columns are called.
        name_client: Turns a domain into a client's name.
        client: The client of all rows, if there is no column of domains.
        class_names: What labels count, where they are numbers without names.
        features: What columns' numbers mean, where the files do not say.

    Raises:
        FedclipError: a column is not there or of another kind, a row has no label, or two
            domains would be one client.
    """
    clients: dict[str, dict[str, list[tuple[str, Source]]]] = {}
    domains: dict[str, str] = {}
    numbers: dict[str, int] = {}
    for file in files:
        table = _Table.open(dataset, file, columns, features or {}, by_domain=client is None)
        labels = table.labels(columns.label, class_names)
        owners = table.domains(columns.domain) if client is None else [client] * len(labels)
        declared = table.names(columns.label) or ()
        places = table.places()
        for label, owner, (group, row) in zip(labels, owners, places, strict=True):
            number = numbers[file.split] = numbers.get(file.split, -1) + 1
            name = owner if client is not None else domains.setdefault(owner, name_client(owner))
            images = clients.setdefault(name, {each: [] for each in declared})
            source = RowSource(file, columns.image, group, row)
            images.setdefault(label, []).append((f"{file.split}/{number:08d}", source))
    if len(set(domains.values())) < len(domains):
        raise FedclipError(
            f"{dataset}: two of its domains, {', '.join(domains)}, would be one client"
        )
    return sorted(clients.items())


@dataclass(frozen=True)
class _Table:
    """A file's small columns, checked."""

    dataset: str
    file: RowFile
    metadata: Any
    data: Mapping[str, Sequence[Any]]
    features: Mapping[str, Any]

    @classmethod
    def open(
        cls,
        dataset: str,
        file: RowFile,
        columns: Columns,
        features: Mapping[str, Any],
        *,
        by_domain: bool,
    ) -> "_Table":
        with reading(file.path), pq.ParquetFile(file.path) as opened:
            schema = opened.schema_arrow
            wanted = {"--image-column": columns.image, "--label-column": columns.label}
            if by_domain:
                wanted["--domain-column"] = columns.domain
            _check_columns(dataset, schema, wanted)
            check_row_groups(file.path, opened.metadata)
            small = [*{*wanted.values()} - {columns.image}]
            table = opened.read(columns=small)
            data = {column: table.column(column).to_pylist() for column in small}
            return cls(dataset, file, opened.metadata, data, {**features, **_features(schema)})

    def names(self, column: str) -> Sequence[str] | None:
        """Say what a column's numbers stand for, where that is known."""
        feature = self.features.get(column)
        names = feature.get("names") if isinstance(feature, dict) else None
        return [str(name) for name in names] if isinstance(names, list) else None

    def domains(self, column: str) -> list[str]:
        """Give the domains as texts: numbers by their names, or as they are without."""
        values = self.data[column]
        names = self.names(column)
        if names is None:
            values = [str(value) if isinstance(value, int) else value for value in values]
        return self._texts(column, values, names or ())

    def labels(self, column: str, class_names: Sequence[str]) -> list[str]:
        """Give the labels as texts: numbers by their names, or else by `class_names`."""
        values = self.data[column]
        names = self.names(column) or class_names
        if not names and any(isinstance(value, int) for value in values):
            raise FedclipError(
                f"{self.dataset}: its column {column!r} holds numbers without names; give the "
                "names in their order with --class-names, or another column"
            )
        return self._texts(column, values, names)

    def _texts(self, column: str, values: Sequence[Any], names: Sequence[str]) -> list[str]:
        texts = []
        for row, value in enumerate(values):
            if isinstance(value, int) and 0 <= value < len(names):
                value = names[value]
            if not isinstance(value, str) or not value:
                raise FedclipError(
                    f"{self.dataset}: row {row} of {self.file.path.name} has {value!r} in its "
                    f"column {column!r}, which is no name and stands for none"
                )
            texts.append(value)
        return texts

    def places(self) -> list[tuple[int, int]]:
        """List each row's group and number in it."""
        groups = range(self.metadata.num_row_groups)
        return [
            (group, row)
            for group in groups
            for row in range(self.metadata.row_group(group).num_rows)
        ]


def _check_columns(dataset: str, schema: Any, wanted: Mapping[str, str]) -> None:
    for option, column in wanted.items():
        if column not in schema.names:
            without = " or --client" if option == "--domain-column" else ""
            raise FedclipError(
                f"{dataset}: no column {column!r}; it has {', '.join(schema.names)}, "
                f"say which with {option}{without}"
            )
    kind = schema.field(wanted["--image-column"]).type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise FedclipError(
            f"{dataset}: its column {wanted['--image-column']!r} holds {kind} and no images; it "
            f"has {', '.join(schema.names)}, say which with --image-column"
        )
    for option, column in wanted.items():
        if option != "--image-column" and column == wanted["--image-column"]:
            raise FedclipError(
                f"{dataset}: its column {column!r} holds the images; give {option} another"
            )


def _features(schema: Any) -> dict[str, Any]:
    """Read what the `datasets` library writes of a file's columns beside its schema."""
    try:
        return dict(json.loads(schema.metadata[b"huggingface"])["info"]["features"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}

"""Tables in Parquet files, an image or a text per row, read row group by row group.

Nothing is unpacked to disk: a worker process keeps one row group in memory and reads its rows
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
from ...cache.common.text import nfc
from .base import ClassImages, Source
from .registry import Columns, SampleKind

# An Arrow array holds at most 2 GiB, which is enough for this many images of 128 MB.
_ROWS_AT_ONCE = 16

_READING = Lock()


@dataclass(frozen=True)
class RowFile:
    """A Parquet file of a dataset.

    Attributes:
        path: Its path.
        version: Identifies its content, such as its hash on the hub.
        split: The split that its rows belong to.
    """

    path: Path
    version: str
    split: str


@dataclass(frozen=True)
class RowSource:
    """The image or text in one row of a Parquet file."""

    file: RowFile
    column: str
    group: int
    row: int

    def read(self) -> bytes:
        """Return the sample's bytes; the row group stays in memory for the next row."""
        with _READING:  # one thread reads a row group while the others wait
            samples = _group(self.file.path, self.column, self.group)
        return samples[self.row].as_py() or b""

    def stamp(self) -> str:
        """Return the file's version and the row's position in it."""
        return f"{self.file.version}\0{self.group}\0{self.row}"


@lru_cache(maxsize=1)
def _group(path: Path, column: str, group: int) -> Any:
    """Read one column of a row group: an array of bytes, in chunks."""
    try:
        with reading(path.name), pq.ParquetFile(path, memory_map=True) as file:
            # Worker processes are forked, so Arrow must not start threads.
            batches = file.iter_batches(
                _ROWS_AT_ONCE, row_groups=[group], columns=[column], use_threads=False
            )
            arrays = [batch.column(0) for batch in batches]
    except FedclipError as error:
        raise OSError(errno.EIO, str(error)) from None
    return pa.chunked_array([_as_bytes(array) for array in arrays])


def _as_bytes(array: Any) -> Any:
    if pa.types.is_struct(array.type):
        return array.field("bytes")
    if pa.types.is_large_string(array.type):
        return array.cast(pa.large_binary())
    return array.cast(pa.binary()) if pa.types.is_string(array.type) else array


@contextmanager
def reading(file: Path | str) -> Iterator[None]:
    """Turn Arrow's errors about an unreadable file into one line.

    Raises:
        FedclipError: the file is not a Parquet file, or is damaged.
    """
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.strerror:
            raise  # an error of the system, which explains itself
        raise FedclipError(
            f"{file}: is not a Parquet file, or is damaged ({first_line(error)}); replace it"
        ) from None


def check_row_groups(file: Path, metadata: Any) -> None:
    """Refuse a file whose row groups would fill the memory.

    Raises:
        FedclipError: the unpacked size of a row group exceeds `check_unpacked`'s limit.
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
    spelled: Mapping[str, str] | None = None,
) -> tuple[SampleKind, list[tuple[str, ClassImages]]]:
    """List each client's rows by class, without reading the images or texts.

    Args:
        dataset: The dataset's name in errors.
        files: Its files, in order; a row's id is its split and its number within the split.
        columns: The names of its columns.
        name_client: Returns the client's name for a domain.
        client: The client of all rows, for a table without a domain column.
        class_names: Names of the labels if they are numbers without names.
        features: Names of the numbers in columns for which the files have none.
        spelled: Class names by label, where these differ.

    Returns:
        What the rows contain, and the clients. A table with a column of images is one of images.

    Raises:
        FedclipError: a column is missing or has the wrong type, a row has no label, or two
            domains would become one client.
    """
    clients: dict[str, dict[str, list[tuple[str, Source]]]] = {}
    domains: dict[str, str] = {}
    numbers: dict[str, int] = {}
    samples: SampleKind = "images"
    for file in files:
        table = _Table.open(dataset, file, columns, features or {}, by_domain=client is None)
        labels = table.labels(columns.label, class_names, spelled or {})
        owners = table.domains(columns.domain) if client is None else [client] * len(labels)
        declared = table.names(columns.label) or [*(spelled or {}).values()]
        samples = table.samples
        places = table.places()
        for label, owner, (group, row) in zip(labels, owners, places, strict=True):
            number = numbers[file.split] = numbers.get(file.split, -1) + 1
            name = owner if client is not None else domains.setdefault(owner, name_client(owner))
            images = clients.setdefault(name, {each: [] for each in declared})
            source = RowSource(file, table.column, group, row)
            images.setdefault(label, []).append((f"{file.split}/{number:08d}", source))
    if len(set(domains.values())) < len(domains):
        raise FedclipError(
            f"{dataset}: two of its domains, {', '.join(domains)}, would become one client; use "
            "another --domain-column"
        )
    return samples, sorted(clients.items())


@dataclass(frozen=True)
class _Table:
    """The columns of a file except the images or texts, checked."""

    dataset: str
    file: RowFile
    metadata: Any
    data: Mapping[str, Sequence[Any]]
    features: Mapping[str, Any]
    samples: SampleKind
    column: str

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
            wanted = {"--label-column": columns.label}
            if by_domain:
                wanted["--domain-column"] = columns.domain
            samples, column = _sample_column(dataset, schema, columns)
            _check_columns(dataset, schema, wanted, samples, column)
            check_row_groups(file.path, opened.metadata)
            small = [*{*wanted.values()}]
            table = opened.read(columns=small)
            data = {column: table.column(column).to_pylist() for column in small}
            described = {**features, **_features(schema)}
            return cls(dataset, file, opened.metadata, data, described, samples, column)

    def names(self, column: str) -> Sequence[str] | None:
        """Return the names of a column's numbers; None if unknown."""
        feature = self.features.get(column)
        names = feature.get("names") if isinstance(feature, dict) else None
        return [nfc(str(name)) for name in names] if isinstance(names, list) else None

    def domains(self, column: str) -> list[str]:
        """Return the domains as texts: numbers by name, or as digits if they have none."""
        values = self.data[column]
        names = self.names(column)
        if names is None:
            values = [_number_text(value) for value in values]
        return self._texts(column, values, names or ())

    def labels(
        self, column: str, class_names: Sequence[str], spelled: Mapping[str, str]
    ) -> list[str]:
        """Return the labels as texts: numbers by name, from the file or else `class_names`."""
        values = [spelled.get(str(_number_text(each)), each) for each in self.data[column]]
        names = self.names(column) or class_names
        if not names and any(isinstance(value, int | float) for value in values):
            raise FedclipError(
                f"{self.dataset}: its column {column!r} contains numbers without names; list the "
                "names in order with --class-names, or choose another --label-column"
            )
        return self._texts(column, values, names)

    def _texts(self, column: str, values: Sequence[Any], names: Sequence[str]) -> list[str]:
        texts = []
        for row, value in enumerate(values):
            if isinstance(value, float) and value.is_integer():
                value = int(value)
            if isinstance(value, int) and 0 <= value < len(names):
                value = names[value]
            if not isinstance(value, str) or not value:
                raise FedclipError(
                    f"{self.dataset}: row {row} of {self.file.path.name} has {value!r} in its "
                    f"column {column!r}, which is not a name or the number of one; fix the row"
                )
            texts.append(nfc(value))
        return texts

    def places(self) -> list[tuple[int, int]]:
        """Return each row's row group and its number within the group."""
        groups = range(self.metadata.num_row_groups)
        return [
            (group, row)
            for group in groups
            for row in range(self.metadata.row_group(group).num_rows)
        ]


def _number_text(value: Any) -> Any:
    """Return an integer as text, also one that a table with gaps has as a float."""
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return str(int(value)) if whole else value


def _sample_column(dataset: str, schema: Any, columns: Columns) -> tuple[SampleKind, str]:
    """Find the column of images, or else that of texts, and check its type."""
    options = {"--image-column": columns.image, "--text-column": columns.text}
    named = {option: column for option, column in options.items() if column}
    option = next((each for each in named if named[each] in schema.names), None)
    if option is None:
        first = next(iter(named.values()))
        raise FedclipError(
            f"{dataset}: unknown column {first!r} (it has {', '.join(schema.names)}); "
            f"choose one with {' or '.join(named)}"
        )
    samples: SampleKind = "images" if option == "--image-column" else "texts"
    column = named[option]
    kind = schema.field(column).type
    if samples == "images" and pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    checks = {
        "images": (pa.types.is_binary, pa.types.is_large_binary),
        "texts": (pa.types.is_string, pa.types.is_large_string),
    }
    if not any(check(kind) for check in checks[samples]):
        raise FedclipError(
            f"{dataset}: its column {column!r} contains {kind}, not {samples} (it "
            f"has {', '.join(schema.names)}); choose one with {option}"
        )
    return samples, column


def _check_columns(
    dataset: str, schema: Any, wanted: Mapping[str, str], samples: SampleKind, used: str
) -> None:
    for option, column in wanted.items():
        if column not in schema.names:
            without = ", or set --client" if option == "--domain-column" else ""
            raise FedclipError(
                f"{dataset}: unknown column {column!r} (it has {', '.join(schema.names)}); "
                f"choose one with {option}{without}"
            )
        if column == used:
            raise FedclipError(
                f"{dataset}: its column {column!r} contains the {samples}; choose another {option}"
            )


def _features(schema: Any) -> dict[str, Any]:
    """Read the description of columns that the `datasets` library adds to a file's schema."""
    try:
        return dict(json.loads(schema.metadata[b"huggingface"])["info"]["features"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}

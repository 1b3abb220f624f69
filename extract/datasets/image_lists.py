"""Lists of samples: a CSV or Parquet file of ``path,label[,client]`` or ``text,label[,client]``."""

import csv
import logging
import re
import unicodedata
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path, PurePosixPath
from textwrap import shorten
from typing import Any

from ...cache import FedclipError
from ...cache.common.fields import listed, suggest
from ...cache.common.files import client_name, regular, slug
from ...cache.common.text import check_utf8, nfc
from ...cache.labels import name_labels
from .base import FileSource, ImageDataset, Source, TextSource, gather
from .books import Books
from .folders import find_folder
from .registry import SampleKind, noun

logger = logging.getLogger(__name__)

PATH, TEXT, LABEL, CLIENT = "path", "text", "label", "client"

# Names that lists use for these columns.
_OTHER_NAMES = {
    PATH: ("filepath", "file_path", "filename", "file_name", "image_path"),
    TEXT: ("sentence", "review"),
    LABEL: ("class", "class_name"),
    CLIENT: ("domain", "site"),
}

_UTF_8 = "utf-8-sig"

# Bytes that are not UTF-8 are kept as lone surrogates, and so refused or skipped row by row.
KEEP = "surrogateescape"

# Characters of the columns' names that an error shows.
_SHOWN = 200

# The longest value of a CSV file, in characters; Python's own limit is shorter than some texts.
_LONGEST = 2**30


def is_list(dataset: str) -> bool:
    """Return whether a dataset's name is that of a list's file."""
    return Path(dataset).suffix.lower() in _READERS and regular(Path(dataset)).is_file()


def open_list(
    file: Path,
    data_dir: Path,
    *,
    dataset: str | None = None,
    name: str | None = None,
    client: str | None = None,
    class_names: Sequence[str] = (),
    columns: Sequence[str] = (),
) -> ImageDataset:
    """Find the images or texts in a list.

    A list with a column of paths is one of images, any other one of texts, whose ids are their
    rows' numbers. Paths are relative to the folder `dataset` if set, else to the list's own folder
    or, if the first image is not in there, to `data_dir`. Paths are the images' ids, so a path out
    of this folder is refused.

    Args:
        file: The list, ``.csv``, ``.tsv`` or ``.parquet``. The separator, UTF-16 and common names
            of the columns are recognized.
        data_dir: Folder to look for datasets in.
        dataset: The folder that the paths are relative to.
        name: First part of its caches' names; by default the folder's or the list's name.
        client: The client of all samples, if the list has no column ``client``.
        class_names: Classes in order; by default all that have a sample, sorted.
        columns: Columns for path, text, label and client, each as ``name=column``.

    Raises:
        FedclipError: the list cannot be read, lacks a column or a value, or contains a file
            that is missing, outside the folder or in the list twice.
    """
    check_utf8(file.resolve())
    given = _parse_columns(columns)
    opened = read_list(file)
    found = _find_columns(file, opened.columns, given, client) if opened.columns else {}
    samples: SampleKind = "texts" if TEXT in found else "images"
    if samples == "texts" and dataset:
        raise FedclipError(f"--dataset {dataset}: {file} has texts, not paths; leave out --dataset")
    if samples == "images" and opened.undecoded:
        raise no_csv(file, opened.undecoded)
    rows = list(_rows(opened, found, client))
    if not rows:
        raise FedclipError(f"{file}: lists no {samples}; add a row for each {noun(samples)}")
    sources = _texts(rows) if samples == "texts" else _images(file, data_dir, dataset, rows)
    names = _names(file, [label for _, _, label, _ in rows], class_names)
    clients: dict[str, dict[str, list[tuple[str, Source]]]] = {}
    owners: dict[str, str] = {}
    for (where, _, label, owner), source in zip(rows, sources, strict=True):
        owner_before = owners.setdefault(client_name(owner), owner)
        if nfc(owner_before) != nfc(owner):
            raise FedclipError(
                f"{where}: has the client {owner!r}, and a row before has {owner_before!r}, which "
                f"would both become {client_name(owner)!r}; rename one, or spell them alike"
            )
        clients.setdefault(client_name(owner), {}).setdefault(names[label], []).append(source)
    renamed = [f"{column} as {name}" for name, column in found.items() if name != column]
    understood = [*([opened.format] if opened.format else []), *renamed]
    unused = tuple(f"column {each}" for each in opened.columns if each not in found.values())
    return gather(
        name or slug((find_folder(dataset, data_dir).name if dataset else file.stem).lower()),
        file.resolve(),
        sorted(clients.items()),
        class_names=class_names,
        samples=samples,
        alone=client is not None,
        layout=listed(understood, "and") if understood else "",
        books=Books("rows", aside=unused),
    )


# A row's place in the file, path or text, label and client.
_Row = tuple[str, str, str, str]


def _images(
    file: Path, data_dir: Path, dataset: str | None, rows: Sequence[_Row]
) -> Iterator[tuple[str, Source]]:
    root = find_folder(dataset, data_dir) if dataset else _root(file, data_dir, rows[0][1])
    seen: set[str] = set()
    for where, path, _, _ in rows:
        image_id = _below(where, path, root)
        if image_id in seen:
            raise FedclipError(f"{where}: {path!r} is in this list already; remove one of the rows")
        seen.add(image_id)
        yield image_id, FileSource(root / image_id)


def _texts(rows: Sequence[_Row]) -> Iterator[tuple[str, Source]]:
    for number, (_, text, _, _) in enumerate(rows):
        yield f"{number:08d}", TextSource(text.encode(errors=KEEP))


@dataclass(frozen=True)
class _List:
    """A list as it was read.

    Attributes:
        columns: The names of its columns.
        rows: Each row's place in the file, and its values by column.
        format: How the file is written; empty for the usual ways.
        undecoded: The error about bytes that are not UTF-8, if there are any.
    """

    columns: Sequence[str]
    rows: Iterator[tuple[str, Mapping[str, str]]]
    format: str = ""
    undecoded: Exception | None = None


def _names(file: Path, labels: Sequence[str], class_names: Sequence[str]) -> dict[str, str]:
    """Find the class that each label means, and log what labels were understood as."""
    try:
        names, understood = name_labels([*dict.fromkeys(labels)], class_names)
    except FedclipError as error:
        raise FedclipError(f"{file}: {error}") from None
    if understood:
        logger.info("labels     read as %s", understood)
    return names


def read_list(file: Path) -> _List:
    """Read a list of images.

    Raises:
        FedclipError: the list is missing, of another kind, or cannot be read.
    """
    if not regular(file).is_file():
        raise FedclipError(f"{file}: file not found; pass a .csv, .tsv or .parquet list")
    if file.suffix.lower() not in _READERS:
        raise FedclipError(f"{file}: is not a list; pass a .csv, .tsv or .parquet file")
    return _READERS[file.suffix.lower()](file)


def _rows(opened: _List, columns: Mapping[str, str], client: str | None) -> Iterator[_Row]:
    for where, values in opened.rows:
        row = {name: values[column] for name, column in columns.items()}
        for name, value in row.items():
            if name == TEXT:
                continue  # skipped and counted later, like a broken image
            if not value:
                raise FedclipError(f"{where}: has no {name}; fill it in")
            if value != value.encode(errors="ignore").decode():
                raise FedclipError(f"{where}: its {name} {value!a} is not UTF-8; save it as UTF-8")
        yield where, row[TEXT if TEXT in row else PATH], row[LABEL], client or row[CLIENT]


def _read_csv(file: Path) -> _List:
    content = file.read_bytes()
    encoding = _encoding(content)
    undecoded: Exception | None = None
    csv.field_size_limit(_LONGEST)
    try:
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError as error:
            text, undecoded = content.decode(encoding, KEEP), error
        separator = _separator(text)
        reader = csv.reader(StringIO(text, newline=""), delimiter=separator, strict=True)
        columns = [column.strip() for column in next(reader, [])]
    except (csv.Error, UnicodeDecodeError) as error:
        raise no_csv(file, error) from None
    plain = (encoding, separator) == (_UTF_8, ",")
    shown = "tabs" if separator == "\t" else repr(separator)
    name = "UTF-8" if encoding == _UTF_8 else "UTF-16"
    rows = _csv_rows(file, columns, reader, separator)
    understood = "" if plain else f"CSV in {name}, separated by {shown}"
    return _List(columns, rows, understood, undecoded)


def _csv_rows(
    file: Path, columns: Sequence[str], reader: Any, separator: str
) -> Iterator[tuple[str, Mapping[str, str]]]:
    line = reader.line_num + 1
    try:
        for values in reader:
            where = f"{file} line {reader.line_num}"
            if len(values) > len(columns):
                raise FedclipError(
                    f"{where}: has more values than columns; quote values with {separator!r}"
                )
            if values:
                padded = (value.strip() for value in [*values, *[""] * len(columns)])
                yield where, dict(zip(columns, padded, strict=False))
            line = reader.line_num + 1
    except csv.Error as error:
        raise FedclipError(
            f"{file} line {line}: is not a row of a CSV file ({error}); put values with quotes, "
            f'line breaks or {separator!r} into quotes, and write quotes in them twice, as ""'
        ) from None


def no_csv(file: Path, error: Exception) -> FedclipError:
    """Make the error about a list that cannot be read as CSV."""
    return FedclipError(f"{file}: is not a CSV file in UTF-8 or UTF-16 ({error}); save it as one")


def _encoding(content: bytes) -> str:
    """Tell UTF-16 from UTF-8: by its byte order mark, or by the NULs of its first character."""
    if content.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        return "utf-16"
    if content[:1] and content[1:2] == b"\0":
        return "utf-16-le"
    return "utf-16-be" if content[:1] == b"\0" else _UTF_8


def _separator(text: str) -> str:
    """Return the separator that divides the first line into the most columns."""
    line = re.split(r"[\r\n]", text, maxsplit=1)[0]
    return max(",;\t", key=lambda each: len(next(csv.reader([line], delimiter=each), [])))


def _read_parquet(file: Path) -> _List:
    import pyarrow.parquet as pq

    from .parquet import check_row_groups, reading

    with reading(file), pq.ParquetFile(file) as opened:
        check_row_groups(file, opened.metadata)
        columns = opened.schema_arrow.names
        rows = opened.read().to_pylist()
    texts = ({column: _text(value) for column, value in values.items()} for values in rows)
    return _List(columns, ((f"{file} row {number}", row) for number, row in enumerate(texts)))


_READERS: Mapping[str, Callable[[Path], _List]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}

# How the names of lists end.
LISTS = frozenset(_READERS)


def _text(value: Any) -> str:
    """Return a value of a table as text; empty if it is missing or no single value."""
    if isinstance(value, bytes):
        value = value.decode(errors="surrogateescape")  # refused later
    absent = value is None or value != value or isinstance(value, list | tuple | dict)
    return "" if absent else str(value).strip()


def _parse_columns(given: Sequence[str]) -> dict[str, str]:
    columns: dict[str, str] = {}
    for text in given:
        name, equals, column = text.partition("=")
        if name not in _OTHER_NAMES or not equals or not column or name in columns:
            raise FedclipError(
                f"--column {text}: must map {listed([*_OTHER_NAMES])} to a column of the list, "
                f"each once, such as {PATH}=file"
            )
        columns[name] = column
    return columns


def _find_columns(
    file: Path, has: Sequence[str], given: Mapping[str, str], client: str | None
) -> dict[str, str]:
    """Find the columns of path or text, label and, unless `client` is set, client."""
    wanted = [_sample_column(has, given), LABEL, *([] if client else [CLIENT])]
    if client and (CLIENT in given or _named(CLIENT, has)):
        raise FedclipError(f"{file}: already has a column {CLIENT!r}; leave out --client")
    found = {}
    for name in wanted:
        columns = _named(given[name], has) if name in given else columns_for(name, has)
        if len(columns) > 1:
            raise FedclipError(
                f"{file}: has several columns for {name!r}, {listed(columns, 'and')}; choose one "
                f"with --column {name}={columns[0]}, or rename the others"
            )
        if not columns:
            raise FedclipError(_missing(file, name, has, given.get(name)))
        found[name] = columns[0]
    return found


def columns_for(name: str, has: Sequence[str]) -> list[str]:
    """Return the columns that are named for path, label or client."""
    return _named(name, has) or [
        column for other in _OTHER_NAMES[name] for column in _named(other, has)
    ]


def _sample_column(has: Sequence[str], given: Mapping[str, str]) -> str:
    """Return `text` for a list that has texts and no paths, else `path`."""
    if PATH in given or TEXT in given:
        return PATH if PATH in given else TEXT
    named = {
        name: any(_named(each, has) for each in (name, *_OTHER_NAMES[name]))
        for name in (PATH, TEXT)
    }
    return TEXT if named[TEXT] and not named[PATH] else PATH


def _named(name: str, columns: Sequence[str]) -> list[str]:
    """Return the columns of a name, in upper or lower case."""
    return [column for column in columns if column.strip().lower() == name.lower()]


def columns_shown(has: Sequence[str]) -> str:
    """Say in a clause which columns a list has; a file of another kind may have any."""
    return f"it has {shorten(', '.join(has), _SHOWN, placeholder=' ...')}" if has else "it is empty"


def _missing(file: Path, name: str, has: Sequence[str], asked: str | None) -> str:
    seen = f"({columns_shown(has)})"
    if asked is not None:
        return f"--column {name}={asked}: unknown column of {file} {seen}{suggest(asked, has)}"
    option = f"name it with --column {name}=COLUMN"
    if name == CLIENT:
        return (
            f"{file}: has no column {CLIENT!r} {seen}; {option}, or name the client of all rows "
            "with --client"
        )
    return f"{file}: lacks the column {name!r} {seen}; {option}"


def _root(file: Path, data_dir: Path, path: str) -> Path:
    for root in (file.parent, data_dir):
        if spelled(root, path) is not None:
            return root.resolve()
    raise FedclipError(
        f"{file}: its first image, {path}, is neither below {file.parent} nor below {data_dir}; "
        "set --dataset to the folder that the paths are relative to"
    )


def _below(where: str, path: str, root: Path) -> str:
    """Return the id of a listed image: its normalized path below the root."""
    plain = PurePosixPath(path)
    if plain.is_absolute() or ".." in plain.parts:
        raise FedclipError(
            f"{where}: {path!r} is outside {root}; use a path relative to this folder"
        )
    check_utf8(root / plain)
    there = spelled(root, path)
    if there is None:
        raise FedclipError(
            f"{where}: no file {path!r} below {root}; fix the path or remove the row"
        )
    return there.as_posix()


def spelled(root: Path, path: str) -> PurePosixPath | None:
    """Find a listed image, whichever way its accents are written in the list and on disk."""
    spellings = [path, *(unicodedata.normalize(form, path) for form in ("NFC", "NFD"))]
    return next((PurePosixPath(each) for each in spellings if (root / each).is_file()), None)

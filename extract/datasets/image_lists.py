"""Lists of images: a CSV or Parquet file of ``path,label[,client]``."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from ...cache import FedclipError
from ...cache.common.files import client_name, slug
from ...cache.common.text import check_utf8
from .base import FileSource, ImageDataset, Source, gather
from .folders import find_folder

PATH, LABEL, CLIENT = "path", "label", "client"


def open_list(
    file: Path,
    data_dir: Path,
    *,
    dataset: str | None = None,
    name: str | None = None,
    client: str | None = None,
    class_names: Sequence[str] = (),
) -> ImageDataset:
    """Find the images that a list names.

    Paths are relative to the folder `dataset`, where one is given, else to the list's own
    folder or, if the first image is not there, to `data_dir`. A path that leaves this
    folder is refused: it is the image's id.

    Args:
        file: The list, ``.csv`` or ``.parquet``.
        data_dir: Where datasets are looked for.
        dataset: The folder that the paths are relative to.
        name: What its caches are filed under; by default the folder's or the list's name.
        client: Whose images these are, where the list has no column ``client``.
        class_names: The classes in their order; by default all that have an image, sorted.

    Raises:
        FedclipError: the list cannot be read, lacks a column or a value, or names a file
            twice, outside the folder or that is not there.
    """
    check_utf8(file.resolve())
    rows = list(_read(file, client))
    if not rows:
        raise FedclipError(f"{file}: names no images")
    root = find_folder(dataset, data_dir) if dataset else _root(file, data_dir, rows[0][1])
    clients: dict[str, dict[str, list[tuple[str, Source]]]] = {}
    seen: set[str] = set()
    for where, path, label, owner in rows:
        image_id = _below(where, path, root)
        if image_id in seen:
            raise FedclipError(f"{where}: {path!r} is in this list before; name it once")
        seen.add(image_id)
        images = clients.setdefault(client_name(owner), {}).setdefault(label, [])
        images.append((image_id, FileSource(root / image_id)))
    return gather(
        name or slug((root.name if dataset else file.stem).lower()),
        file.resolve(),
        sorted(clients.items()),
        class_names=class_names,
        alone=client is not None,
    )


# Where a row is, its path, label and client.
_Row = tuple[str, str, str, str]


def _read(file: Path, client: str | None) -> Iterator[_Row]:
    if not file.is_file():
        raise FedclipError(f"{file}: no such file; give a .csv or .parquet list")
    readers = {".csv": _read_csv, ".parquet": _read_parquet}
    if file.suffix.lower() not in readers:
        raise FedclipError(f"{file}: a list is a .csv or a .parquet file")
    for where, values in readers[file.suffix.lower()](file):
        _check_columns(file, values, client)
        wanted = (PATH, LABEL) if client else (PATH, LABEL, CLIENT)
        for column in wanted:
            if not values[column]:
                raise FedclipError(f"{where}: has no {column}")
        yield where, values[PATH], values[LABEL], client or values[CLIENT]


def _read_csv(file: Path) -> Iterator[tuple[str, dict[str, str]]]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            reader = csv.DictReader(opened, strict=True, restval="")
            for values in reader:
                where = f"{file} line {reader.line_num}"
                if None in values:
                    raise FedclipError(f"{where}: has more values than there are columns")
                yield where, {column: value.strip() for column, value in values.items()}
    except (csv.Error, UnicodeDecodeError) as error:
        raise FedclipError(f"{file}: is not a CSV file in UTF-8 ({error})") from None


def _read_parquet(file: Path) -> Iterator[tuple[str, dict[str, str]]]:
    import pyarrow.parquet as pq

    from .parquet import check_row_groups, reading

    with reading(file), pq.ParquetFile(file) as opened:
        check_row_groups(file, opened.metadata)
        rows = opened.read().to_pylist()
    for number, values in enumerate(rows):
        yield (
            f"{file} row {number}",
            {column: "" if value is None else str(value) for column, value in values.items()},
        )


def _check_columns(file: Path, values: dict[str, str], client: str | None) -> None:
    has = f"it has {', '.join(values)}"
    for column in (PATH, LABEL):
        if column not in values:
            raise FedclipError(f"{file}: lacks the column {column!r}; {has}")
    if client and CLIENT in values:
        raise FedclipError(f"{file}: has a column {CLIENT!r} of its own; leave out --client")
    if not client and CLIENT not in values:
        raise FedclipError(
            f"{file}: has no column {CLIENT!r}; say whose images these are with --client"
        )


def _root(file: Path, data_dir: Path, path: str) -> Path:
    for root in (file.parent, data_dir):
        if (root / path).is_file():
            return root.resolve()
    raise FedclipError(
        f"{file}: its first image, {path}, is neither below {file.parent} nor below {data_dir}; "
        "say what the paths are relative to with --dataset"
    )


def _below(where: str, path: str, root: Path) -> str:
    """Turn a listed path into an image's id, its plain path below the root."""
    plain = PurePosixPath(path)
    if plain.is_absolute() or ".." in plain.parts:
        raise FedclipError(
            f"{where}: {path!r} leaves {root}; paths are relative to this folder and stay below it"
        )
    check_utf8(root / plain)
    if not (root / plain).is_file():
        raise FedclipError(f"{where}: no file {path!r} below {root}")
    return plain.as_posix()

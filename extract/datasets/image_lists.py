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
    """Find the images in a list.

    Paths are relative to the folder `dataset` if set, else to the list's own folder or, if the
    first image is not in there, to `data_dir`. Paths are the images' ids, so a path out of this
    folder is refused.

    Args:
        file: The list, ``.csv`` or ``.parquet``.
        data_dir: Folder to look for datasets in.
        dataset: The folder that the paths are relative to.
        name: First part of its caches' names; by default the folder's or the list's name.
        client: The client of all images, if the list has no column ``client``.
        class_names: Classes in order; by default all that have an image, sorted.

    Raises:
        FedclipError: the list cannot be read, lacks a column or a value, or contains a file
            that is missing, outside the folder or in the list twice.
    """
    check_utf8(file.resolve())
    rows = list(_read(file, client))
    if not rows:
        raise FedclipError(f"{file}: lists no images; add a row for each image")
    root = find_folder(dataset, data_dir) if dataset else _root(file, data_dir, rows[0][1])
    clients: dict[str, dict[str, list[tuple[str, Source]]]] = {}
    seen: set[str] = set()
    for where, path, label, owner in rows:
        image_id = _below(where, path, root)
        if image_id in seen:
            raise FedclipError(f"{where}: {path!r} is in this list already; remove one of the rows")
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


# A row's place in the file, path, label and client.
_Row = tuple[str, str, str, str]


def _read(file: Path, client: str | None) -> Iterator[_Row]:
    if not file.is_file():
        raise FedclipError(f"{file}: file not found; pass a .csv or .parquet list")
    readers = {".csv": _read_csv, ".parquet": _read_parquet}
    if file.suffix.lower() not in readers:
        raise FedclipError(f"{file}: is not a list of images; pass a .csv or .parquet file")
    for where, values in readers[file.suffix.lower()](file):
        _check_columns(file, values, client)
        wanted = (PATH, LABEL) if client else (PATH, LABEL, CLIENT)
        for column in wanted:
            if not values[column]:
                raise FedclipError(f"{where}: has no {column}; fill it in")
        yield where, values[PATH], values[LABEL], client or values[CLIENT]


def _read_csv(file: Path) -> Iterator[tuple[str, dict[str, str]]]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            reader = csv.DictReader(opened, strict=True, restval="")
            for values in reader:
                where = f"{file} line {reader.line_num}"
                if None in values:
                    raise FedclipError(
                        f"{where}: has more values than columns; quote values with commas"
                    )
                yield where, {column: value.strip() for column, value in values.items()}
    except (csv.Error, UnicodeDecodeError) as error:
        raise FedclipError(
            f"{file}: is not a CSV file in UTF-8 ({error}); save it as one"
        ) from None


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
            raise FedclipError(f"{file}: lacks the column {column!r} ({has}); add or rename it")
    if client and CLIENT in values:
        raise FedclipError(f"{file}: already has a column {CLIENT!r}; leave out --client")
    if not client and CLIENT not in values:
        raise FedclipError(
            f"{file}: has no column {CLIENT!r}; name the client of all images with --client"
        )


def _root(file: Path, data_dir: Path, path: str) -> Path:
    for root in (file.parent, data_dir):
        if (root / path).is_file():
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
    if not (root / plain).is_file():
        raise FedclipError(
            f"{where}: no file {path!r} below {root}; fix the path or remove the row"
        )
    return plain.as_posix()

"""Samples to classify, as users pass them: files, folders, lists, datasets, or a stream of lines.

They are read as stage one reads them, but need no class.
"""

import errno
import logging
import os
import stat
import sys
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import PIL.Image

from ...cache import FedclipError
from ...cache.common.errors import first_line
from ...cache.common.fields import listed
from ...cache.common.files import client_name, regular, slug
from ...cache.common.progress import Progress, no_progress
from ...cache.common.text import match_names, nfc
from ...cache.labels import name_labels
from ...cache.schema import content_digest
from ..request import DatasetRequest
from .base import FileSource, Source, TextSource
from .find import find_dataset, opened
from .image_lists import (
    CLIENT,
    KEEP,
    LABEL,
    LISTS,
    PATH,
    TEXT,
    columns_for,
    columns_shown,
    no_csv,
    read_list,
    spelled,
)
from .layout import is_split
from .registry import HF, KNOWN, SampleKind, noun
from .tree import scan

logger = logging.getLogger(__name__)

STDIN = "-"


@dataclass(frozen=True)
class Image:
    """An image, or a text, to classify.

    Attributes:
        name: As the user knows it: its path, the text, or its id in a dataset on the hub.
        source: Its source.
        id: Its id in its dataset: the path below the folder that the user passed, or its row.
        label: Its class, if that is known.
        client: The domain that it belongs to, if that is known.
        place: Where it is, for messages; empty if the name tells.
    """

    name: str
    source: Source
    id: str
    label: str | None = None
    client: str | None = None
    place: str = ""

    @property
    def where(self) -> str:
        """Where it is, for messages."""
        return self.place or self.name


@dataclass(frozen=True)
class NamedSource(FileSource):
    """A file that a user named, and so may be anything."""

    def read(self) -> bytes:
        """Read the file.

        Raises:
            OSError: it cannot be read, or is a device or a pipe, which might never end.
        """
        try:
            mode = self.path.stat().st_mode
        except ValueError as error:  # a NUL in the path
            raise OSError(errno.EINVAL, str(error)) from None
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise OSError(errno.EINVAL, "Not a regular file")
        return super().read()


def find_images(
    places: Sequence[str],
    class_names: Sequence[str],
    data_dir: Path,
    progress: Progress = no_progress,
    samples: SampleKind = "images",
) -> Sequence[Image]:
    """List the images, or texts, that `places` name.

    A folder is searched to any depth. A sample below a folder named like a class belongs to that
    class; a domain is the folder above, ``<domain>/<class>/<image>``.

    Args:
        places: Files, folders, lists (``.csv``, ``.tsv`` or ``.parquet`` with a column ``path``,
            or ``text`` for texts, and ``label`` and ``client`` where known), known datasets, or
            ``hf:OWNER/NAME``.
        class_names: The classes.
        data_dir: Folder to look for datasets in.
        progress: Called during downloads.
        samples: What is looked for.

    Raises:
        FedclipError: a place does not exist, a list cannot be read, or there is no sample.
    """
    found: list[Image] = []
    for place in places:
        found += _find(place, class_names, data_dir, progress, samples)
    if not found:
        raise FedclipError(f"{listed(places, 'and')}: contains no {samples}")
    return found


def _find(
    place: str,
    class_names: Sequence[str],
    data_dir: Path,
    progress: Progress,
    samples: SampleKind,
) -> Iterable[Image]:
    path = Path(place)
    if place and path.is_dir():
        return _in_folder(path, class_names, samples)
    if regular(path).is_file():
        if path.suffix.lower() in LISTS:
            return _in_list(path, class_names, data_dir, samples)
        return [_image(path, path.name)]
    if place in KNOWN or place.startswith(HF):
        return _in_dataset(place, data_dir, progress, samples)
    if place == STDIN:
        raise FedclipError(f"{STDIN}: stands for standard input, and so must stand alone")
    kind = noun(samples)
    raise FedclipError(
        f"{place!r}: no such {kind if kind == 'image' else 'file'}, folder or list; pass a path, - "
        f"for {'paths' if kind == 'image' else 'texts'} on standard input, or a dataset as extract "
        "takes it"
    )


def _image(path: Path, image_id: str, label: str | None = None, client: str | None = None) -> Image:
    return Image(str(path), NamedSource(path), image_id, label, client)


def _in_folder(root: Path, class_names: Sequence[str], samples: SampleKind) -> Iterator[Image]:
    for folder in scan(root, kind=samples):
        above = folder.id.split("/")
        classes = match_names(above, class_names)
        depth = next((at for at in reversed(range(len(above))) if above[at] in classes), None)
        label = None if depth is None else classes[above[depth]]
        domains = [name for name in above[:depth] if not is_split(name)] if label else []
        client = _client(domains[-1]) if domains else None
        for name in folder.samples:
            yield _image(Path(folder.path, name), nfc(folder.id_of(name)), label, client)


def _client(domain: str) -> str:
    """Return the client's name that a domain would have in a cache."""
    try:
        return client_name(domain)
    except FedclipError:
        return domain


def _in_list(
    file: Path, class_names: Sequence[str], data_dir: Path, samples: SampleKind
) -> Iterator[Image]:
    opened = read_list(file)
    if samples == "images" and opened.undecoded:
        raise no_csv(file, opened.undecoded)
    kind = TEXT if samples == "texts" else PATH
    columns = {name: columns_for(name, opened.columns)[:1] for name in (kind, LABEL, CLIENT)}
    if not columns[kind]:
        seen = columns_shown(opened.columns)
        raise FedclipError(f"{file}: has no column {kind!r} ({seen}); add or rename it")

    def cell(values: Mapping[str, str], name: str) -> str:
        return next((values[column] for column in columns[name]), "")

    rows = [
        (where, cell(values, kind), cell(values, LABEL), cell(values, CLIENT))
        for where, values in opened.rows
    ]
    classes = _classes(file, [label for _, _, label, _ in rows if label], class_names)
    make = _listed_texts(rows) if samples == "texts" else _listed_paths(file, data_dir, rows)
    for image, (_, _, label, client) in zip(make, rows, strict=True):
        yield replace(
            image,
            label=classes.get(label, label) or None,
            client=_client(client) if client else None,
        )


# A row's place in the file, path or text, label and client; the last two may be empty.
_Row = tuple[str, str, str, str]


def _listed_texts(rows: Sequence[_Row]) -> Iterator[Image]:
    for number, (where, text, _, _) in enumerate(rows):
        source = TextSource(text.encode(errors=KEEP))
        yield Image(text, source, f"{number:08d}", place=where)


def _listed_paths(file: Path, data_dir: Path, rows: Sequence[_Row]) -> Iterator[Image]:
    root = None
    for where, path, _, _ in rows:
        if not path:
            raise FedclipError(f"{where}: has no {PATH}; fill it in")
        if root is None:
            elsewhere = spelled(file.parent, path) is None and spelled(data_dir, path) is not None
            root = data_dir if elsewhere else file.parent
        there = spelled(root, path) or PurePosixPath(path)
        yield _image(root / there, nfc(there.as_posix()))


def _classes(file: Path, labels: Sequence[str], class_names: Sequence[str]) -> dict[str, str]:
    """Find the class that each label means; one that means none is warned of, and left out."""
    try:
        names, _ = name_labels([*dict.fromkeys(labels)], class_names)
    except FedclipError as error:
        logger.warning("%s: %s; no accuracy is counted", file, error)
        return {}
    strange = sorted({name for name in names.values() if name not in class_names})
    if strange:
        logger.warning(
            "%s: the adapter has no class %s, whose rows do not count for the accuracy",
            file,
            listed(strange),
        )
    return names


def _in_dataset(
    place: str, data_dir: Path, progress: Progress, samples: SampleKind
) -> Iterator[Image]:
    request = DatasetRequest(dataset=place, data_dir=data_dir, name=slug(place) or None)
    dataset = opened(find_dataset(request, progress), progress)
    if dataset.samples != samples:
        raise FedclipError(
            f"{place}: contains {dataset.samples}, but the adapter classifies {samples}"
        )
    for client in dataset.clients:
        for image in client.images:
            label = dataset.class_names[image.label]
            yield Image(image.id, image.source, image.id, label, client.name)


@dataclass(frozen=True)
class BytesSource:
    """An image file's bytes in memory."""

    content: bytes

    def read(self) -> bytes:
        """Return the bytes."""
        return self.content

    def stamp(self) -> str:
        """Return the hash of the bytes."""
        return content_digest(self.content).hex()


# What the Python API takes: for an image a path, a PIL image, bytes of a file, or an array; for a
# text a string, its bytes in UTF-8, or a `pathlib.Path`.
ImageLike: TypeAlias = Any


def as_images(
    images: ImageLike | Iterable[ImageLike],
    class_names: Sequence[str],
    samples: SampleKind = "images",
) -> list[Image]:
    """Turn what the Python API takes into images, or texts, to classify.

    Args:
        images: One image or several: paths, also of folders and lists; PIL images; bytes of image
            files; (H, W, 3) uint8 arrays. One text or several: strings, or bytes of them in UTF-8;
            only a `pathlib.Path` is a path.
        class_names: The classes.
        samples: What is to be classified.

    Raises:
        FedclipError: a path does not exist, or an object is none of these.
    """
    several = isinstance(images, Iterable) and not (
        isinstance(images, str | bytes | PIL.Image.Image)
        or (isinstance(images, np.ndarray) and images.ndim < (1 if samples == "texts" else 4))
    )
    found: list[Image] = []
    for number, image in enumerate(images if several else [images]):
        name = f"{noun(samples)} {number}"
        if isinstance(image, os.PathLike) or (isinstance(image, str) and samples == "images"):
            place = os.fspath(image)
            found += _find(place, class_names, Path("data"), no_progress, samples)
        elif samples == "texts":
            found.append(_text(image, name))
        else:
            found.append(Image(name, BytesSource(_file_of(name, image)), name))
    return found


def _text(text: Any, name: str) -> Image:
    content = text.encode(errors=KEEP) if isinstance(text, str) else text
    if not isinstance(content, bytes):
        raise FedclipError(
            f"{name}: is no text but {type(text).__name__}; pass a string, bytes in UTF-8, or a "
            "pathlib.Path"
        )
    return Image(content.decode(errors="replace"), TextSource(content), name, place=name)


def _file_of(name: str, image: Any) -> bytes:
    """Return an image file with the pixels of an image in memory."""
    if isinstance(image, bytes):
        return image
    file = BytesIO()
    try:
        pixels = image if isinstance(image, PIL.Image.Image) else PIL.Image.fromarray(image)
        if pixels.mode not in _PNG_MODES:
            pixels = pixels.convert("RGB")  # as encoders do
        pixels.save(file, "PNG", compress_level=0)
    except (TypeError, ValueError, AttributeError, OSError) as error:
        raise FedclipError(
            f"{name}: is no image ({first_line(error)}); pass a path, a PIL image, bytes of an "
            "image file, or an (H, W, 3) uint8 array"
        ) from None
    return file.getvalue()


# Pillow's modes that a PNG file can have.
_PNG_MODES = frozenset({"1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA"})


def read_lines(samples: SampleKind, stream: BinaryIO | None = None) -> Iterator[Image]:
    """Yield an image for each path, or a text for each line, that a stream has, as they come.

    Empty lines are left out.

    Args:
        samples: What the lines are: paths of images, or texts.
        stream: Standard input by default.
    """
    for number, line in enumerate(_lines(stream or sys.stdin.buffer), start=1):
        if not line:
            continue
        if samples == "images":
            path = os.fsdecode(line)
            yield _image(Path(path), path)
        else:
            text = line.decode(errors="replace")
            yield Image(text, TextSource(line), f"{number:08d}", place=f"line {number}")


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    """Yield lines in UTF-8 without their ends, which may be those of Windows; so may UTF-16."""
    first = stream.readline()
    if first.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        text = (first + stream.read()).decode("utf-16", "replace")
        stream = BytesIO(text.encode(errors="replace"))
        first = stream.readline()
    for line in chain([first.removeprefix(BOM_UTF8)], stream):
        yield line.rstrip(b"\r\n")

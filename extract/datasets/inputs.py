"""Images to classify, as users pass them: files, folders, lists, datasets, or a stream of paths."""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, TextIO, TypeAlias
from unicodedata import normalize

import numpy as np
import PIL.Image

from ...cache import FedclipError
from ...cache.common.errors import first_line
from ...cache.common.files import slug
from ...cache.common.progress import Progress, no_progress
from ...cache.schema import content_digest
from ..request import DatasetRequest
from .base import FileSource, Source
from .find import find_dataset, opened
from .image_lists import CLIENT, LABEL, PATH, columns_for, read_list
from .layout import is_split
from .registry import HF, KNOWN
from .tree import scan

STDIN = "-"
LISTS = (".csv", ".tsv", ".parquet")


@dataclass(frozen=True)
class Image:
    """An image to classify.

    Attributes:
        name: As the user knows it: its path, or its id in a dataset on the hub.
        source: Its source.
        id: Its id in its dataset: the path below the folder that the user passed.
        label: Its class, if that is known.
        client: The domain that it belongs to, if that is known.
    """

    name: str
    source: Source
    id: str
    label: str | None = None
    client: str | None = None


def find_images(
    places: Sequence[str],
    class_names: Sequence[str],
    data_dir: Path,
    progress: Progress = no_progress,
) -> Sequence[Image]:
    """List the images that `places` name.

    A folder is searched to any depth. An image below a folder named like a class belongs to that
    class; a domain is the folder above, ``<domain>/<class>/<image>``.

    Args:
        places: Images, folders, lists (``.csv``, ``.tsv`` or ``.parquet`` with a column ``path``,
            and ``label`` and ``client`` where known), known datasets, or ``hf:OWNER/NAME``.
        class_names: The classes.
        data_dir: Folder to look for datasets in.
        progress: Called during downloads.

    Raises:
        FedclipError: a place does not exist, a list cannot be read, or there is no image.
    """
    found: list[Image] = []
    for place in places:
        found += _find(place, frozenset(class_names), data_dir, progress)
    if not found:
        raise FedclipError(f"{places[0]}: contains no images")
    return found


def _find(
    place: str, class_names: frozenset[str], data_dir: Path, progress: Progress
) -> Iterable[Image]:
    path = Path(place)
    if path.is_dir():
        return _in_folder(path, class_names)
    if path.is_file():
        if path.suffix.lower() in LISTS:
            return _in_list(path, data_dir)
        return [_image(path, path.name)]
    if place in KNOWN or place.startswith(HF):
        return _in_dataset(place, data_dir, progress)
    raise FedclipError(
        f"{place}: no such image, folder or list; pass a path, - for paths on standard input, or a "
        "dataset as extract takes it"
    )


def _image(path: Path, image_id: str, label: str | None = None, client: str | None = None) -> Image:
    return Image(str(path), FileSource(path), image_id, label, client)


def _in_folder(root: Path, class_names: frozenset[str]) -> Iterator[Image]:
    for image_id, path in sorted(scan(root).sample_paths()):
        above = [normalize("NFC", part) for part in image_id.split("/")[:-1]]
        depth = next((at for at in reversed(range(len(above))) if above[at] in class_names), None)
        label = above[depth] if depth is not None else None
        domains = [name for name in above[:depth] if not is_split(name)] if label else []
        yield _image(Path(path), image_id, label, _client(domains[-1] if domains else None))


def _client(domain: str | None) -> str | None:
    """Return the client's name that a domain would have in a cache."""
    return domain.lower().replace(" ", "_") if domain else None


def _in_list(file: Path, data_dir: Path) -> Iterator[Image]:
    opened, root = read_list(file), None
    found = {name: columns_for(name, opened.columns)[:1] for name in (PATH, LABEL, CLIENT)}
    if not found[PATH]:
        raise FedclipError(f"{file}: has no column {PATH!r}; add or rename it")
    for where, values in opened.rows:
        path, label, client = (
            next((values[column] for column in columns), "") for columns in found.values()
        )
        if not path:
            raise FedclipError(f"{where}: has no {PATH}; fill it in")
        if root is None:
            elsewhere = not (file.parent / path).exists() and (data_dir / path).exists()
            root = data_dir if elsewhere else file.parent
        yield _image(root / path, path, label or None, _client(client or None))


def _in_dataset(place: str, data_dir: Path, progress: Progress) -> Iterator[Image]:
    request = DatasetRequest(dataset=place, data_dir=data_dir, name=slug(place) or None)
    dataset = opened(find_dataset(request, progress), progress)
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


# What the Python API takes for an image: a path, a PIL image, bytes of a file, or an array.
ImageLike: TypeAlias = Any


def as_images(images: ImageLike | Iterable[ImageLike], class_names: Sequence[str]) -> list[Image]:
    """Turn what the Python API takes into images to classify.

    Args:
        images: One image or several: paths, also of folders and lists; PIL images; bytes of image
            files; (H, W, 3) uint8 arrays.
        class_names: The classes.

    Raises:
        FedclipError: a path does not exist, or an object is none of these.
    """
    several = isinstance(images, Iterable) and not (
        isinstance(images, str | bytes | PIL.Image.Image)
        or (isinstance(images, np.ndarray) and images.ndim < 4)
    )
    found: list[Image] = []
    for number, image in enumerate(images if several else [images]):
        if isinstance(image, str | os.PathLike):
            found += _find(os.fspath(image), frozenset(class_names), Path("data"), no_progress)
        else:
            name = f"image {number}"
            found.append(Image(name, BytesSource(_file_of(name, image)), name))
    return found


def _file_of(name: str, image: Any) -> bytes:
    """Return an image file with the pixels of an image in memory."""
    if isinstance(image, bytes):
        return image
    try:
        pixels = image if isinstance(image, PIL.Image.Image) else PIL.Image.fromarray(image)
        file = BytesIO()
        pixels.save(file, "PNG", compress_level=0)
    except (TypeError, ValueError, AttributeError, OSError) as error:
        raise FedclipError(
            f"{name}: is no image ({first_line(error)}); pass a path, a PIL image, bytes of an "
            "image file, or an (H, W, 3) uint8 array"
        ) from None
    return file.getvalue()


def read_paths(stream: TextIO | None = None) -> Iterator[Image]:
    """Yield an image for each path that a stream has, one per line, as they come.

    Args:
        stream: Standard input by default.
    """
    for line in stream or sys.stdin:
        path = line.rstrip("\r\n")
        if path:
            yield _image(Path(path), path)

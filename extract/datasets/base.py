"""The datasets that are extracted: clients, their classes and their images, from any source."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ...cache import FedclipError
from ...cache.common.files import check_name
from ...cache.common.text import counted, flaw, match_names, near_twins, nfc
from .books import Books
from .registry import KNOWN, SampleKind, noun


class Source(Protocol):
    """Reads the bytes of a sample; small and picklable, since worker processes use it."""

    def read(self) -> bytes:
        """Read the bytes of the image file or text, still encoded.

        Raises:
            OSError: the sample cannot be read.
        """

    def stamp(self) -> str:
        """Return a text that changes when the sample does, without reading its file.

        Raises:
            OSError: the sample no longer exists.
        """


@dataclass(frozen=True)
class FileSource:
    """A file, of an image or a text."""

    path: Path

    def read(self) -> bytes:
        """Read the file."""
        return self.path.read_bytes()

    def stamp(self) -> str:
        """Return the file's size, modification time and status change time.

        The last cannot be set by users, and also changes with the file's name and permissions.
        """
        stat = self.path.stat()
        return f"{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ctime_ns}"


@dataclass(frozen=True)
class TextSource:
    """A text that a list contains itself, in UTF-8."""

    content: bytes

    def read(self) -> bytes:
        """Return the text."""
        return self.content

    def stamp(self) -> str:
        """Return a hash of the text."""
        return hashlib.sha256(self.content).hexdigest()


# class -> its images: id and source. A class may have no images.
ClassImages = Mapping[str, Sequence[tuple[str, Source]]]


@dataclass(frozen=True)
class LabelledImage:
    """An image: its id, unique within its client, its source, and its class as a label."""

    id: str
    source: Source
    label: int


@dataclass(frozen=True)
class ClientImages:
    """A client's images, sorted by id."""

    name: str
    images: tuple[LabelledImage, ...]

    def lost(self, skipped: Collection[str]) -> list[LabelledImage]:
        """Return all images of the first class of which no image would be left.

        Args:
            skipped: Ids of images that cannot be used.
        """
        left = {image.label for image in self.images if image.id not in skipped}
        lost = min({image.label for image in self.images} - left, default=None)
        return [image for image in self.images if image.label == lost]


@dataclass(frozen=True)
class ImageDataset:
    """A dataset whose images are listed.

    Attributes:
        name: First part of its caches' names.
        root: The folder, the list, or the repository, ``hf:owner/name``.
        class_names: The classes, in the order of the labels.
        clients: The clients, one per domain.
        warnings: Deviations from the published dataset and other doubts, one line each.
        alone: Whether it is one site's client, which may share a cache with other sites' clients.
        hub: The repository, commit, split, columns and clients; None if not from the hub.
        layout: How its files were understood; empty if there was only one way.
        books: What was seen besides its samples.
        samples: What its clients have: images, or texts.
    """

    name: str
    root: Path | str
    class_names: tuple[str, ...]
    clients: tuple[ClientImages, ...]
    warnings: tuple[str, ...] = ()
    alone: bool = False
    hub: Mapping[str, Any] | None = None
    layout: str = ""
    books: Books = Books()
    samples: SampleKind = "images"


def gather(
    name: str,
    root: Path | str,
    clients: Sequence[tuple[str, ClassImages]],
    *,
    class_names: Sequence[str] = (),
    samples: SampleKind = "images",
    known: str | None = None,
    alone: bool = False,
    hub: Mapping[str, Any] | None = None,
    layout: str = "",
    books: Books | None = None,
    warnings: Sequence[str] = (),
) -> ImageDataset:
    """Make a dataset from each client's images by class.

    Names and ids are composed (Unicode's NFC). Two folders in one place whose names are equal then
    are refused, as one of them usually is a copy of the other.

    Args:
        name: First part of its caches' names.
        root: Where it was found.
        clients: Each client's name and images.
        class_names: Classes in order; by default all classes with images, sorted. A class folder
            may differ from them in case, spaces and underscores.
        samples: What the clients have.
        known: The published dataset whose sizes it should have.
        alone: Whether it is one site's client.
        hub: Its origin on the hub.
        layout: How its files were understood.
        books: What was seen besides its images.
        warnings: Doubts about its files.

    Raises:
        FedclipError: a name is unsafe as a file name, two clients, classes or images have the same
            name, a class name cannot be stored, or the classes of the clients differ from each
            other or from `class_names`.
    """
    class_names = tuple(map(nfc, class_names))
    taken = [(client, classes) for client, classes in clients if any(classes.values())]
    found = [(client, _composed(root, client, classes, class_names)) for client, classes in taken]
    _check_clients(root, [client for client, _ in found])
    if class_names:
        _check_given(root, found, class_names, samples)
    else:
        class_names = _common_classes(root, found)
    for class_name in class_names:
        if unfit := flaw(class_name):
            raise FedclipError(f"{root}: has a class {class_name!r} {unfit}; rename it")
    twins = _twin_warnings(class_names)
    spellings = _spelling_warnings(taken, class_names, samples)
    return ImageDataset(
        name=check_name(name, "dataset"),
        root=root,
        class_names=tuple(class_names),
        clients=tuple(_client(root, client, classes, class_names) for client, classes in found),
        warnings=(
            *warnings,
            *(_size_warnings(known, found) if known else ()),
            *twins,
            *spellings,
        ),
        alone=alone,
        hub={**hub, "clients": [client for client, _ in found]} if hub else None,
        layout=layout,
        books=books or Books(),
        samples=samples,
    )


def _composed(
    root: Path | str, client: str, classes: ClassImages, class_names: Sequence[str]
) -> ClassImages:
    """Compose a client's class names, and spell them as `class_names` does."""
    spelled = match_names(classes, class_names)
    found: dict[str, str] = {}
    for raw in classes:
        name = spelled.get(raw, nfc(raw))
        if name in found:
            raise FedclipError(
                f"{root}: {client} has the classes {found[name]!a} and {raw!a}, which are both "
                f"{name!r}; merge them into one folder, or remove the copy"
            )
        found[name] = raw
    return {name: classes[raw] for name, raw in found.items()}


def _check_clients(root: Path | str, clients: Sequence[str]) -> None:
    for client in clients:
        if clients.count(client) > 1:
            raise FedclipError(
                f"{root}: two domains would both become the client {client!r}; rename one"
            )


def _check_given(
    root: Path | str,
    clients: Sequence[tuple[str, ClassImages]],
    class_names: Sequence[str],
    samples: SampleKind,
) -> None:
    for client, classes in clients:
        strange = sorted({name for name, images in classes.items() if images} - {*class_names})
        if strange:
            raise FedclipError(
                f"{root}: {client} has {samples} of {', '.join(map(repr, strange))}, but "
                f"--class-names has only {', '.join(class_names)}; add or rename the class"
            )


def _common_classes(
    root: Path | str, clients: Sequence[tuple[str, ClassImages]]
) -> tuple[str, ...]:
    somewhere = {name for _, classes in clients for name, images in classes.items() if images}
    lacking = "; ".join(
        f"{client} lacks {', '.join(sorted(somewhere - set(classes)))}"
        for client, classes in clients
        if not somewhere <= set(classes)
    )
    if lacking:
        twins = [f"{one!r} and {other!r}" for one, other in near_twins(sorted(somewhere))]
        spelling = f" ({', '.join(twins)} differ only in spelling)" if twins else ""
        raise FedclipError(
            f"{root}: all domains must have the same classes, but {lacking}{spelling}; "
            "add or rename them, or list all classes with --class-names"
        )
    return tuple(sorted(somewhere))


def _client(
    root: Path | str, client: str, classes: ClassImages, class_names: Sequence[str]
) -> ClientImages:
    raw_ids: dict[str, str] = {}
    images = []
    for label, name in enumerate(class_names):
        for raw_id, source in classes.get(name, ()):
            image_id = nfc(raw_id)
            if image_id in raw_ids:
                raise FedclipError(
                    f"{root}: {client} has the images {raw_ids[image_id]!a} and {raw_id!a}, which "
                    "have one name; rename one, or remove the copy"
                )
            raw_ids[image_id] = raw_id
            images.append(LabelledImage(image_id, source, label))
    return ClientImages(client, tuple(sorted(images, key=lambda image: image.id)))


def _twin_warnings(class_names: Sequence[str]) -> tuple[str, ...]:
    return tuple(
        f"the classes {one!r} and {other!r} differ only in case, spaces or underscores; encoders "
        "such as CLIP do not tell them apart, so merge them if they are one class"
        for one, other in near_twins(class_names)
    )


def _spelling_warnings(
    clients: Sequence[tuple[str, ClassImages]], class_names: Sequence[str], samples: SampleKind
) -> tuple[str, ...]:
    raw_names = sorted({nfc(name) for _, classes in clients for name in classes})
    spelled = match_names(raw_names, class_names)
    return tuple(
        f"{samples} of {raw!r} are taken as {name!r}, as --class-names spells it"
        for raw, name in spelled.items()
        if raw != name
    )


def _size_warnings(known: str, clients: Sequence[tuple[str, ClassImages]]) -> tuple[str, ...]:
    published = KNOWN[known]
    sizes = {client: sum(map(len, classes.values())) for client, classes in clients}
    what = noun(published.samples)
    warnings = tuple(
        f"{known}: {domain.client} has {counted(sizes.get(domain.client, 0), what)} here, but "
        f"{domain.size} as published"
        for domain in published.domains
        if domain.size is not None and sizes.get(domain.client, 0) != domain.size
    )
    total = sum(sizes.values())
    if not warnings and published.size not in (None, total):
        return (f"{known}: has {counted(total, what)} here, but {published.size} as published",)
    return warnings

"""The clients, classes and images of a data set on disk."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..cache import FedclipError
from ..cache.files import check_name, client_name, slug
from ..cache.report import Report

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)

# How far below --data-dir a known data set is looked for: PACS/kfold is 2 deep.
SEARCH_DEPTH = 3


@dataclass(frozen=True)
class ImageFile:
    """One image: its id (path below the data set's root), its file and its class."""

    id: str
    path: Path
    label: int


@dataclass(frozen=True)
class ClientImages:
    """A domain's images, sorted by id."""

    name: str
    images: tuple[ImageFile, ...]


@dataclass(frozen=True)
class ImageDataset:
    """A data set found on disk.

    Attributes:
        name: What its caches are filed under.
        root: The folder that the images' ids are relative to.
        class_names: The classes, in the order of the labels.
        clients: One per domain.
        warnings: What is unusual about it, a line each.
    """

    name: str
    root: Path
    class_names: tuple[str, ...]
    clients: tuple[ClientImages, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Domain:
    """A domain of a known data set: its folder names, and how many images were published."""

    client: str
    folders: tuple[str, ...]
    images: int


@dataclass(frozen=True)
class KnownDataset:
    """A published data set in the layouts in which it is distributed.

    Attributes:
        domains: Its domains; a folder that holds one folder of each is its root.
        classes: Names for class folders that are named otherwise, by numbers say.
        splits: Folders between domain and class, all of which belong to the domain.
        whole: The folder to take instead where none of `splits` is there.
        make: Makes it in a folder, where the package can.
    """

    domains: tuple[Domain, ...]
    classes: Mapping[str, str] = field(default_factory=dict)
    splits: tuple[str, ...] = ()
    whole: str = ""
    make: Callable[[Path, Report], None] | None = None


def _draw_demo(folder: Path, report: Report) -> None:
    from .demo.dataset import draw_dataset

    draw_dataset(folder, report)


DEMO = "demo"

KNOWN: Mapping[str, KnownDataset] = {
    # Venkateswara et al. 2017, "Deep Hashing Network for Unsupervised Domain Adaptation".
    "office-home": KnownDataset(
        (
            Domain("art", ("Art",), 2427),
            Domain("clipart", ("Clipart",), 4365),
            Domain("product", ("Product",), 4439),
            Domain("real_world", ("Real World", "Real_World", "RealWorld"), 4357),
        )
    ),
    # Li et al. 2017, "Deeper, Broader and Artier Domain Generalization".
    "pacs": KnownDataset(
        (
            Domain("art_painting", ("art_painting",), 2048),
            Domain("cartoon", ("cartoon",), 2344),
            Domain("photo", ("photo",), 1670),
            Domain("sketch", ("sketch",), 3929),
        )
    ),
    # Fang et al. 2013, "Unbiased Metric Learning"; DomainBed names domains and classes otherwise.
    "vlcs": KnownDataset(
        (
            Domain("caltech", ("CALTECH", "Caltech101"), 1415),
            Domain("labelme", ("LABELME", "LabelMe"), 2656),
            Domain("pascal", ("PASCAL", "VOC2007"), 3376),
            Domain("sun", ("SUN", "SUN09"), 3282),
        ),
        classes={"0": "bird", "1": "car", "2": "chair", "3": "dog", "4": "person"},
        splits=("train", "crossval", "test"),
        whole="full",
    ),
    # Drawn by this package.
    DEMO: KnownDataset(
        tuple(Domain(style, (style,), 300) for style in ("cartoon", "neon", "photo", "sketch")),
        make=_draw_demo,
    ),
}


def obtain_dataset(dataset: str, data_dir: Path, report: Report) -> None:
    """Make a data set that the package can make, if it is not below `data_dir` yet."""
    make = KNOWN[dataset].make if dataset in KNOWN else None
    if make is not None and not _search(dataset, data_dir):
        make(data_dir / dataset, report)


def open_dataset(dataset: str, data_dir: Path, name: str | None = None) -> ImageDataset:
    """Find a data set by its published name below `data_dir`, or by its folder.

    A folder, relative to the working directory or to `data_dir`, is laid out
    ``<domain>/<class>/<image>``. `name` is what its caches are filed under, by
    default the published name or the folder's.

    Raises:
        FedclipError: there is no such data set, it has no images, or its domains
            differ in their classes.
    """
    if dataset in KNOWN:
        known = KNOWN[dataset]
        root, folders = _find_known(dataset, known, data_dir)
        clients = [
            (domain.client, _class_folders(folders[domain.client], known))
            for domain in known.domains
        ]
    else:
        root = _find_folder(dataset, data_dir)
        clients = [(client_name(folder.name), _class_folders(folder)) for folder in _folders(root)]
    _check_utf8(root)
    filed_as = name or (dataset if dataset in KNOWN else slug(root.name.lower()))
    check_name(filed_as, "data set")
    found = _collect(root, clients)
    class_names = _common_classes(root, found)
    return ImageDataset(
        name=filed_as,
        root=root,
        class_names=class_names,
        clients=tuple(_client(root, client, classes, class_names) for client, classes in found),
        warnings=_size_warnings(dataset, found) if dataset in KNOWN else (),
    )


ClassFolders = dict[str, list[Path]]
ClassImages = dict[str, list[Path]]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")


def _find_known(dataset: str, known: KnownDataset, data_dir: Path) -> tuple[Path, dict[str, Path]]:
    """Find the nearest folder that holds a folder of each domain."""
    if not data_dir.is_dir():
        raise FedclipError(
            f"{data_dir}: there is no such folder to look for {dataset} in; "
            "say where the data is with --data-dir"
        )
    found = _search(dataset, data_dir)
    if found is None:
        wanted = ", ".join("/".join(domain.folders) for domain in known.domains)
        raise FedclipError(
            f"{data_dir}: {dataset} is not below this folder (no folder holds {wanted}); get it "
            "and put it there, or say where it is with --data-dir"
        )
    return found


def _search(dataset: str, data_dir: Path) -> tuple[Path, dict[str, Path]] | None:
    level = [data_dir.resolve()] if data_dir.is_dir() else []
    for _ in range(SEARCH_DEPTH + 1):
        # Among equals, a folder named like the data set comes first.
        for root in sorted(level, key=lambda path: _plain(dataset) not in _plain(path.name)):
            folders = _match_domains(root, KNOWN[dataset])
            if folders:
                return root, folders
        level = [child for parent in level for child in _folders(parent)]
    return None


def _match_domains(root: Path, known: KnownDataset) -> dict[str, Path]:
    children = _folders(root)
    matches: dict[str, Path] = {}
    for domain in known.domains:
        names = {_plain(folder) for folder in domain.folders}
        found = [child for child in children if _plain(child.name) in names]
        if not found:
            return {}
        if len(found) > 1:
            raise FedclipError(
                f"{root}: {' and '.join(child.name for child in found)} would both be the client "
                f"{domain.client!r}; keep one of them"
            )
        matches[domain.client] = found[0]
    return matches


def _find_folder(dataset: str, data_dir: Path) -> Path:
    for folder in (Path(os.path.expanduser(dataset)), data_dir / dataset):  # noqa: PTH111
        if dataset and folder.is_dir():
            return folder.resolve()
    raise FedclipError(
        f"there is no data set or folder {dataset!r}; known data sets are {', '.join(KNOWN)}, "
        "and a folder is laid out <domain>/<class>/<image>"
    )


def _class_folders(domain: Path, known: KnownDataset | None = None) -> ClassFolders:
    """Map a domain's classes to their folders, of which a split domain has several."""
    parents = [domain]
    if known is not None:
        splits = [domain / split for split in known.splits if (domain / split).is_dir()]
        whole = [domain / known.whole] if known.whole and (domain / known.whole).is_dir() else []
        parents = splits or whole or parents
    classes: ClassFolders = {}
    for parent in parents:
        for folder in _folders(parent):
            name = known.classes.get(folder.name, folder.name) if known else folder.name
            classes.setdefault(name, []).append(folder)
    return classes


def _images(folder: Path) -> list[Path]:
    return [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] != "." and path.is_file()
    ]


def _collect(
    root: Path, clients: Sequence[tuple[str, ClassFolders]]
) -> list[tuple[str, ClassImages]]:
    """List each domain's images by class; a folder with none at all is no domain."""
    found: dict[str, ClassImages] = {}
    for client, classes in clients:
        images = {
            name: [image for folder in folders for image in _images(folder)]
            for name, folders in classes.items()
        }
        if not any(images.values()):
            continue
        if client in found:
            raise FedclipError(f"{root}: two domains would both be the client {client!r}")
        found[client] = images
    if not found:
        raise FedclipError(
            f"{root}: there are no images laid out <domain>/<class>/<image> in this folder"
        )
    return list(found.items())


def _common_classes(root: Path, clients: Sequence[tuple[str, ClassImages]]) -> tuple[str, ...]:
    somewhere = {name for _, classes in clients for name, images in classes.items() if images}
    everywhere = set.intersection(*(set(classes) for _, classes in clients)) & somewhere
    if everywhere != somewhere:
        lacking = "; ".join(
            f"{client} lacks {', '.join(sorted(somewhere - set(classes)))}"
            for client, classes in clients
            if not somewhere <= set(classes)
        )
        raise FedclipError(
            f"{root}: all domains must have the same classes, and {lacking}; "
            "add or rename the folders"
        )
    return tuple(sorted(somewhere))


def _client(
    root: Path, client: str, classes: ClassImages, class_names: Sequence[str]
) -> ClientImages:
    images = [
        ImageFile(_image_id(path, root), path, label)
        for label, name in enumerate(class_names)
        for path in classes[name]
    ]
    return ClientImages(client, tuple(sorted(images, key=lambda image: image.id)))


def _image_id(path: Path, root: Path) -> str:
    _check_utf8(path)
    return path.relative_to(root).as_posix()


def _check_utf8(path: Path) -> None:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise FedclipError(f"{str(path)!r}: this name is not UTF-8; rename it") from None


def _size_warnings(dataset: str, clients: Sequence[tuple[str, ClassImages]]) -> tuple[str, ...]:
    sizes = {client: sum(map(len, classes.values())) for client, classes in clients}
    return tuple(
        f"{dataset}: {domain.client} has {sizes.get(domain.client, 0)} images here, and "
        f"{domain.images} as published"
        for domain in KNOWN[dataset].domains
        if sizes.get(domain.client, 0) != domain.images
    )

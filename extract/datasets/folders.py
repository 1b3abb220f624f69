"""Datasets as folders of image files: published layouts, any folder, one site's folder."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from ...cache import FedclipError
from ...cache.common.fields import suggest
from ...cache.common.files import client_name, slug
from ...cache.common.text import check_utf8
from .base import FileSource, ImageDataset, Source, gather
from .registry import KNOWN, KnownDataset

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)

# Levels below --data-dir that are searched for a known dataset: PACS/kfold is 2 deep.
SEARCH_DEPTH = 3

ClassFolders = dict[str, list[Path]]
ClassFiles = dict[str, list[tuple[str, Source]]]


def open_dataset(
    dataset: str,
    data_dir: Path,
    name: str | None = None,
    *,
    client: str | None = None,
    class_names: Sequence[str] = (),
) -> ImageDataset:
    """Find a dataset by its published name below `data_dir`, or by its folder.

    A folder is laid out ``<domain>/<class>/<image>``, or ``<class>/<image>`` with `client`.

    Args:
        dataset: A published name, or a folder relative to the working directory or `data_dir`.
        data_dir: Folder to look for datasets in.
        name: First part of its caches' names; by default the published name or the folder's.
        client: The only client, to which all images belong.
        class_names: Classes in order; by default all that have an image, sorted.

    Raises:
        FedclipError: the dataset is not found, has no images, or its domains
            differ in their classes.
    """
    known = KNOWN.get(dataset)
    if known is not None:
        root, folders = _find_known(dataset, known, data_dir)
        clients = [
            (domain.client, _class_folders(folders[domain.client], known))
            for domain in known.domains
        ]
    else:
        root = find_folder(dataset, data_dir)
        clients = (
            [(client_name(client), _class_folders(root))]
            if client
            else [(client_name(folder.name), _class_folders(folder)) for folder in _folders(root)]
        )
    check_utf8(root)
    found = [(domain, _class_files(root, classes)) for domain, classes in clients]
    if not any(files for _, classes in found for files in classes.values()):
        layout = "<class>/<image>" if client else "<domain>/<class>/<image>"
        raise FedclipError(f"{root}: contains no images laid out {layout}; check the folder")
    return gather(
        name or (dataset if known else slug(root.name.lower())),
        root,
        found,
        class_names=class_names,
        known=dataset if known else None,
        alone=client is not None,
    )


def below(dataset: str, data_dir: Path) -> Path | None:
    """Find the folder below `data_dir` that contains a known dataset."""
    found = _search(dataset, data_dir)
    return found[0] if found else None


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")


def _find_known(dataset: str, known: KnownDataset, data_dir: Path) -> tuple[Path, dict[str, Path]]:
    """Find the nearest folder that contains a folder for each domain."""
    if not data_dir.is_dir():
        raise FedclipError(
            f"{data_dir}: folder not found, so {dataset} cannot be looked for; "
            "set --data-dir to the folder with the data"
        )
    found = _search(dataset, data_dir)
    if found is None:
        wanted = ", ".join("/".join(domain.folders) for domain in known.domains)
        raise FedclipError(
            f"{data_dir}: {dataset} was not found in this folder (no subfolder contains {wanted}); "
            "download it to there, or set --data-dir to the folder with the data"
        )
    return found


def _search(dataset: str, data_dir: Path) -> tuple[Path, dict[str, Path]] | None:
    top = data_dir.resolve()
    level = {top: _folders(top)} if top.is_dir() else {}
    for depth in range(SEARCH_DEPTH + 1):
        # At equal depth, a folder named like the dataset comes first.
        for root in sorted(level, key=lambda path: _plain(dataset) not in _plain(path.name)):
            folders = _match_domains(root, level[root], KNOWN[dataset])
            if folders:
                return root, folders
        if depth < SEARCH_DEPTH:
            level = {
                child: _readable_folders(child) for children in level.values() for child in children
            }
    return None


def _readable_folders(folder: Path) -> list[Path]:
    """List the folders in a folder; none in an unreadable one, such as a disk's lost+found."""
    try:
        return _folders(folder)
    except PermissionError:
        return []


def _match_domains(root: Path, children: Sequence[Path], known: KnownDataset) -> dict[str, Path]:
    matches: dict[str, Path] = {}
    for domain in known.domains:
        names = {_plain(folder) for folder in domain.folders}
        found = [child for child in children if _plain(child.name) in names]
        if not found:
            return {}
        if len(found) > 1:
            raise FedclipError(
                f"{root}: {' and '.join(child.name for child in found)} would both become the "
                f"client {domain.client!r}; keep one of them"
            )
        matches[domain.client] = found[0]
    return matches


def find_folder(dataset: str, data_dir: Path) -> Path:
    """Find a folder, relative to the working directory or to `data_dir`."""
    for folder in (Path(os.path.expanduser(dataset)), data_dir / dataset):  # noqa: PTH111
        if dataset and folder.is_dir():
            return folder.resolve()
    raise FedclipError(
        f"unknown dataset or folder {dataset!r}{suggest(dataset, KNOWN)} "
        "(a folder is laid out <domain>/<class>/<image>)"
    )


def _class_folders(domain: Path, known: KnownDataset | None = None) -> ClassFolders:
    """Map a domain's classes to their folders, several per class if the domain is split."""
    parents = [domain]
    if known is not None:
        splits = [domain / split for split in known.splits if (domain / split).is_dir()]
        whole = [domain / known.whole] if known.whole and (domain / known.whole).is_dir() else []
        parents = splits or whole or parents
    classes: ClassFolders = {}
    for parent in parents:
        for folder in _folders(parent):
            name = known.names.get(folder.name, folder.name) if known else folder.name
            classes.setdefault(name, []).append(folder)
    return classes


def _images(folder: Path) -> list[Path]:
    return [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] != "." and _is_file_or_lost(path)
    ]


def _is_file_or_lost(path: Path) -> bool:
    """Return whether this is a file or a broken link, which must be reported as skipped."""
    return path.is_file() or (path.is_symlink() and not path.exists())


def _class_files(root: Path, classes: ClassFolders) -> ClassFiles:
    files = {
        name: [path for folder in folders for path in _images(folder)]
        for name, folders in classes.items()
    }
    return {
        name: [(image_id(path, root), FileSource(path)) for path in paths]
        for name, paths in files.items()
    }


def image_id(path: Path, root: Path) -> str:
    """Return an image file's id: its path below `root`."""
    check_utf8(path)
    return path.relative_to(root).as_posix()

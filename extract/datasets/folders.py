"""Datasets as folders of image or text files: published layouts, any folder, one site's."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...cache import FedclipError
from ...cache.common.fields import listed, suggest
from ...cache.common.files import client_name, slug
from ...cache.common.text import check_utf8
from .base import ImageDataset, gather
from .layout import is_split, read_layout
from .registry import KNOWN, KnownDataset
from .tree import scan

# Levels below --data-dir that are searched for a known dataset: PACS/kfold is 2 deep.
SEARCH_DEPTH = 3

# A client's name by the path of a folder below a known dataset's root.
DomainFolders = dict[str, str]


def open_dataset(
    dataset: str,
    data_dir: Path,
    name: str | None = None,
    *,
    client: str | None = None,
    class_names: Sequence[str] = (),
    splits: Sequence[str] = (),
) -> ImageDataset:
    """Find a dataset by its published name below `data_dir`, or by its folder.

    A folder is laid out ``<domain>/<class>/<image>``, or ``<class>/<image>`` with `client`, and
    may be divided into splits.

    Args:
        dataset: A published name, or a folder relative to the working directory or `data_dir`.
        data_dir: Folder to look for datasets in.
        name: First part of its caches' names; by default the published name or the folder's.
        client: The only client, to which all images belong.
        class_names: Classes in order; by default all that have an image, sorted.
        splits: Splits to take; by default all that the folder is divided into.

    Raises:
        FedclipError: the dataset is not found, has no images, may be laid out in several ways, or
            its domains differ in their classes.
    """
    known = KNOWN.get(dataset)
    warnings: list[str] = []
    if known is not None:
        root, folders, warnings = _find_known(dataset, known, data_dir)
        check_utf8(root)
        clients = {path.rpartition("/")[2]: name for path, name in folders.items()}
        tree = scan(root, lambda path: _leads_to(path, folders), known.samples)
        layout = read_layout(
            tree,
            splits=splits,
            domain_of=lambda folder: clients.get(folder, folder),
            class_of=lambda folder: known.names.get(folder, folder),
            required=[domain.client for domain in known.domains],
        )
        found = layout.domains
    else:
        root = find_folder(dataset, data_dir)
        check_utf8(root)
        tree = scan(root)
        if tree.count == len(tree.samples):  # no image but the folder's own, such as a logo
            texts = scan(root, kind="texts")
            tree = texts if texts.count else tree
        layout = read_layout(tree, client=client, splits=splits)
        found = [(client_name(domain), classes) for domain, classes in layout.domains]
    return gather(
        name or (dataset if known else slug(root.name.lower())),
        root,
        found,
        class_names=class_names,
        samples=tree.kind,
        known=dataset if known else None,
        alone=client is not None,
        layout=layout.pattern,
        books=layout.books,
        warnings=[*warnings, *layout.warnings],
    )


def places_below(data_dir: Path, dataset: str) -> list[Path]:
    """Find the folders below `data_dir` that contain a known dataset, at the nearest level."""
    return [*_search(dataset, data_dir)]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")


def _find_known(
    dataset: str, known: KnownDataset, data_dir: Path
) -> tuple[Path, DomainFolders, list[str]]:
    """Find the nearest folder that contains folders for each domain, and what to warn of."""
    if not data_dir.is_dir():
        raise FedclipError(
            f"{data_dir}: folder not found, so {dataset} cannot be looked for; "
            "set --data-dir to the folder with the data"
        )
    found = _search(dataset, data_dir)
    if not found:
        wanted = ", ".join("/".join(domain.folders) for domain in known.domains)
        raise FedclipError(
            f"{data_dir}: {dataset} was not found in this folder (no subfolder contains {wanted}); "
            "download it to there, or set --data-dir to the folder with the data"
        )
    named = [root for root in found if _plain(dataset) in _plain(root.name)] or [*found]
    if len(named) > 1:
        raise FedclipError(
            f"{data_dir}: {listed([*map(str, named)], 'and')} all look like {dataset}; choose one "
            f"with --dataset, such as --dataset {named[0]}, or with --data-dir"
        )
    others = [str(root) for root in found if root != named[0]]
    warning = f"{dataset}: is taken from {named[0]} for its name; also in {listed(others, 'and')}"
    return named[0], found[named[0]], [warning] if others else []


def _search(dataset: str, data_dir: Path) -> dict[Path, DomainFolders]:
    """Find the folders that contain a known dataset, at the nearest level that has any."""
    top = data_dir.resolve()
    level = {top: _folders(top)} if top.is_dir() else {}
    for depth in range(SEARCH_DEPTH + 1):
        found = {
            root: folders
            for root, children in level.items()
            if (folders := _domain_folders(root, children, KNOWN[dataset]))
        }
        if found or depth == SEARCH_DEPTH:
            return found
        level = {
            child: _readable_folders(child) for children in level.values() for child in children
        }
    return {}


def _readable_folders(folder: Path) -> list[Path]:
    """List the folders in a folder; none in an unreadable one, such as a disk's lost+found."""
    try:
        return _folders(folder)
    except PermissionError:
        return []


def _domain_folders(root: Path, children: Sequence[Path], known: KnownDataset) -> DomainFolders:
    """Find the folders of the domains in a folder or in its splits; none if a domain is missing."""
    return _match_domains(root, {root: children}, known) or _match_domains(
        root,
        {child: _readable_folders(child) for child in children if is_split(child.name)},
        known,
    )


def _match_domains(
    root: Path, parents: Mapping[Path, Sequence[Path]], known: KnownDataset
) -> DomainFolders:
    clients = {_plain(name): each.client for each in known.domains for name in each.folders}
    matches = {
        parent: [child for child in children if _plain(child.name) in clients]
        for parent, children in parents.items()
    }
    folders = {
        path.relative_to(root).as_posix(): clients[_plain(path.name)]
        for paths in matches.values()
        for path in paths
    }
    if {*folders.values()} != {domain.client for domain in known.domains}:
        return {}
    for parent, paths in matches.items():
        for domain in known.domains:
            same = [path.name for path in paths if clients[_plain(path.name)] == domain.client]
            if len(same) > 1:
                raise FedclipError(
                    f"{parent}: {' and '.join(same)} would both become the client "
                    f"{domain.client!r}; keep one of them"
                )
    return folders


def _leads_to(path: str, folders: DomainFolders) -> bool:
    """Return whether a folder is a domain's, below one, or above one."""
    return any(
        f"{path}/".startswith(f"{folder}/") or folder.startswith(f"{path}/") for folder in folders
    )


def find_folder(dataset: str, data_dir: Path) -> Path:
    """Find a folder, relative to the working directory or to `data_dir`."""
    for folder in (Path(os.path.expanduser(dataset)), data_dir / dataset):  # noqa: PTH111
        if dataset and folder.is_dir():
            return folder.resolve()
    raise FedclipError(
        f"unknown dataset or folder {dataset!r}{suggest(dataset, KNOWN)} "
        "(a folder is laid out <domain>/<class>/<image>)"
    )

"""Finds the requested dataset: a folder, a list, or a repository on the hub."""

import re
from pathlib import Path

from ...cache import FedclipError
from ...cache.common.progress import Progress, no_progress
from .. import hub
from ..request import DatasetRequest
from .base import ImageDataset
from .folders import open_dataset, places_below
from .hub_tables import LocatedTable, locate_table
from .image_lists import open_list
from .registry import HF, KNOWN, HubDataset

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def find_dataset(
    request: DatasetRequest, progress: Progress = no_progress
) -> ImageDataset | LocatedTable:
    """Find the requested dataset; one on the hub is located, but not downloaded yet.

    A known dataset below the data folder is read from there; otherwise it is drawn or located
    on the hub.

    Raises:
        FedclipError: the dataset is not found, or options contradict each other.
    """
    dataset = request.dataset
    if request.listed is not None:
        _check_options(request, None, None)
        return open_list(
            request.listed,
            request.data_dir,
            dataset=dataset,
            name=request.name,
            client=request.client,
            class_names=request.class_names,
            columns=request.columns,
        )
    if dataset is None:
        raise FedclipError("--dataset: is missing; set it or --manifest")
    known = KNOWN.get(dataset)
    if known is None:
        here, place = False, _repository(dataset)
    else:
        here = bool(places_below(request.data_dir, dataset))
        place = None if here else known.hub
    _check_options(request, place, dataset if known else None)
    if place is not None:
        return _locate(request, place, dataset if known else None)
    if known is not None and known.make is not None and not here:
        known.make(request.data_dir / dataset, progress)
    return open_dataset(
        dataset,
        request.data_dir,
        request.name,
        client=request.client,
        class_names=request.class_names,
        splits=request.table.split.lower().split("+") if request.table.split else (),
    )


def opened(found: ImageDataset | LocatedTable, progress: Progress = no_progress) -> ImageDataset:
    """Download a dataset's missing files, and list its images.

    Raises:
        FedclipError: the dataset cannot be downloaded, or has no images.
    """
    return found.open(progress) if isinstance(found, LocatedTable) else found


def place_of(dataset: str, data_dir: Path) -> str | None:
    """Return where a known dataset is on this machine: its folder or the hub's cache, or None."""
    if folders := places_below(data_dir, dataset):
        return ", ".join(map(str, folders))
    place = KNOWN[dataset].hub
    there = place is not None and hub.is_here(hub.Repository(place.repository, hub.DATASET))
    return "the hub's cache" if there else None


def _repository(dataset: str) -> HubDataset | None:
    if not dataset.startswith(HF):
        return None
    repository = dataset.removeprefix(HF)
    if not _REPOSITORY.fullmatch(repository):
        raise FedclipError(f"{dataset}: not a repository's name; use {HF}OWNER/NAME")
    return HubDataset(repository)


def _check_options(request: DatasetRequest, place: HubDataset | None, known: str | None) -> None:
    """Refuse options that would have no effect."""
    if request.client and known:
        raise FedclipError(
            f"--client {request.client}: {known} has its own clients; leave out --client, or pass "
            "a folder laid out <class>/<image>"
        )
    given = [option for option, value in request.table.options.items() if value]
    if request.listed is None and "--split" in given:
        given.remove("--split")  # folders have splits too
    if given and place is None:
        raise FedclipError(
            f"{given[0]}: only applies to datasets on the hub ({HF}OWNER/NAME), but "
            f"{request.dataset or request.listed} is on this machine; leave out {given[0]}"
        )
    if request.columns and request.listed is None:
        raise FedclipError(
            f"--column {request.columns[0]}: only applies to lists of images (--manifest); leave "
            "out --column"
        )


def _locate(request: DatasetRequest, place: HubDataset, known: str | None) -> LocatedTable:
    try:
        return locate_table(
            request.table.over(place),
            request.table.revision or hub.MAIN,
            name=request.name,
            known=known,
            client=request.client,
            class_names=request.class_names,
        )
    except FedclipError as error:
        if known is None:
            raise
        raise FedclipError(f"{error}; or set --data-dir to a folder with {known}") from None

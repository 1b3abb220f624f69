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
from .image_lists import is_list, open_list
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
    dataset, file = request.dataset, request.listed
    if file is not None or is_list(dataset or ""):
        _check_options(request, None, None)
        return open_list(
            file or Path(dataset or ""),
            request.data_dir,
            dataset=dataset if file is not None else None,
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
    there = place is not None and hub.is_here(
        hub.Repository(place.repository, hub.DATASET, place.revision)
    )
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
    if request.columns and request.listed is None and not is_list(request.dataset or ""):
        raise FedclipError(
            f"--column {request.columns[0]}: only applies to lists (--manifest); leave out --column"
        )
    if request.table.image and request.table.text:
        raise FedclipError(
            f"--text-column {request.table.text}: a table is one of images or of texts; leave out "
            "--text-column or --image-column"
        )


def _locate(request: DatasetRequest, place: HubDataset, known: str | None) -> LocatedTable:
    place = request.table.over(place)
    try:
        return locate_table(
            place,
            place.revision,
            name=request.name,
            known=known,
            client=request.client or place.client,
            class_names=request.class_names,
        )
    except FedclipError as error:
        if known is None or not all(domain.folders for domain in KNOWN[known].domains):
            raise
        raise FedclipError(f"{error}; or set --data-dir to a folder with {known}") from None

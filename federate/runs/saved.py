"""Finds the parameters that a run saved, and makes a classifier of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from safetensors.torch import load_file

from ...cache import CacheFolder, FedclipError
from ...cache.common.fields import listed, suggest
from ..data.federation import class_texts, test_rows
from ..data.partition import PARTITIONS
from ..models.classifier import (
    CLASS_TEXTS,
    Classifier,
    OldFactsError,
    make_classifier,
    read_classifier,
)
from ..settings import Settings
from .experiment import load_experiment
from .find import CONFIG
from .folder import ADAPTER, PERSONAL, RunFolder
from .results import OVER, RunResult


def find_saved(runs_dir: Path, run: str, target: str | None = None) -> Path:
    """Find the folder, or the file, with the parameters that a run saved.

    Args:
        runs_dir: Where runs are kept.
        run: A run's name below `runs_dir`, its folder, one target's folder, or a file that was
            exported as safetensors.
        target: The domain that was left out, of a run with several.

    Raises:
        FedclipError: the run does not exist, has nothing saved yet, or has several targets of
            which none is chosen.
    """
    path = next((each for each in (Path(run), runs_dir / run) if _is_run(each)), None)
    if path is None:
        names = [each.parent.name for each in runs_dir.glob(f"*/{CONFIG}")]
        raise FedclipError(
            f"--run {run}: unknown run in {runs_dir}{suggest(run, names)}; pass a name, a folder "
            f"with its {CONFIG}, or an exported .safetensors file"
        )
    if path.is_file() or _has_parameters(path):
        if target is not None and not _is_of_target(path, target):
            raise FedclipError(f"--target {target}: is not the target of {path}; leave it out")
        return path
    targets = sorted(each.name for each in path.iterdir() if _has_parameters(each))
    if target in targets:
        return path / str(target)
    if targets and target is None:
        raise FedclipError(
            f"{path}: has an adapter for each domain that was left out; choose one with --target "
            f"{listed(targets)}"
        )
    if targets:
        raise FedclipError(
            f"--target {target}: is not a target of {path}{suggest(str(target), targets)}"
        )
    result = RunFolder(path).read_result()
    if result is not None and result.model is not None:
        raise FedclipError(
            f"{path}: trained a full model; predict and export are for adapters, whose encoder is "
            "frozen"
        )
    if result is not None and result.status in OVER:
        raise FedclipError(
            f"{path}: has no adapter, as it failed or kept none (--keep); run it again"
        )
    raise FedclipError(f"{path}: has no adapter yet; resume it with --resume {path}")


def _is_run(path: Path) -> bool:
    return (
        path.is_file()
        if path.suffix == ".safetensors"
        else (RunFolder(path).begun or _has_parameters(path))
    )


def _has_parameters(path: Path) -> bool:
    return (path / ADAPTER).is_file() or (path / PERSONAL).is_file()


def _is_of_target(path: Path, target: str) -> bool:
    folder = RunFolder(path if path.is_dir() else path.parent)
    result = folder.read_result()
    return isinstance(result, RunResult) and result.target == target


def load_saved(path: Path, client: str | None = None, cache_dir: Path | None = None) -> Classifier:
    """Make a classifier of what `find_saved` found.

    Parameters that an earlier version saved are completed from the cache that the run trained on.
    An adapter from outside the package is only imported for a run of this machine.

    Args:
        path: A run's folder, or an exported file.
        client: Whose own adapter to take; None for everybody's.
        cache_dir: Where the cache of an older run is looked for; None for where it was.

    Raises:
        FedclipError: the client has none, or the parameters cannot be used here.
    """
    if path.is_file():
        if client is not None:
            raise FedclipError(f"--client {client}: {path} has one adapter; leave out --client")
        return read_classifier(path)
    file = path / (ADAPTER if client is None else PERSONAL)
    if not file.is_file():
        other = path / (PERSONAL if client is None else ADAPTER)
        if client is None and other.is_file():
            raise FedclipError(
                f"{path}: has an adapter for each client, and none for all; choose one with "
                f"--client {listed(_clients(other))}"
            )
        raise FedclipError(
            f"--client {client}: the clients of {path} have no adapters of their own; leave out "
            "--client"
        )
    try:
        return read_classifier(file, client, trusted=RunFolder(path).begun)
    except OldFactsError as error:
        if "sites" in RunFolder(path).read_config():
            raise FedclipError(
                f"{path}: was federated across sites, whose class texts the server does not have; "
                "use the adapter that every site has in joined/<client>-<run>"
            ) from None
        try:
            return _completed(file, client, cache_dir)
        except FedclipError as reason:
            raise FedclipError(f"{error}, which are taken from the cache: {reason}") from None


def _clients(path: Path) -> list[str]:
    names = load_file(path)
    return sorted({name.partition("/")[0] for name in names if name != CLASS_TEXTS})


def _completed(file: Path, client: str | None, cache_dir: Path | None) -> Classifier:
    """Make a classifier of an older run's parameters and the cache that they were trained on."""
    experiment = load_experiment(file.parent, cache_dir)
    facts = experiment.facts(experiment.targets[0])
    tensors = load_file(file)
    if client is not None:
        start = f"{client}/"
        tensors = {
            name.removeprefix(start): tensor
            for name, tensor in tensors.items()
            if name.startswith(start)
        }
        facts["client"] = client
    texts = torch.from_numpy(class_texts(experiment.clients[0], experiment.settings.prompts))
    return make_classifier(file, facts, tensors, texts, trusted=True)


def result_of_saved(path: Path) -> RunResult | None:
    """Return the result of what `find_saved` found, if it is known."""
    result = RunFolder(path).read_result() if path.is_dir() else None
    return result if isinstance(result, RunResult) else None


def encoder_request_of(path: Path) -> Mapping[str, Any] | None:
    """Return how the encoder of a run's cache was requested on this machine, if that is known."""
    config = RunFolder(path).read_config() if RunFolder(path).begun else {}
    cache = config.get("cache")
    folder = cache.get("folder") if isinstance(cache, dict) else None
    request = CacheFolder(Path(folder)).read_manifest().get("request") if folder else None
    return request if isinstance(request, dict) else None


def tested_rows(
    facts: Mapping[str, Any],
    domain: str,
    content: str,
    ids: tuple[str, ...],
    labels: npt.NDArray[Any],
) -> dict[str, npt.NDArray[Any]]:
    """Return the rows that each client of a domain was tested on; none of other images.

    Args:
        facts: Those of a classifier.
        domain: The domain's name.
        content: `FeatureCache.content` of these images, which tells whether they are the run's.
        ids: N ids.
        labels: (N,) classes.
    """
    split = facts["split"]
    if split.get("domains", {}).get(domain) != content:
        return {}
    partition = split.get("partition")
    if partition is not None and PARTITIONS.is_outside(partition):
        return {}
    made = PARTITIONS.make(partition, split["options"]) if partition is not None else None
    settings = Settings(seed=split["seed"], partition=made)
    return test_rows(domain, ids, labels, settings, split["target"])

"""One command's worth of runs: a cache, settings, and one target or all in turn."""

import hashlib
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import __version__
from ..cache import CacheFolder, FeatureCache
from ..cache.files import check_name
from ..cache.key import canonical_json
from ..cache.report import Report
from .clients import Federation, build_federation
from .records import RunFolder, result_of, summary_of
from .server import Round, federate
from .settings import Settings

ALL = "all"
NONE = "none"


@dataclass(frozen=True)
class Experiment:
    """What to run, and where its records go.

    Attributes:
        cache: The cache's folder.
        clients: Its content.
        settings: What shapes the numbers.
        preset: The preset that the settings began from.
        targets: The domain left out in each run; None where none is.
        device: Where to train.
        runs_dir: Where runs are kept.
        name: The run's folder; None for a name made of the cache, settings and seed.
        overwrite: Whether a run of that name may be replaced.
    """

    cache: CacheFolder
    clients: Sequence[FeatureCache]
    settings: Settings
    preset: str
    targets: tuple[str | None, ...]
    device: torch.device
    runs_dir: Path
    name: str | None = None
    overwrite: bool = False

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.runs_dir / (check_name(self.name, "run") if self.name else self._own_name())

    def _own_name(self) -> str:
        settings = self.settings.to_json()
        seed = settings.pop("seed")
        facts = {
            "settings": settings,
            "targets": self.targets,
            "cache": self.cache.name,
        }
        digest = hashlib.sha256(canonical_json(facts).encode()).hexdigest()
        return f"{self.clients[0].dataset}-{digest[:8]}-seed{seed}"

    def config(self, target: str | None) -> dict[str, Any]:
        """List every setting of the run, or of one target of it."""
        first = self.clients[0]
        return {
            "fedclip": __version__,
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "numpy": np.__version__,
            },
            "cache": {
                "name": self.cache.name,
                "folder": str(self.cache.path.resolve()),
                "key": first.key,
                "clients": [cache.client for cache in self.clients],
                "normalized": first.normalized,
            },
            "preset": self.preset,
            "settings": self.settings.to_json(),
            "strategy": "fedavg",
            "adapter": "attention",
            "target": target or NONE,
            "device": str(self.device),
            "seed": self.settings.seed,
        }


def choose_targets(clients: Sequence[FeatureCache], target: str | None) -> tuple[str | None, ...]:
    """Turn what `--target` says into the domains to leave out, one run each.

    Without a word, every domain in turn if there are two or more, else none.
    """
    domains = [cache.client for cache in clients]
    if target is None:
        target = ALL if len(domains) > 1 else NONE
    if target == NONE:
        return (None,)
    return tuple(domains) if target == ALL else (target,)


def run_experiment(experiment: Experiment, report: Report) -> list[dict[str, Any]]:
    """Run every target and record it; return the results in the targets' order.

    After an interrupt the targets that were not begun have no result.

    Raises:
        FedclipError: the input makes no sense; nothing was written then.
    """
    settings = experiment.settings
    federations = [
        build_federation(experiment.clients, settings, target, experiment.device)
        for target in experiment.targets
    ]
    _report_dropped(federations, report)
    several = len(federations) > 1
    folder = RunFolder.create(experiment.folder, overwrite=experiment.overwrite)
    folder.write_config(experiment.config(ALL if several else experiment.targets[0]))
    results: list[dict[str, Any]] = []
    for target, federation in zip(experiment.targets, federations, strict=True):
        place = folder
        if several and target is not None:
            place = folder.below(target)
            place.write_config(experiment.config(target))
        results.append(_run_target(experiment, federation, place, report))
        if several:
            folder.write_result(summary_of(results))
        if results[-1]["status"] == "interrupted":
            break
    return results


def _report_dropped(federations: Sequence[Federation], report: Report) -> None:
    dropped = {item for federation in federations for item in federation.dropped}
    for name, rows in sorted(dropped):
        report.warn(f"{name} was dealt only {rows} rows and is left out")


def _run_target(
    experiment: Experiment, federation: Federation, folder: RunFolder, report: Report
) -> dict[str, Any]:
    settings = experiment.settings
    target = federation.target.name if federation.target else NONE

    def progress(done: int, last: Round | None) -> None:
        detail = f"validation {last.mean_validation:.2%}" if last else ""
        report.progress(f"target {target}", done, settings.rounds, "rounds", detail)

    outcome = federate(federation, settings, folder.append_round, progress)
    result = result_of(outcome, federation)
    if outcome.best is not None:
        first = experiment.clients[0]
        facts = {
            "adapter": "attention",
            "embed_dim": first.embed_dim,
            "encoder": dict(first.encoder),
            "key": first.key,
        }
        folder.write_adapter(outcome.best, facts)
    folder.write_result(result)
    return result

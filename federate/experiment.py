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

    def adapter_facts(self) -> dict[str, Any]:
        """Say what the adapter belongs to, for whoever finds it alone."""
        first = self.clients[0]
        return {
            "adapter": "attention",
            "embed_dim": first.embed_dim,
            "encoder": dict(first.encoder),
            "key": first.key,
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

"""One command's worth of runs: a cache, settings, and one target or all in turn."""

import hashlib
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ... import __version__
from ...cache import CacheFolder, FeatureCache, FedclipError, load_cache, resolve_cache
from ...cache.common.device import resolve_device
from ...cache.common.files import check_name
from ...cache.key import canonical_json
from ..data.federation import class_texts
from ..models.full import WholeModel
from ..settings import Settings
from ..training.engine import AUTO, choose_engine
from .folder import RunFolder

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
        engine: What trains the clients; the numbers do not depend on it but for rounding.
        whole: The whole model that is trained; None for an adapter.
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
    engine: str = AUTO
    whole: WholeModel | None = None

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
            "content": self.content,
        }
        if self.whole is not None:
            facts["model"] = self.whole.facts
        digest = hashlib.sha256(canonical_json(facts).encode()).hexdigest()
        return f"{self.clients[0].dataset}-{digest[:8]}-seed{seed}"

    @cached_property
    def content(self) -> str:
        """SHA-256, 64 hex digits, of what is trained on: features, labels and class texts."""
        texts = class_texts(self.clients[0], self.settings.prompts)
        digest = hashlib.sha256(texts.tobytes())
        for cache in self.clients:
            digest.update(f"{cache.key} {cache.content}".encode())
        return digest.hexdigest()

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
                "content": self.content,
                "clients": [cache.client for cache in self.clients],
                "normalized": first.normalized,
            },
            "preset": self.preset,
            "settings": self.settings.to_json(),
            "strategy": self.settings.strategy,
            "adapter": self.settings.adapter,
            "model": self.whole and {"facts": self.whole.facts, "origin": self.whole.origin},
            "target": target or NONE,
            "device": str(self.device),
            "engine": choose_engine(self.engine, self.device, whole=self.whole is not None),
            "seed": self.settings.seed,
        }

    def check_config(self, config: Mapping[str, Any]) -> None:
        """Check that the run in the folder is this one.

        Raises:
            FedclipError: its settings, targets or features are others.
        """
        ours = self.config(ALL if len(self.targets) > 1 else self.targets[0])
        for what in ("settings", "target"):
            if config.get(what) != ours[what]:
                raise FedclipError(
                    f"{self.folder}: is a run with other {what}; move it away, or use another "
                    "--runs-dir"
                )
        _check_cache(self, config)
        _check_model(self, config)

    def model_facts(self) -> dict[str, Any]:
        """Say what the adapter, or the whole model, is and belongs to, should it be found alone."""
        first = self.clients[0]
        if self.whole is not None:
            return {"model": self.whole.facts, "class_names": list(first.class_names)}
        return {
            "adapter": self.settings.adapter,
            "embed_dim": first.embed_dim,
            "encoder": dict(first.encoder),
            "key": first.key,
        }


def choose_targets(clients: Sequence[FeatureCache], target: str | None) -> tuple[str | None, ...]:
    """Turn what `--target` says into the domains to leave out, one run each.

    Without a word, every domain in turn if there are two or more, else none.

    Raises:
        FedclipError: there is no such domain.
    """
    domains = [cache.client for cache in clients]
    if target is None:
        target = ALL if len(domains) > 1 else NONE
    if target not in (ALL, NONE, *domains):
        raise FedclipError(
            f"there is no target {target!r} in this cache; "
            f"its domains are {', '.join(domains)} (or {ALL}, or {NONE})"
        )
    if target == NONE:
        return (None,)
    return tuple(domains) if target == ALL else (target,)


def find_run(runs_dir: Path, name: str) -> Path:
    """Find the run's folder that `name` means: a path, or a name below `runs_dir`.

    Raises:
        FedclipError: there is none, or it is one target's part of a run.
    """
    path = Path(name) if RunFolder(Path(name)).begun else runs_dir / name
    if not RunFolder(path).begun:
        raise FedclipError(
            f"there is no run {name!r}, as a path or below {runs_dir}; give the folder that has "
            "its config.json"
        )
    if RunFolder(path.resolve().parent).begun:
        raise FedclipError(
            f"{path}: is one target's part of a run; resume the whole, {path.resolve().parent}"
        )
    return path


# Makes a whole model of its origin, the clients and the settings, on a device.
MakeWhole = Callable[
    [Mapping[str, Any], Sequence[FeatureCache], Settings, torch.device], WholeModel
]


def load_experiment(
    path: Path, cache_dir: Path | None, make_whole: MakeWhole | None = None
) -> Experiment:
    """Make the experiment again that the run in a folder belongs to.

    Args:
        path: The run's folder.
        cache_dir: Where the cache is looked for by its name; None for where it was.
        make_whole: Makes a whole model from its origin, for a run that trains one; None for
            one that trains an adapter.

    Raises:
        FedclipError: the config is damaged, or of another version, or the cache is gone or
            another, or the run is of the other kind.
    """
    config = RunFolder(path).read_config()
    model = config.get("model")
    if bool(model) != (make_whole is not None):
        what, command = ("a whole model", "baseline") if model else ("an adapter", "federate")
        raise FedclipError(f"{path}: trains {what}; resume it with fedclip {command} --resume")
    try:
        settings = Settings.from_json(config["settings"])
        preset, device = str(config["preset"]), str(config["device"])
        engine = str(config["engine"])
        folder = CacheFolder(Path(config["cache"]["folder"]))
        name, target = str(config["cache"]["name"]), str(config["target"])
        origin = dict(model["origin"]) if model else {}
    except (KeyError, TypeError, ValueError) as error:
        raise FedclipError(
            f"{path / 'config.json'}: is damaged, or of another version ({error!r}); "
            "run it again with --overwrite"
        ) from None
    if cache_dir is not None:
        folder = resolve_cache(cache_dir, name)
    elif not folder.files:
        raise FedclipError(
            f"{folder.path}: the cache of this run is gone; say where it is with --cache-dir"
        )
    clients = load_cache(folder)
    where = resolve_device(device)
    experiment = Experiment(
        cache=folder,
        clients=clients,
        settings=settings,
        preset=preset,
        targets=choose_targets(clients, target),
        device=where,
        runs_dir=path.parent,
        name=path.name,
        engine=engine,
        whole=make_whole(origin, clients, settings, where) if make_whole else None,
    )
    _check_cache(experiment, config)
    _check_model(experiment, config)
    return experiment


def _check_cache(experiment: Experiment, config: Mapping[str, Any]) -> None:
    cache = config.get("cache", {})
    ours = {"key": experiment.clients[0].key, "content": experiment.content}
    for what, value in ours.items():
        if cache.get(what) != value:
            raise FedclipError(
                f"{experiment.folder}: the cache {experiment.cache.name} is not the one of this "
                f"run (its {what} is another); put that one back, or run anew with --overwrite"
            )


def _check_model(experiment: Experiment, config: Mapping[str, Any]) -> None:
    facts = (config.get("model") or {}).get("facts")
    if facts != (experiment.whole and experiment.whole.facts):
        raise FedclipError(
            f"{experiment.folder}: trains another model than this one; put its weights back, or "
            "run anew with --overwrite"
        )

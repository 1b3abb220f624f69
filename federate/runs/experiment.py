"""What one command runs: a cache, settings, and one target or all in turn."""

import hashlib
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from ... import __version__
from ...cache import CacheFolder, FeatureCache, FedclipError, load_cache, resolve_cache
from ...cache.common.device import resolve_device
from ...cache.common.fields import options_of
from ...cache.common.files import check_name
from ...cache.compatibility import Described
from ...cache.key import canonical_json, image_key
from ..data.federation import (
    check_class_vectors,
    chosen_templates,
    class_texts,
    class_vectors_of,
    logit_scale_of,
)
from ..flower import ENGINE as FLOWER
from ..models.base import Model
from ..models.classifier import FACTS_VERSION
from ..settings import TEXT, Settings
from ..training.engine import AUTO, choose_engine
from .find import ALL, choose_targets, show_target
from .folder import RunFolder
from .loggers import MakeLogger

# Which parameters a run leaves: the server's and the participants' own, the server's, or none.
KEEP = ("personal", "shared", "none")
KEEP_ALL, KEEP_SHARED, _ = KEEP


@dataclass(frozen=True)
class Experiment:
    """What to run, and where its records go.

    Attributes:
        cache: The cache's folder.
        clients: Its content.
        settings: What shapes the numbers.
        model: What is trained: the settings' adapter, or a full model.
        preset: The preset that the settings are based on.
        targets: The domain left out in each run; None where none is.
        device: Where to train.
        runs_dir: Where runs are kept.
        name: The run's folder; None for a name made of the cache, settings and seed.
        overwrite: Whether a run of that name may be replaced.
        engine: What trains the clients, or Flower's; the numbers depend on it only by rounding.
        keep: One of `KEEP`: which parameters are left when the run is over.
        loggers: What else follows each run, besides its records.
    """

    cache: CacheFolder
    clients: Sequence[FeatureCache]
    settings: Settings
    model: Model
    preset: str
    targets: tuple[str | None, ...]
    device: torch.device
    runs_dir: Path
    name: str | None = None
    overwrite: bool = False
    engine: str = AUTO
    keep: str = KEEP_ALL
    loggers: Sequence[MakeLogger] = ()

    def checked(self) -> Self:
        """Return itself if the settings fit the cache; an earlier version's may not.

        Raises:
            FedclipError: they do not.
        """
        check_class_vectors(self.clients[0], self.settings)
        return self

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.runs_dir / (check_name(self.name, "run") if self.name else self._own_name())

    def _own_name(self) -> str:
        settings = self.settings.identity()
        seed = settings.pop("seed")
        facts = {
            "settings": settings,
            "targets": self.targets,
            "cache": self.cache.name,
            "content": self.content,
        }
        if self.model.facts is not None:
            facts["model"] = self.model.facts
        digest = hashlib.sha256(canonical_json(facts).encode()).hexdigest()
        return f"{self.clients[0].dataset}-{digest[:8]}-seed{seed}"

    @cached_property
    def _engine_in_use(self) -> str:
        if self.engine == FLOWER:
            return FLOWER
        if not self.model.stackable and self.engine == AUTO:
            return "plain"
        first = self.clients[0]
        text = torch.zeros(len(first.class_names), first.embed_dim)
        return choose_engine(self.engine, self.device, self.model.make(text, seed=0))

    @cached_property
    def content(self) -> str:
        """SHA-256, 64 hex digits, of what is trained on: features, labels and class texts."""
        digest = hashlib.sha256()
        if class_vectors_of(self.clients[0], self.settings) == TEXT:
            digest.update(class_texts(self.clients[0], self.settings.prompts).tobytes())
        for cache in self.clients:
            digest.update(f"{cache.key} {cache.content}".encode())
        return digest.hexdigest()

    @property
    def target(self) -> str:
        """What is left out, as `--target` takes it: each domain in turn, one, or none."""
        return ALL if len(self.targets) > 1 else show_target(self.targets[0])

    def config(self, target: str) -> dict[str, Any]:
        """List every setting of the run, or of one target of it, as `--target` takes it."""
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
            "strategy": self.settings.name_of("strategy"),
            "adapter": self.settings.name_of("adapter"),
            "model": self.model.facts and {"facts": self.model.facts, "origin": self.model.origin},
            "target": target,
            "device": str(self.device),
            "engine": self._engine_in_use,
            "keep": self.keep,
            "seed": self.settings.seed,
        }

    def check_config(self, config: Mapping[str, Any]) -> None:
        """Check that the run in the folder is this one.

        Raises:
            FedclipError: its settings, targets or features differ.
        """
        try:
            recorded = Settings.from_json(config["settings"])
            same = canonical_json(recorded.to_json()) == canonical_json(self.settings.to_json())
        except (KeyError, TypeError, ValueError, AttributeError):
            same = False
        for what, equal in (("settings", same), ("target", config.get("target") == self.target)):
            if not equal:
                raise FedclipError(
                    f"{self.folder}: is a run with another {what.rstrip('s')}; move it away, or "
                    "use another --runs-dir"
                )
        _check_cache(self, config)
        _check_model(self, config)

    def facts(self, target: str | None) -> dict[str, Any]:
        """Return what the saved parameters belong to, all that using them needs.

        Args:
            target: The domain that was left out.
        """
        facts = facts_of(
            self.clients[0],
            self.settings,
            self.model,
            target=target,
            rows={cache.client: len(cache.labels) for cache in self.clients},
            contents={cache.client: cache.content for cache in self.clients},
        )
        return {**facts, "batch_size": self.cache.read_manifest().get("batch_size")}


def facts_of(
    client: Described,
    settings: Settings,
    model: Model,
    *,
    target: str | None,
    rows: Mapping[str, int],
    contents: Mapping[str, str],
) -> dict[str, Any]:
    """Return what saved parameters belong to.

    Args:
        client: What all clients agree on.
        settings: Those of the run.
        model: What was trained.
        target: The domain that was left out.
        rows: Number of rows of each domain.
        contents: `FeatureCache.content` of those domains whose is known.
    """
    values, partition = settings.to_json(), settings.partition
    vectors = class_vectors_of(client, settings)
    return {
        "version": FACTS_VERSION,
        "kind": model.kind,
        "adapter": settings.name_of("adapter"),
        "adapter_source": values.get("adapter_source"),
        "options": {name: values[name] for name in options_of(type(settings.adapter))},
        "model": model.facts,
        "embed_dim": client.embed_dim,
        "encoder": client.encoder.groups,
        "key": image_key(client.encoder),
        "dataset": client.dataset,
        "class_names": list(client.class_names),
        "class_vectors": vectors,
        "prompts": list(chosen_templates(client, settings.prompts)) if vectors == TEXT else [],
        "feature_norm": settings.feature_norm,
        "normalized": client.normalized,
        "logit_scale": logit_scale_of(client, settings),
        "settings": values,
        "split": {
            "seed": settings.seed,
            "target": target,
            "partition": values["partition"],
            "options": {name: values[name] for name in options_of(type(partition))}
            if partition is not None
            else {},
            "domains": dict(contents),
            "rows": dict(rows),
        },
    }


def kept_by(config: Mapping[str, Any]) -> str:
    """Return the `keep` that a run was started with, which holds when it is resumed."""
    keep = config.get("keep")
    return keep if keep in KEEP else KEEP_ALL


# Makes a full model from its origin, the clients and the settings, on a device.
MakeModel = Callable[[Mapping[str, Any], Sequence[FeatureCache], Settings, torch.device], Model]


def load_experiment(
    path: Path, cache_dir: Path | None, make_model: MakeModel | None = None
) -> Experiment:
    """Recreate the experiment that the run in a folder belongs to.

    Args:
        path: The run's folder.
        cache_dir: Where the cache is looked for by its name; None for where it was.
        make_model: Makes a full model from its origin, for a run that trains one; None for
            one that trains an adapter.

    Raises:
        FedclipError: the config is damaged or of another version, the cache is missing or
            different, or the run is of the other kind.
    """
    config = RunFolder(path).read_config()
    if "sites" in config:
        raise FedclipError(
            f"{path}: was federated across sites; resume it with fedclip serve --resume"
        )
    model = config.get("model")
    if bool(model) != (make_model is not None):
        what, command = ("a full model", "baseline") if model else ("an adapter", "federate")
        raise FedclipError(f"{path}: trains {what}; resume it with fedclip {command} --resume")
    try:
        settings = Settings.from_json(config["settings"])
        preset, device = str(config["preset"]), str(config["device"])
        engine, keep = str(config["engine"]), kept_by(config)
        folder = CacheFolder(Path(config["cache"]["folder"]))
        name, target = str(config["cache"]["name"]), str(config["target"])
        origin = dict(model["origin"]) if model else {}
    except FedclipError as error:
        raise FedclipError(f"{path / 'config.json'}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise FedclipError(
            f"{path / 'config.json'}: is damaged or of another version ({error!r}); "
            "start it again with --overwrite"
        ) from None
    if cache_dir is not None:
        folder = resolve_cache(cache_dir, name)
    elif not folder.files:
        raise FedclipError(
            f"{folder.path}: the cache of this run is missing; pass its place with --cache-dir"
        )
    clients = load_cache(folder)
    where = resolve_device(device)
    experiment = Experiment(
        cache=folder,
        clients=clients,
        settings=settings,
        model=make_model(origin, clients, settings, where) if make_model else settings.model,
        preset=preset,
        targets=choose_targets(clients, target),
        device=where,
        runs_dir=path.parent,
        name=path.name,
        engine=engine,
        keep=keep,
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
                f"run (its {what} differs); restore that cache, or start again with --overwrite"
            )


def _check_model(experiment: Experiment, config: Mapping[str, Any]) -> None:
    facts = (config.get("model") or {}).get("facts")
    if facts != experiment.model.facts:
        raise FedclipError(
            f"{experiment.folder}: trains a model other than this one; restore its weights, or "
            "start again with --overwrite"
        )

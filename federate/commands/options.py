"""The options that the commands of stage two share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from ...cache.commands import complete_cache
from ...cache.common.extras import load_extra
from ...cache.common.fields import Option, option
from ...cache.common.options import Also, Chosen, DeviceOptions, flag, given
from ..flower import ENGINE as FLOWER
from ..settings import PAPER, PRESETS, REGISTRIES, Settings, method_options, settings_options

if TYPE_CHECKING:
    from ...cache import CacheFolder, FeatureCache
    from ..runs.experiment import Experiment, MakeModel
    from ..runs.loggers import MakeLogger

# What trains clients in this process.
_ENGINES = ("auto", "plain", "threads", "batched")

# Options that --resume leaves a choice in.
_WITH_RESUME = frozenset(
    {"resume", "save_every", "runs_dir", "cache_dir", "keep_model", "format", "tensorboard"}
)


@dataclass(frozen=True)
class TargetOptions:
    """Which domain is left out."""

    PANEL: ClassVar[str] = "Data"

    target: str | None = option(
        None,
        metavar="DOMAIN",
        shown="all with two or more domains, else none",
        help="Domain to leave out, all (each in turn) or none. For a domain called all or none, "
        "domain:NAME.",
    )


@dataclass(frozen=True)
class DataOptions(TargetOptions):
    """What is trained on."""

    cache: str | None = option(
        None,
        metavar="CACHE",
        shown="the one extracted last",
        complete=complete_cache,
        help="Cache as 'fedclip cache ls' names it, or its dataset.",
    )


@dataclass(frozen=True)
class ComputeOptions(DeviceOptions):
    """Where and by what clients are trained."""

    PANEL: ClassVar[str] = "Computation"

    engine: str = option(
        "auto",
        choices=_ENGINES,
        help="What trains the clients. All produce the same numbers but for rounding; auto takes "
        "the fastest.",
    )


@dataclass(frozen=True)
class EngineOptions(ComputeOptions):
    """Where and by what clients are trained, in this process or by Flower."""

    engine: str = option(
        "auto",
        choices=(*_ENGINES, FLOWER),
        help="What trains the clients. All produce the same numbers but for rounding; auto takes "
        "the fastest, and flower is Flower's simulation of federation across sites.",
    )


@dataclass(frozen=True)
class RunsDir:
    """Where runs are."""

    PANEL: ClassVar[str] = "Output"

    runs_dir: Path = option(Path("runs"), envvar="FEDCLIP_RUNS_DIR", help="Folder of the runs.")


@dataclass(frozen=True)
class SavedOptions:
    """Which trained adapter to use."""

    PANEL: ClassVar[str] = "Adapter"

    run: str = option(
        metavar="RUN",
        help="A run by name or folder, an adapter exported as safetensors, or one on the Hugging "
        "Face hub as hf:OWNER/NAME.",
    )
    target: str | None = option(
        None, metavar="DOMAIN", help="Domain that was left out, if the run left out several."
    )
    client: str | None = option(
        None,
        metavar="NAME",
        shown="the adapter of all",
        help="Client whose own adapter to use, if the strategy gave them their own.",
    )


@dataclass(frozen=True)
class PredictionOptions:
    """What is printed."""

    PANEL: ClassVar[str] = "Output"

    top_k: int = option(1, least=1, help="Classes of each image, the most probable first.")
    format: str = option(
        "table", choices=("table", "json", "csv"), help="How rows are printed; json is one a line."
    )
    cache: str | None = option(
        None,
        panel="Images",
        metavar="CACHE",
        help="Cache to classify in place of images, which takes no encoder.",
    )


@dataclass(frozen=True)
class SaveOptions(RunsDir):
    """How a run is saved."""

    save_every: int | None = option(
        None,
        least=1,
        shown="as often as takes 1 % of the time",
        help="Rounds between two saves of a run's state.",
    )
    tensorboard: bool = option(
        False, help="Write TensorBoard events into the run's folder (extra: tensorboard)."
    )

    @property
    def loggers(self) -> list[MakeLogger]:
        """What follows each run."""
        from ..runs.loggers import TensorBoard

        if self.tensorboard:
            load_extra("tensorboard")
        return [TensorBoard] if self.tensorboard else []


@dataclass(frozen=True)
class KeepOptions:
    """What is left of a run."""

    PANEL: ClassVar[str] = "Output"

    keep: str = option(
        "personal",
        choices=("personal", "shared", "none"),
        help="Parameters that a finished run leaves: the server's and each participant's own, "
        "if the strategy makes any (personal), the server's only (shared), or none. Without "
        "participants' own models, what they predict is not kept, and has no metrics but accuracy.",
    )


@dataclass(frozen=True)
class NamedRun(RunsDir):
    """Which run it is."""

    name: str | None = option(
        None,
        shown="made of dataset, settings and seed",
        help="Name of the run.",
    )
    overwrite: bool = option(False, help="Replace a run of this name.")
    resume: str | None = option(
        None,
        metavar="RUN",
        help="Run to resume, by name or folder; it keeps the settings that it was started with.",
    )


@dataclass(frozen=True)
class RunOptions(SaveOptions, NamedRun):
    """How a run is recorded."""


@dataclass(frozen=True)
class PresetOptions:
    """The settings that a run is based on."""

    PANEL: ClassVar[str] = "Method"

    preset: str = option(
        PAPER,
        choices=lambda: [*PRESETS],
        help="Settings to start from: paper, to the letter, or tuned, which gains more on real "
        "features. Other options override it.",
    )


def all_settings(arguments: Sequence[str]) -> list[Option]:
    """List every setting and every method's hyper-parameters.

    Args:
        arguments: Of the command line. Those that name a method from outside of the package
            add its hyper-parameters.
    """
    settings, methods = settings_options(), method_options(methods_named(arguments))
    before = [each for each in settings if each.panel in ("Data", "Method")]
    return [*before, *methods, *(each for each in settings if each not in before)]


def methods_named(arguments: Iterable[str]) -> dict[str, list[str]]:
    """Find the methods from outside of the package in raw arguments, by kind."""
    found: dict[str, list[str]] = {kind: [] for kind in REGISTRIES}
    for kind, names in found.items():
        for word, following in pairwise([*arguments, ""]):
            name, equals, value = word.removeprefix("--set=").partition("=")
            if name == flag(kind):
                names += [value if equals else following]
            elif name == kind and equals:  # of --set
                names += value.split(",")
        found[kind] = [name.strip() for name in names if ":" in name]
    return found


# The settings that the user gave.
Given = Annotated[Chosen[PresetOptions], Also(all_settings)]


def settings_of(values: Mapping[str, Any]) -> Settings:
    """Make settings of what the user gave: `preset`, settings, methods and their options."""
    chosen = {name: value for name, value in values.items() if name != "preset"}
    return Settings.preset(values.get("preset", PAPER), chosen)


def cache_line(name: str, cache_dir: Path, *, latest: bool) -> str:
    """Name the cache in use, and say if it was chosen as the latest of several."""
    from ...cache import find_caches

    if not latest:
        return f"cache      {name}"
    count = len(find_caches(cache_dir))
    others = f" of {count} in {cache_dir}; choose with --cache" if count > 1 else ""
    return f"cache      {name} (the one extracted last{others})"


def load(cache: str | None, cache_dir: Path) -> tuple[CacheFolder, list[FeatureCache]]:
    """Load the named cache, or the one extracted last."""
    from ...cache import latest_cache, load_cache, resolve_cache

    folder = latest_cache(cache_dir) if cache is None else resolve_cache(cache_dir, cache)
    return folder, load_cache(folder)


def resumed(
    context: typer.Context,
    run: str,
    runs_dir: Path,
    cache_dir: Path,
    make_model: MakeModel | None = None,
) -> Experiment:
    """Load a run as it was started, so no option may differ."""
    from ..runs.find import find_run

    named = given(context)
    for name in sorted(named - _WITH_RESUME):
        raise typer.BadParameter(
            f"{flag(name)} cannot be combined with --resume, which keeps the settings of {run}; "
            f"leave out {flag(name)}"
        )
    path = find_run(runs_dir, run)

    from ..runs.experiment import load_experiment

    return load_experiment(path, cache_dir if "cache_dir" in named else None, make_model)

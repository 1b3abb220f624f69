"""Stage two for the Python API."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ..cache import FedclipError
from ..cache.collection import Cache, load_cache
from ..cache.common.device import resolve_device
from ..cache.common.extras import data_frame, load_extra
from ..cache.common.progress import showing
from ..cache.common.text import counted
from .ablations.runner import Entry
from .ablations.runner import run_ablation as run_entries
from .report.charts import by_client, by_round, by_setting
from .report.vega import Spec, themed
from .runs.catalog import read_rounds
from .runs.experiment import Experiment
from .runs.find import choose_targets
from .runs.folder import RunFolder
from .runs.results import FIGURES, Result, RunResult
from .runs.runner import run_experiment
from .server import Round
from .settings import PAPER, Settings
from .simulation import Callback, Run
from .training.engine import AUTO

if TYPE_CHECKING:
    import altair as alt
    import pandas as pd

logger = logging.getLogger(__name__)

_CLIENT_COLUMNS = (
    *("target", "client", "domain", "test_samples", "zero_shot", "accuracy", "personal"),
    "best_round",
)
_ROUND_COLUMNS = ("target", "round", "client", "train_loss", "validation", "test")

# What is called after each round: a function, or a `Callback` for more than that.
OnRound: TypeAlias = "Callback | Callable[[Run, Round], object]"


class _Calling(Callback):
    """Calls a function after each round."""

    def __init__(self, function: Callable[[Run, Round], object]) -> None:
        self._function = function

    def on_round(self, run: Run, current: Round) -> None:
        self._function(run, current)


class SavedRun:
    """A run on disk, of one target or of several in turn.

    Attributes:
        folder: Its folder.
        config: Every setting of it.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any] | None = None) -> None:
        self.folder = folder
        self.config = RunFolder(folder).read_config() if config is None else config

    @property
    def result(self) -> Result:
        """What it came to, over all targets.

        Raises:
            FedclipError: it has no result yet.
        """
        result = RunFolder(self.folder).read_result()
        if result is None:
            raise FedclipError(f"{self.folder}: has no result yet; run it again to resume it")
        return result

    @property
    def status(self) -> str:
        """``finished``, ``failed``, ``interrupted``, or ``running`` before there is a result."""
        result = RunFolder(self.folder).read_result()
        return result.status if result is not None else "running"

    @property
    def results(self) -> list[RunResult]:
        """The result for each target that has one, in alphabetical order."""
        found = (RunFolder(place).read_result() for place in self._places)
        return [each for each in found if isinstance(each, RunResult)]

    @property
    def _places(self) -> list[Path]:
        if not self.folder.is_dir():
            raise FedclipError(f"{self.folder}: is no longer there; was it removed or renamed?")
        below = sorted(each for each in self.folder.iterdir() if RunFolder(each).begun)
        return below or [self.folder]

    def to_pandas(self) -> pd.DataFrame:
        """Return a table with a row for each target and client: accuracies as fractions.

        Raises:
            FedclipError: pandas is not installed.
        """
        return data_frame(self._by_client(), _CLIENT_COLUMNS)

    def _by_client(self) -> list[dict[str, Any]]:
        return [
            {
                "target": result.target or "none",
                "client": client,
                "domain": result.domains.get(client),
                "test_samples": result.test_samples.get(client),
                "zero_shot": result.zero_shot.get(client),
                "accuracy": accuracy,
                "personal": (result.personal or {}).get(client),
                "best_round": result.best_round,
            }
            for result in self.results
            for client, accuracy in result.accuracy.items()
        ]

    def rounds_to_pandas(self) -> pd.DataFrame:
        """Return a table with a row for each target, round and client.

        Raises:
            FedclipError: pandas is not installed.
        """
        return data_frame(self._by_round(), _ROUND_COLUMNS)

    def _by_round(self) -> list[dict[str, Any]]:
        rows = []
        for place in self._places:
            for line in read_rounds(place):
                test, validation = _by_name(line, "test"), _by_name(line, "validation")
                rows += [
                    {
                        "target": self.config.get("target") if place == self.folder else place.name,
                        "round": line.get("round"),
                        "client": client,
                        "train_loss": line.get("train_loss"),
                        "validation": validation.get(client),
                        "test": test.get(client),
                    }
                    for client in {**validation, **test}
                ]
        return rows

    def plot(self, kind: str = "clients") -> alt.FacetChart:
        """Draw a chart: accuracy by client, zero-shot beside adapted, or by round.

        Args:
            kind: ``clients`` or ``rounds``.

        Raises:
            FedclipError: Altair is not installed, or the kind is unknown.
        """
        if kind not in ("clients", "rounds"):
            raise FedclipError(f"unknown kind of chart {kind!r}; choose clients or rounds")
        clients = kind == "clients"
        spec = by_client(self._by_client()) if clients else by_round(self._by_round())
        chart: alt.FacetChart = _drawn(spec)
        return chart

    def __repr__(self) -> str:
        result = RunFolder(self.folder).read_result()
        shown = ""
        if result is not None and result.mean is not None and result.zero_shot_mean is not None:
            shown = f", mean accuracy {result.zero_shot_mean:.2%} > {result.mean:.2%}"
        return f"<run {self.folder}: {self.status}{shown}>"


def _by_name(line: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    values = line.get(name)
    return values if isinstance(values, dict) else {}


class Ablation:
    """The runs of an ablation.

    Attributes:
        entries: One for each combination and seed.
        names: The settings that vary.
    """

    def __init__(self, entries: Sequence[Entry], names: Sequence[str]) -> None:
        self.entries = entries
        self.names = names

    @property
    def runs(self) -> list[SavedRun]:
        """The runs that were started."""
        folders = (entry.experiment.folder for entry in self.entries)
        return [SavedRun(folder) for folder in folders if RunFolder(folder).begun]

    def to_pandas(self) -> pd.DataFrame:
        """Return a table with a row for each run: its settings and its accuracies.

        Raises:
            FedclipError: pandas is not installed.
        """
        rows = self._rows()
        return data_frame(rows, list(rows[0]))

    def _rows(self) -> list[dict[str, Any]]:
        return [
            {
                "run": entry.experiment.folder.name,
                **entry.values,
                "status": entry.status,
                **{
                    name: getattr(entry.result, name, None)
                    for figure in FIGURES
                    for name in (f"zero_shot_{figure}", figure)
                },
            }
            for entry in self.entries
        ]

    def plot(self, figure: str = "mean") -> alt.Chart:
        """Draw one of the accuracies by setting, with a point for each seed.

        Raises:
            FedclipError: Altair is not installed, or the figure is unknown.
        """
        if figure not in FIGURES:
            raise FedclipError(f"unknown figure {figure!r}; choose {', '.join(FIGURES)}")
        chart: alt.Chart = _drawn(by_setting(self._rows(), self.names, figure))
        return chart

    def __repr__(self) -> str:
        return f"<ablation of {counted(len(self.entries), 'run')} over {', '.join(self.names)}>"


def _drawn(spec: Spec) -> Any:
    """Make Altair's chart of a specification, which a notebook shows."""
    return load_extra("report").Chart.from_dict(themed(spec))


def run_federation(
    cache: Cache | str | None = None,
    *,
    target: str | None = None,
    preset: str = PAPER,
    callbacks: Iterable[OnRound] = (),
    device: str = "auto",
    engine: str = AUTO,
    runs_dir: str | Path = "runs",
    cache_dir: str | Path = "caches",
    name: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
    **settings: Any,
) -> SavedRun:
    """Train and federate an adapter over a cache's features, as `fedclip federate` does.

    A run that is finished is not repeated but read, and one that was interrupted is resumed. In a
    notebook, interrupting the kernel ends the run cleanly; its status is then ``interrupted``.

    Args:
        cache: A cache, also of some clients only, or its name; None for the one extracted last.
        target: Domain to leave out, ``all`` (each in turn) or ``none``; None for all with two or
            more domains, else none.
        preset: Settings to start from: ``paper`` or ``tuned``.
        callbacks: Called after each round, as ``function(run, round)``, or a `Callback`.
        device: ``auto`` or a torch device.
        engine: What trains the clients: ``auto``, ``plain``, ``threads`` or ``batched``.
        runs_dir: Where runs are kept.
        cache_dir: Where a cache is looked for by name.
        name: The run's name; None for one made of dataset, settings and seed.
        overwrite: Whether to start anew, replacing a run of this name.
        progress: Whether to show progress.
        **settings: Options of `fedclip federate` by name: ``rounds``, ``adapter``, ``strategy``,
            ``lr``, ``seed``, ``clients``, ``alpha``, ... and those of the methods.

    Raises:
        FedclipError: a setting, the cache or the target is invalid, or the run's folder has
            another run.
    """
    experiment = replace(
        _experiment(cache, cache_dir, preset, target, device, engine, runs_dir, settings),
        name=name,
        overwrite=overwrite,
    )
    called = [each if isinstance(each, Callback) else _Calling(each) for each in callbacks]
    with showing(progress) as show:
        outcome = run_experiment(experiment, show, resume=not overwrite, callbacks=called)
        if outcome.interrupted:
            logger.warning("interrupted; run it again to resume it")
    return SavedRun(experiment.folder)


def run_ablation(
    cache: Cache | str | None = None,
    vary: Mapping[str, Sequence[Any]] | None = None,
    *,
    seeds: int = 1,
    target: str | None = None,
    preset: str = PAPER,
    device: str = "auto",
    engine: str = AUTO,
    runs_dir: str | Path = "runs",
    cache_dir: str | Path = "caches",
    progress: bool = True,
    **settings: Any,
) -> Ablation:
    """Run the federation for every combination of values, as `fedclip ablate` does.

    Runs step side by side; a finished one is not repeated, and an interrupted one is resumed.

    Args:
        cache: A cache, or its name; None for the one extracted last.
        vary: Settings and the values of each, such as ``{"lr": [1e-4, 3e-4]}``.
        seeds: Number of seeds, starting at the setting ``seed``.
        target: Domain to leave out, ``all`` or ``none``.
        preset: Settings to start from; ``vary`` may have it too.
        device: ``auto`` or a torch device.
        engine: What trains the clients.
        runs_dir: Where runs are kept.
        cache_dir: Where a cache is looked for by name.
        progress: Whether to show progress.
        **settings: Settings of all runs, as `run_federation` takes them.

    Raises:
        FedclipError: a setting, the cache or the target is invalid.
    """
    if seeds < 1:
        raise FedclipError(f"seeds {seeds}: must be at least 1")
    if empty := next((name for name, values in (vary or {}).items() if not values), None):
        raise FedclipError(f"vary {empty}: has no values; name at least one, or leave it out")
    first = settings.get("seed", 0)
    varied = {**(vary or {}), "seed": [first + number for number in range(seeds)]}
    if not isinstance(cache, Cache):
        cache = load_cache(cache, cache_dir)
    entries: dict[Path, Entry] = {}
    for combination in product(*varied.values()):
        values = dict(zip(varied, combination, strict=True))
        own = {**settings, **values}
        base = own.pop("preset", preset)
        experiment = _experiment(cache, cache_dir, base, target, device, engine, runs_dir, own)
        entries.setdefault(experiment.folder, Entry(values, experiment))
    runs = list(entries.values())
    with showing(progress) as show:
        if not run_entries(runs, show):
            logger.warning("interrupted; run it again to resume it")
    return Ablation(runs, list(varied))


def _experiment(
    cache: Cache | str | None,
    cache_dir: str | Path,
    preset: str,
    target: str | None,
    device: str,
    engine: str,
    runs_dir: str | Path,
    settings: Mapping[str, Any],
) -> Experiment:
    if not isinstance(cache, Cache):
        cache = load_cache(cache, cache_dir)
    values = {
        name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()
    }
    made = Settings.preset(preset, values)
    clients = list(cache.values())
    if made.feature_norm is not None:  # rescaling happens in place
        clients = [replace(each, image_features=each.image_features.copy()) for each in clients]
    return Experiment(
        cache=cache.folder,
        clients=clients,
        settings=made,
        model=made.model,
        preset=preset,
        targets=choose_targets(clients, target),
        device=resolve_device(device),
        runs_dir=Path(runs_dir),
        engine=engine,
    ).checked()

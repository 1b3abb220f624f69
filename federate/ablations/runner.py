"""Many runs side by side."""

import csv
import hashlib
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from ...cache import FedclipError
from ...cache.common.files import check_writable, replacing
from ...cache.common.progress import Progress, first_of, no_progress
from ...cache.common.text import counted, inflected
from ..data.federation import MIN_ROWS, FeaturePool
from ..runs.experiment import Experiment
from ..runs.folder import RUNS_DIR, RunFolder
from ..runs.results import FIGURES, Result, RunResult
from ..runs.runner import Saving, Trial, places_of, result_on_disk, unfinished
from ..simulation import Callback, Run, simulate
from .grid import show

logger = logging.getLogger(__name__)

_FIRST_COLUMN = "run"


@dataclass(eq=False)
class Entry:
    """One combination of a grid.

    Attributes:
        values: Values of the options that vary.
        experiment: The run, or the runs over several targets.
        result: What it came to; None without one.
        error: Why it has no result, if something was wrong.
    """

    values: Mapping[str, Any]
    experiment: Experiment
    result: Result | None = None
    error: str | None = None

    @property
    def status(self) -> str:
        """How it ended, or "not started"."""
        if self.error is not None:
            return "failed"
        return self.result.status if self.result else "not started"


class _Counted(Callback):
    """Shows how many rounds of all runs are done."""

    def __init__(self, todo: Sequence[Entry], progress: Progress) -> None:
        self._progress = progress
        self._runs = len(todo)
        self._total = sum(
            unfinished(entry.experiment) * entry.experiment.settings.rounds for entry in todo
        )
        self._rounds: Counter[Run] = Counter()

    def on_begin(self, run: Run) -> None:
        """Count the rounds that were done before."""
        self.on_step([run])

    def on_step(self, runs: Sequence[Run]) -> None:
        """Count each run's rounds."""
        for run in runs:
            self._rounds[run] = run.number
        done = self._rounds.total()
        self._progress("ablation", done, self._total, "rounds", counted(self._runs, "run"))


def run_ablation(
    entries: Sequence[Entry], progress: Progress = no_progress, save_every: int | None = None
) -> bool:
    """Run those of `entries` that are not done, and set each one's result.

    Runs step side by side, their clients trained in one call; each comes out as it would
    alone, with the batched engine but for float rounding. What is finished is not repeated,
    what was started is resumed, and a run that fails leaves the others alone. The caches'
    features may be rescaled in place.

    Args:
        entries: On one device.
        progress: Called with the rounds done of all runs.
        save_every: Rounds between two saves; None for as often as takes 1 % of the time.

    Returns:
        Whether all were done; False after an interrupt.

    Raises:
        FedclipError: runs are left to do, and cannot be written.
    """
    for entry in entries:
        try:
            entry.result = result_on_disk(entry.experiment)
        except FedclipError as error:
            entry.error = str(error)
    todo = [entry for entry in entries if entry.status == "not started"]
    for runs_dir in {entry.experiment.runs_dir for entry in todo}:
        check_writable(runs_dir, f"{RUNS_DIR} {runs_dir}")
    if len(todo) < len(entries):
        done = len(entries) - len(todo)
        runs = counted(len(entries), "run")
        logger.info("%d of %s %s done already", done, runs, inflected(done, "is", "are"))
    started = sum(RunFolder(entry.experiment.folder).begun for entry in todo)
    if started:
        runs, were = counted(len(todo), "run"), inflected(started, "was", "were")
        logger.info("resuming %d of %s that %s started before", started, runs, were)
    trials: dict[Entry, Trial] = {}
    owners: WeakKeyDictionary[Run, Entry] = WeakKeyDictionary()  # a run is freed when it is over

    def record(run: Run, error: FedclipError) -> None:
        entry = owners[run]
        entry.error = str(error)
        trials[entry].release()

    callbacks = [_Counted(todo, progress), Saving(save_every)]
    try:
        done = simulate(_openings(todo, trials, owners), callbacks, on_error=record)
    finally:
        for trial in trials.values():
            trial.release()
    _collect(trials)
    return done


def _openings(
    todo: Sequence[Entry], trials: dict[Entry, Trial], owners: MutableMapping[Run, Entry]
) -> Iterator[Run]:
    """Begin or resume each entry's runs as they are asked for; `trials` has those in flight."""
    wanted = {_pool_of(entry) for entry in todo}
    norms = Counter(cache for cache, _ in wanted)
    pools: dict[tuple[Path, float | None], FeaturePool] = {}
    for entry in todo:
        _collect(trials)
        experiment = entry.experiment
        cache, norm = own = _pool_of(entry)
        try:
            if own not in pools:
                pools[own] = FeaturePool(
                    experiment.clients, norm, experiment.device, in_place=norms[cache] == 1
                )
            trials[entry] = Trial(experiment, pools[own], resume=True)
            for run in trials[entry].runs():
                owners[run] = entry
                yield run
                if entry.error is not None:
                    break
        except FedclipError as error:
            entry.error = str(error)


def _pool_of(entry: Entry) -> tuple[Path, float | None]:
    """Return which features an entry trains on: the cache, and the norm they are rescaled to."""
    return entry.experiment.cache.path, entry.experiment.settings.feature_norm


def _collect(trials: dict[Entry, Trial]) -> None:
    """Set the results so far, and drop the trials that are complete."""
    for entry, trial in list(trials.items()):
        entry.result = trial.result
        if trial.complete:
            del trials[entry]


def own_name(entries: Sequence[Entry]) -> str:
    """Name an ablation by its dataset and its runs."""
    names = sorted(entry.experiment.folder.name for entry in entries)
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()
    return f"{entries[0].experiment.clients[0].dataset}-{digest[:8]}-ablation"


def failures(entries: Sequence[Entry]) -> list[str]:
    """Return a line for each run that failed, of many for the first ones."""
    lines = [
        f"{entry.experiment.folder} failed: "
        + (entry.error or "training diverged (NaN or Inf); try a lower lr")
        for entry in entries
        if entry.status == "failed"
    ]
    return first_of(lines, lambda more: f"and {counted(more, 'more run')} failed")


def clients_of(experiment: Experiment) -> tuple[set[str], set[str]]:
    """Read who took part in the runs of an experiment, and who had too few rows to."""
    participants: set[str] = set()
    dropped: set[str] = set()
    for place in places_of(experiment):
        result = place.read_result()
        if isinstance(result, RunResult):
            participants |= result.domains.keys() - {result.target}
            dropped |= result.dropped.keys()
    return participants, dropped


def describe_left_out(entries: Sequence[Entry]) -> str:
    """Describe how many clients had too few rows to take part; empty if none had."""
    counts = [tuple(map(len, clients_of(entry.experiment))) for entry in entries if entry.result]
    shares = {(dropped, took_part + dropped) for took_part, dropped in counts}
    most = max(shares, default=(0, 0))
    if not most[0]:
        return ""
    several = "" if len(shares) == 1 else "up to "
    return (
        f"left out   {several}{most[0]} of {most[1]} clients, with fewer than {MIN_ROWS} rows; the "
        "CSV file counts them for each run"
    )


def write_csv(path: Path, entries: Sequence[Entry], names: Sequence[str]) -> None:
    """Write a CSV file with a line per run, in the order of the grid and without timings.

    Args:
        path: The file.
        entries: What was run.
        names: The options that vary.
    """
    figures = [f"{kind}{figure}" for figure in FIGURES for kind in ("zero_shot_", "")]
    table = StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(
        [_FIRST_COLUMN, *names, "status", *figures, "error", "clients", "clients_left_out"]
    )
    for entry in entries:
        counts = [len(names) for names in clients_of(entry.experiment)]
        writer.writerow(
            [
                entry.experiment.folder.name,
                *(_written(entry.values[name]) for name in names),
                entry.status,
                *(getattr(entry.result, figure, None) for figure in figures),
                entry.error,
                *(counts if entry.result else [None, None]),
            ]
        )
    with replacing(path) as temporary:
        temporary.write_text(table.getvalue(), encoding="utf-8")


def _written(value: Any) -> Any:
    """Return an option's value as a table for programs has it."""
    return value if isinstance(value, float) else show(value)


def is_table(path: Path) -> bool:
    """Return whether a file begins like those of `write_csv`."""
    with path.open("rb") as file:
        return file.read(len(_FIRST_COLUMN) + 1) == f"{_FIRST_COLUMN},".encode()

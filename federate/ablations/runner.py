"""Many runs side by side, and what comes of them."""

import csv
import hashlib
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from ...cache import FedclipError
from ...cache.common.files import replacing
from ...cache.common.progress import Report, first_of
from ..data.federation import FeaturePool
from ..runs.experiment import Experiment
from ..runs.runner import RecordedRun, Result, Trial, carry_out, result_on_disk, unfinished
from .grid import SEED, show

# Mean and standard deviation, which one value has not.
Spread = tuple[float, float | None]

_FIRST_COLUMN = "run"

FIGURES = ("generalization", "personalization", "personal_mean", "mean", "pooled")


@dataclass(eq=False)
class Entry:
    """One combination of a grid.

    Attributes:
        values: Of the options that vary.
        experiment: The run, or the runs over several targets.
        result: What came of it, as its `result.json` has it; None if nothing did.
        error: Why nothing did, if something was wrong.
    """

    values: Mapping[str, Any]
    experiment: Experiment
    result: Result | None = None
    error: str | None = None

    @property
    def status(self) -> str:
        """How it ended, or that it did not begin."""
        if self.error is not None:
            return "failed"
        return str(self.result["status"]) if self.result else "not begun"


def run_ablation(entries: Sequence[Entry], report: Report, save_every: int | None = None) -> bool:
    """Do what is not done of `entries`, and put down what came of each.

    Runs step side by side, their clients trained in one call; each comes out as it would
    alone, with the batched engine but for float rounding. What is finished is not repeated,
    what was begun goes on, and a run that fails is told of and leaves the others alone. The
    caches' features may be rescaled in place.

    Args:
        entries: On one device.
        report: Takes what there is to tell.
        save_every: As `carry_out` has it.

    Returns:
        Whether all were done; False after an interrupt.
    """
    for entry in entries:
        try:
            entry.result = result_on_disk(entry.experiment)
        except FedclipError as error:
            entry.error = str(error)
    todo = [entry for entry in entries if entry.status == "not begun"]
    if len(todo) < len(entries):
        report.note(f"{len(entries) - len(todo)} of {len(entries)} runs are done already")
    total = sum(unfinished(entry.experiment) * entry.experiment.settings.rounds for entry in todo)
    rounds: Counter[Path] = Counter()
    trials: dict[Entry, Trial] = {}

    def progress(run: RecordedRun) -> None:
        rounds[run.folder.path] = run.state.number
        report.progress("ablation", rounds.total(), total, "rounds", f"{len(todo)} runs")

    try:
        done = carry_out(_openings(todo, trials), progress, save_every)
    finally:
        for trial in trials.values():
            trial.release()
    _collect(trials)
    return done


def _openings(todo: Sequence[Entry], trials: dict[Entry, Trial]) -> Iterator[RecordedRun]:
    """Begin or take up each entry's runs as they are asked for; `trials` has those in flight."""
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
            yield from trials[entry].runs()
        except FedclipError as error:
            entry.error = str(error)


def _pool_of(entry: Entry) -> tuple[Path, float | None]:
    """Say which features an entry trains on: whose, and rescaled to what."""
    return entry.experiment.cache.path, entry.experiment.settings.feature_norm


def _collect(trials: dict[Entry, Trial]) -> None:
    """Take the results that there are, and forget what is complete."""
    for entry, trial in list(trials.items()):
        entry.result = trial.result
        if trial.complete:
            del trials[entry]


def own_name(entries: Sequence[Entry]) -> str:
    """Name an ablation by its data set and its runs."""
    names = sorted(entry.experiment.folder.name for entry in entries)
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()
    return f"{entries[0].experiment.clients[0].dataset}-{digest[:8]}-ablation"


def failures(entries: Sequence[Entry]) -> list[str]:
    """Say which runs failed and why, a line each, of many the first ones."""
    lines = [
        f"{entry.experiment.folder} failed: {entry.error or 'training left the finite numbers'}"
        for entry in entries
        if entry.status == "failed"
    ]
    return first_of(lines, "and {} more runs failed")


def write_csv(path: Path, entries: Sequence[Entry], names: Sequence[str]) -> None:
    """Write a line a run, in the grid's order and without timings, in place of `path`.

    Args:
        path: The file.
        entries: What was run.
        names: The options that vary.
    """
    figures = [f"{kind}{figure}" for figure in FIGURES for kind in ("zero_shot_", "")]
    table = StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow([_FIRST_COLUMN, *names, "status", *figures, "error"])
    for entry in entries:
        result = entry.result or {}
        writer.writerow(
            [
                entry.experiment.folder.name,
                *(show(entry.values[name]) for name in names),
                entry.status,
                *(result.get(figure) for figure in figures),
                entry.error,
            ]
        )
    with replacing(path) as temporary:
        temporary.write_text(table.getvalue(), encoding="utf-8")


def is_table(path: Path) -> bool:
    """Tell whether a file begins as those of `write_csv` do."""
    with path.open("rb") as file:
        return file.read(len(_FIRST_COLUMN) + 1) == f"{_FIRST_COLUMN},".encode()


def summarise(entries: Sequence[Entry], names: Sequence[str]) -> list["Summary"]:
    """Sum up the entries that differ in the seed alone, best mean accuracy first.

    Args:
        entries: What was run.
        names: The options that vary.
    """
    groups: dict[tuple[str, ...], list[Entry]] = {}
    others = [name for name in names if name != SEED]
    for entry in entries:
        values = tuple(show(entry.values[name]) for name in others)
        groups.setdefault(values, []).append(entry)
    summaries = [
        Summary(dict(zip(others, values, strict=True)), members)
        for values, members in groups.items()
    ]
    return sorted(summaries, key=lambda each: each.rank, reverse=True)


class Summary:
    """What came of the entries of one setting, over the seeds.

    Args:
        values: Of the options that vary, but for the seed.
        entries: One a seed.

    Attributes:
        results: Of the entries that finished.
    """

    def __init__(self, values: Mapping[str, str], entries: Sequence[Entry]) -> None:
        self.values = values
        self.entries = entries
        self.results = [
            entry.result for entry in entries if entry.result and entry.status == "finished"
        ]

    @property
    def rank(self) -> float:
        """The mean accuracy, or less than any."""
        return statistics.fmean(self._of("mean")) if self._of("mean") else -1.0

    def accuracy(self, figure: str) -> Spread | None:
        """Mean and standard deviation of one of `FIGURES`; None where it has none."""
        return spread(self._of(figure))

    def gain(self, figure: str) -> Spread | None:
        """Mean and standard deviation of its difference to zero-shot, run by run."""
        before = self._of(f"zero_shot_{figure}")
        return spread([b - a for a, b in zip(before, self._of(figure), strict=True)])

    def _of(self, figure: str) -> list[float]:
        return [result[figure] for result in self.results if result[figure] is not None]


def spread(values: Sequence[float]) -> Spread | None:
    """Give mean and standard deviation; None of no values."""
    if not values:
        return None
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None

"""What a report is about: runs grouped by setting, with their figures, rounds and predictions.

Importing this imports no torch.
"""

from __future__ import annotations

import csv
import logging
import math
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ...cache import FedclipError
from ...cache.common.fields import show_value
from ...cache.common.tables import Spread
from ..runs.catalog import RecordedRun, find_recorded, find_runs, read_rounds
from ..runs.find import Fetch
from ..runs.predictions import ADAPTED
from ..runs.results import RunResult
from .cells import Interval
from .compare import Arm, Comparison, arm_of, compare, zero_shot_of

logger = logging.getLogger(__name__)

# The figure by which settings are ranked.
FIGURE = "mean"

# Facts of a run that do not make it another setting.
_NOT_SETTINGS = {"seed", "name", "status", "encoder"}

# What an ablation's table begins with, and the column after those of the options.
_RUN, _STATUS = "run", "status"


@dataclass(frozen=True)
class RoundLine:
    """A round that was evaluated.

    Attributes:
        number: Counted from 1.
        test: Accuracy by client.
        bytes: What crossed the network up to here, both ways and all clients together.
    """

    number: int
    test: Mapping[str, float]
    bytes: int


@dataclass(eq=False)
class Setting:
    """The runs of one setting, which differ in the seed.

    Attributes:
        name: What it is called in the report.
        runs: One per seed.
        options: The options that differ between settings, as text.
    """

    name: str
    runs: Sequence[RecordedRun]
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def finished(self) -> list[RecordedRun]:
        """The runs that finished."""
        return [run for run in self.runs if run.status == "finished"]

    def spread(self, figure: str, *, zero_shot: bool = False) -> Spread | None:
        """Mean and standard deviation over the seeds of a result's figure."""
        values = [run.figure(figure)[0 if zero_shot else 1] for run in self.finished]
        known = [value for value in values if value is not None]
        if not known:
            return None
        return Spread(statistics.fmean(known), statistics.stdev(known) if known[1:] else None)

    @property
    def rank(self) -> float:
        """The mean accuracy; without one, less than any."""
        spread = self.spread(FIGURE)
        return spread.mean if spread else -1.0

    @cached_property
    def results(self) -> list[RunResult]:
        """The results of all targets and seeds."""
        return [result for run in self.finished for result in run.results]

    @cached_property
    def arm(self) -> Arm | None:
        """The predictions; None if some are missing."""
        try:
            return arm_of(self.name, self.finished, ADAPTED) if self.finished else None
        except FedclipError as error:
            logger.debug("%s", error)
            return None

    @cached_property
    def zero_shot(self) -> Arm | None:
        """What the features themselves predict; None if they do not, or if it was not kept."""
        return self.arm and zero_shot_of(self.arm)

    @cached_property
    def gain(self) -> Comparison | None:
        """Compared with zero-shot."""
        return compared(self.zero_shot, self.arm)

    @cached_property
    def rounds(self) -> list[tuple[RunResult, list[RoundLine]]]:
        """The evaluated rounds of each target and seed."""
        parts = [part for run in self.finished for part in run.parts]
        return [
            (part.result, [*_rounds(part.path)])
            for part in parts
            if isinstance(part.result, RunResult)
        ]


def compared(first: Arm | None, second: Arm | None) -> Comparison | None:
    """Compare two settings; None if that is not possible."""
    if first is None or second is None:
        return None
    try:
        return compare(first, second)
    except FedclipError as error:
        logger.debug("%s", error)
        return None


def _rounds(folder: Path) -> Iterator[RoundLine]:
    """Read the rounds in which test parts were evaluated; invalid lines end them."""
    sent = 0
    try:
        for line in read_rounds(folder):
            sent += int(line["bytes_up"]) + int(line["bytes_down"])
            if line["test"]:
                test = {str(name): float(value) for name, value in line["test"].items()}
                if not all(map(math.isfinite, test.values())):
                    raise ValueError
                yield RoundLine(int(line["round"]), test, sent)
    except (ArithmeticError, ValueError, TypeError, KeyError, AttributeError):
        return


@dataclass(frozen=True, eq=False)
class Collection:
    """What a report shows.

    Attributes:
        title: What it is about.
        settings: The best first.
        options: The options that differ between settings.
        missing: What is not there, in words.
    """

    title: str
    settings: Sequence[Setting]
    options: Sequence[str]
    missing: Sequence[str]

    @property
    def best(self) -> Setting:
        """The setting with the highest mean accuracy."""
        return self.settings[0]

    @property
    def runs(self) -> list[RecordedRun]:
        """All runs."""
        return [run for setting in self.settings for run in setting.runs]

    @cached_property
    def behind(self) -> list[Interval | None]:
        """How each setting differs from the best one; None where that is unknown."""
        found: list[Interval | None] = [None]
        for setting in self.settings[1:]:
            comparison = compared(self.best.arm, setting.arm)
            line = comparison.line(FIGURE) if comparison else None
            found.append(line.interval if line else None)
        return found


def collect(runs_dir: Path, names: Sequence[str], fetch: Fetch | None = None) -> Collection:
    """Group runs by setting.

    Args:
        runs_dir: Where runs are kept.
        names: Runs as `find_recorded` takes them, or the table of an ablation; all runs if there
            are none.
        fetch: Downloads a run from the hub.

    Raises:
        FedclipError: a run is unknown, or none of them has a result.
    """
    runs = {run.path.resolve(): run for name in names for run in _named(runs_dir, name, fetch)}
    if not names:
        runs = {run.path.resolve(): run for run in find_runs(runs_dir)}
    if not runs:
        raise FedclipError(f"no runs in {runs_dir}; make one with 'fedclip federate'")
    settings, options = _grouped([*runs.values()])
    settings.sort(key=lambda setting: setting.rank, reverse=True)
    if settings[0].rank < 0:
        run = settings[0].runs[0]
        raise FedclipError(
            run.problem
            or f"{run.path}: has no accuracy, and its status is {run.status}; resume it, or run it "
            "again with --overwrite"
        )
    datasets = dict.fromkeys(run.dataset for run in runs.values())
    return Collection(", ".join(datasets), settings, options, _missing(settings))


def _named(runs_dir: Path, name: str, fetch: Fetch | None) -> list[RecordedRun]:
    """Return the runs that a name means: a run, those of a setting, or those of an ablation."""
    for path in (Path(name), runs_dir / name):
        if path.suffix == ".csv" and path.is_file():
            return _listed(path, runs_dir)
    return find_recorded(runs_dir, name, fetch)


def _listed(path: Path, runs_dir: Path) -> list[RecordedRun]:
    """Return the runs of an ablation, which are beside its table or in the folder of runs."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            names = [str(row[_RUN]) for row in csv.DictReader(file)]
    except (KeyError, UnicodeDecodeError, csv.Error):
        raise FedclipError(f"{path}: is not the table of an ablation") from None
    found = []
    for name in names:
        if Path(name).name != name:
            raise FedclipError(f"{path}: {name!r} is not the name of a run")
        beside = path.parent if (path.parent / name).is_dir() else runs_dir
        try:
            found += find_recorded(beside, name)
        except FedclipError:
            logger.warning("%s: its run %s is missing; it is left out", path, name)
    return found


def _grouped(runs: Sequence[RecordedRun]) -> tuple[list[Setting], list[str]]:
    """Group runs that differ in the seed alone, and name each group by what makes it differ."""
    facts = [
        {
            name: show_value(tuple(value) if isinstance(value, list) else value)
            for name, value in {**run.facts, "adapter": run.method}.items()
            if name not in _NOT_SETTINGS and not name.endswith("_source") and value is not None
        }
        for run in runs
    ]
    names = list(dict.fromkeys(name for each in facts for name in each))
    differing = [name for name in names if len({each.get(name) for each in facts}) > 1]
    groups: dict[tuple[str, ...], list[RecordedRun]] = {}
    for run, each in zip(runs, facts, strict=True):
        groups.setdefault(tuple(each.get(name, "") for name in differing), []).append(run)
    differing_shown = [name for name in differing if name != "preset" or len(differing) == 1]
    settings = []
    for values, members in groups.items():
        options = dict(zip(differing, values, strict=True))
        shown = {name: options[name] for name in differing_shown if options[name]}
        label = ", ".join(f"{name.replace('_', ' ')}\u00a0{value}" for name, value in shown.items())
        # Two runs of one seed, such as by other names, stay apart.
        for own in _by_seed(members):
            extra = f" ({own[0].name})" if len(members) > len({run.seed for run in members}) else ""
            settings.append(Setting((label or own[0].method) + extra, own, options))
    return settings, differing_shown


def _by_seed(runs: Sequence[RecordedRun]) -> list[list[RecordedRun]]:
    groups: list[list[RecordedRun]] = []
    for run in sorted(runs, key=lambda run: run.seed):
        place = next((g for g in groups if run.seed not in {each.seed for each in g}), None)
        if place is None:
            groups.append([run])
        else:
            place.append(run)
    return groups


def _missing(settings: Sequence[Setting]) -> list[str]:
    """Say in words what the runs lack."""
    said = []
    statuses = Counter(run.status for setting in settings for run in setting.runs)
    for status, count in sorted(statuses.items()):
        if status != "finished":
            said.append(
                f"{count} of {statuses.total()} runs: {status}, so left out of the figures."
            )
    without = [setting for setting in settings if setting.finished and setting.arm is None]
    if without:
        said.append(
            f"{len(without)} of {len(settings)} settings have no kept predictions, because an "
            "earlier fedclip made their runs, they come from the hub, or the files are damaged. "
            "They have no intervals; run them again with --overwrite to get these."
        )
    return said


def shown_options(setting: Setting) -> dict[str, Any]:
    """Return what is worth saying of how a setting's runs were made."""
    run = setting.runs[0]
    return {
        "dataset": run.dataset,
        "encoder": run.encoder,
        "trained": run.method,
        "strategy": str(run.settings.get("strategy", "")),
        "preset": str(run.config.get("preset", "")),
        **{name.replace("_", " "): show_value(value) for name, value in run.changed.items()},
    }

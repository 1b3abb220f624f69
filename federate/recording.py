"""Runs that leave records: opened in a folder, stepped, closed with a result."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ..cache.report import Report
from .clients import FeaturePool, Federation
from .experiment import ALL, NONE, Experiment
from .records import RunFolder, Status, result_of, summary_of
from .server import TASKS_AT_ONCE, Round, Run, drive

Result = dict[str, Any]


class Trial:
    """An experiment and its folder: one run in it, or one for each target below it.

    Args:
        experiment: What to run.
        pool: Its cache's features, rescaled as its settings say.

    Attributes:
        results: By target, of those that are done.

    Raises:
        FedclipError: the input makes no sense; nothing was written then.
    """

    def __init__(self, experiment: Experiment, pool: FeaturePool) -> None:
        self.experiment = experiment
        self.federations = [
            pool.federation(experiment.settings, target) for target in experiment.targets
        ]
        self.results: dict[str | None, Result] = {}
        self._several = len(experiment.targets) > 1

    @property
    def dropped(self) -> dict[str, int]:
        """Clients that the draw left with too few rows: name and rows."""
        return {name: rows for each in self.federations for name, rows in each.dropped}

    def runs(self) -> Iterator["RecordedRun"]:
        """Begin the runs one by one, as they are asked for."""
        experiment = self.experiment
        folder = RunFolder.create(experiment.folder, overwrite=experiment.overwrite)
        folder.write_config(experiment.config(ALL if self._several else experiment.targets[0]))
        for target, federation in zip(experiment.targets, self.federations, strict=True):
            place = folder
            if self._several and target is not None:
                place = folder.below(target)
                place.write_config(experiment.config(target))
            yield RecordedRun(self, federation, place)

    def put(self, target: str | None, result: Result) -> None:
        """Take a run's result; sum up when there are all, or no more will come."""
        self.results[target] = result
        complete = len(self.results) == len(self.experiment.targets)
        if self._several and (complete or result["status"] == "interrupted"):
            summary = summary_of(list(self.results.values()))
            RunFolder(self.experiment.folder).write_result(summary)


class RecordedRun(Run):
    """A run whose rounds are recorded as they are done.

    Args:
        trial: What it is part of, and gets its result.
        federation: Who takes part.
        folder: Where its records go.
    """

    def __init__(self, trial: Trial, federation: Federation, folder: RunFolder) -> None:
        super().__init__(federation, trial.experiment.settings)
        self.trial = trial
        self.folder = folder
        self.seconds: list[float] = []
        self.last_validation: float | None = None

    @property
    def target(self) -> str | None:
        """The domain left out."""
        return self.federation.target.name if self.federation.target else None

    def record(self, current: Round) -> None:
        """Record a round."""
        self.folder.append_round(current)
        self.seconds.append(current.seconds)
        if current.validation:
            self.last_validation = current.mean_validation

    def close(self, status: Status) -> None:
        """Leave the result and the best round's adapter."""
        if self.state.best is not None:
            self.folder.write_adapter(self.state.best, self.trial.experiment.adapter_facts())
        result = result_of(self, status, self.seconds)
        self.folder.write_result(result)
        self.trial.put(self.target, result)


def carry_out(
    trials: Iterable[Trial],
    progress: Callable[[RecordedRun], None],
    tasks_at_once: int = TASKS_AT_ONCE,
) -> None:
    """Do and record every run of every trial.

    A run whose loss or parameters stop being finite ends as failed; an interrupt (Ctrl-C)
    ends those in flight cleanly with what was recorded, and begins no other.

    Args:
        trials: In the order in which they are begun.
        progress: Called with a run when it is begun and after each of its rounds.
        tasks_at_once: As `drive` has it; 1 does one run after the other.
    """
    flying: list[RecordedRun] = []

    def openings() -> Iterator[RecordedRun]:
        for trial in trials:
            for run in trial.runs():
                flying.append(run)
                progress(run)
                yield run

    try:
        for stepped in drive(openings(), tasks_at_once):
            for run, current in stepped:
                run.record(current)
                progress(run)
                if run.over:
                    run.close("failed" if run.state.failed else "finished")
                    flying.remove(run)
    except KeyboardInterrupt:
        for run in flying:
            run.close("interrupted")


def run_experiment(experiment: Experiment, report: Report) -> list[Result]:
    """Run every target and record it; return the results in the targets' order.

    The features of the experiment's caches are rescaled in place. After an interrupt the
    targets that were not begun have no result.

    Raises:
        FedclipError: the input makes no sense; nothing was written then.
    """
    norm = experiment.settings.feature_norm
    pool = FeaturePool(experiment.clients, norm, experiment.device, in_place=True)
    trial = Trial(experiment, pool)
    for name, rows in sorted(trial.dropped.items()):
        report.warn(f"{name} was dealt only {rows} rows and is left out")

    def progress(run: RecordedRun) -> None:
        best = run.last_validation
        detail = "" if best is None else f"validation {best:.2%}"
        task = f"target {run.target or NONE}"
        report.progress(task, run.state.number, run.settings.rounds, "rounds", detail)

    carry_out([trial], progress, tasks_at_once=1)
    return list(trial.results.values())

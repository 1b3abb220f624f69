"""Runs that leave records: begun or taken up in a folder, stepped, saved, closed."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

from ...cache.common.progress import Report, first_of
from ..data.federation import FeaturePool, Federation
from ..server import TASKS_AT_ONCE, Round, Run, drive
from ..training.engine import copy_parameters
from .cost import forecast
from .experiment import ALL, NONE, Experiment
from .folder import ADAPTER, MODEL, OVER, RunFolder, Status, result_of, summary_of

Result = dict[str, Any]

# The most of a run's time that saving its state may take, and what a save is taken to cost
# before one was measured, in seconds.
SAVING_SHARE = 0.01
SAVING_COST = 0.01


class Trial:
    """An experiment and its folder: one run in it, or one for each target below it.

    Args:
        experiment: What to run.
        pool: Its cache's features, rescaled as its settings say.
        resume: Whether to go on with what is there. Else there must be nothing, or
            something that may be overwritten.

    Raises:
        FedclipError: the input makes no sense; nothing was written then.
    """

    def __init__(self, experiment: Experiment, pool: FeaturePool, *, resume: bool = False) -> None:
        self.experiment = experiment
        self.federations = [
            pool.federation(experiment.settings, target) for target in experiment.targets
        ]
        self._resume = resume
        self._folder = RunFolder(experiment.folder)
        self._several = len(experiment.targets) > 1
        self._results: dict[str | None, Result] = {}
        self._claim = ExitStack()

    @property
    def dropped(self) -> dict[str, int]:
        """Clients that the draw left with too few rows: name and rows."""
        return {name: rows for each in self.federations for name, rows in each.dropped}

    @property
    def results(self) -> list[Result]:
        """Of the runs that have one, in the order of the targets."""
        targets = self.experiment.targets
        return [self._results[target] for target in targets if target in self._results]

    @property
    def complete(self) -> bool:
        """Whether every run has a result."""
        return len(self._results) == len(self.experiment.targets)

    @property
    def result(self) -> Result | None:
        """The run's, or the sum of those over several targets, if there is one yet."""
        if not self._results:
            return None
        return self._summary() if self._several else self.results[0]

    def _summary(self) -> Result:
        return summary_of(self.results, complete=self.complete)

    def runs(self) -> Iterator["RecordedRun"]:
        """Begin, or take up, the runs that are not over, one by one as they are asked for.

        Raises:
            FedclipError: the folder holds another run, or one that another process is at,
                or what was saved of a run is damaged.
        """
        experiment, folder = self.experiment, self._folder
        if self._resume and folder.begun:
            experiment.check_config(folder.read_config())
        else:
            config = experiment.config(ALL if self._several else experiment.targets[0])
            folder.begin(config, overwrite=experiment.overwrite)
        self._claim.enter_context(folder.claimed())
        for target, federation in zip(experiment.targets, self.federations, strict=True):
            place = folder
            if self._several and target is not None:
                place = RunFolder(folder.path / target)
                if not place.begun:
                    place.begin(experiment.config(target))
            result = _result_over(place)
            if result is not None:
                place.clear()
                self.put(target, result)
            else:
                yield RecordedRun(self, federation, place)

    def put(self, target: str | None, result: Result) -> None:
        """Take a run's result; sum up when there are all, or no more will come."""
        self._results[target] = result
        if self.complete or result["status"] == "interrupted":
            if self._several:
                self._folder.write_result(self._summary())
            self.release()

    def release(self) -> None:
        """Let other processes at the folder."""
        self._claim.close()


class RecordedRun(Run):
    """A run that is recorded as it goes, and goes on where it was saved last.

    Args:
        trial: What it is part of, and gets its result.
        federation: Who takes part.
        folder: Where its records go.

    Raises:
        FedclipError: what was saved is damaged.
    """

    def __init__(self, trial: Trial, federation: Federation, folder: RunFolder) -> None:
        experiment = trial.experiment
        super().__init__(federation, experiment.settings, engine=experiment.engine)
        self.trial = trial
        self.folder = folder
        self.state = folder.read_state(copy_parameters(self.adapter)) or self.state
        self.seconds = folder.keep_rounds(self.state.number)
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

    def save(self) -> None:
        """Save the state, for the run to go on from there."""
        self.folder.save_state(self.state)

    def close(self, *, interrupted: bool = False) -> None:
        """Leave the result and the best round's adapters, and the state if there is more to do."""
        status: Status = "failed" if self.state.failed else "finished"
        if interrupted:
            status = "interrupted"
            self.seconds = self.folder.keep_rounds(self.state.number)
            self.save()
        experiment, best = self.trial.experiment, self.state.best
        if best is not None and (experiment.whole is None or experiment.whole.keep):
            name = ADAPTER if experiment.whole is None else MODEL
            self.folder.write_parameters(name, best, self.strategy, experiment.model_facts())
        result = result_of(self, status, self.seconds)
        self.folder.write_result(result)
        if not interrupted:
            self.folder.clear()
        self.trial.put(self.target, result)


def result_on_disk(experiment: Experiment) -> Result | None:
    """Read the result of an experiment that is over; None of one that is not.

    Raises:
        FedclipError: there is another run in its folder.
    """
    folder = RunFolder(experiment.folder)
    result = _result_over(folder)
    if result is not None:
        experiment.check_config(folder.read_config())
    return result


def unfinished(experiment: Experiment) -> int:
    """Count the runs of an experiment that are not over."""
    below = [experiment.folder / target for target in experiment.targets if target is not None]
    places = below if len(experiment.targets) > 1 else [experiment.folder]
    return sum(_result_over(RunFolder(place)) is None for place in places)


def _result_over(folder: RunFolder) -> Result | None:
    result = folder.read_result()
    return result if result is not None and result.get("status") in OVER else None


class Saving:
    """Decides when the runs in flight are saved.

    Args:
        every: Rounds between two saves; None for as often as takes 1 % of the time.
    """

    def __init__(self, every: int | None) -> None:
        self._every = every
        self._cost = SAVING_COST
        self._last = time.perf_counter()

    def after(self, runs: Sequence[RecordedRun]) -> None:
        """Save those of `runs`, which have all done a round, whose time it is."""
        if self._every is not None:
            runs = [run for run in runs if run.state.number % self._every == 0]
        elif SAVING_SHARE * (time.perf_counter() - self._last) < self._cost:
            return
        start = time.perf_counter()
        for run in runs:
            run.save()
        self._last = time.perf_counter()
        self._cost = self._last - start


def carry_out(
    runs: Iterable[RecordedRun],
    progress: Callable[[RecordedRun], None],
    save_every: int | None = None,
    tasks_at_once: int = TASKS_AT_ONCE,
) -> bool:
    """Do runs, and record and save them.

    A run whose loss or parameters stop being finite ends as failed; an interrupt (Ctrl-C)
    ends those in flight cleanly, to be resumed, and begins no other.

    Args:
        runs: In the order in which they are begun; asked for when there is place for them.
        progress: Called with a run when it is begun and after each of its rounds.
        save_every: Rounds between two saves; None for as often as takes 1 % of the time.
        tasks_at_once: As `drive` has it; 1 does one run after the other.

    Returns:
        Whether all were done; False after an interrupt.
    """
    flying: list[RecordedRun] = []
    saving = Saving(save_every)

    def openings() -> Iterator[RecordedRun]:
        for run in runs:
            progress(run)
            if run.over:  # it was interrupted after its last round
                run.close()
                continue
            flying.append(run)
            yield run

    try:
        for stepped in drive(openings(), tasks_at_once):
            for run, _ in stepped:
                progress(run)
                if run.over:
                    run.close()
                    flying.remove(run)
            saving.after(flying)
    except KeyboardInterrupt:
        for run in flying:
            run.close(interrupted=not run.over)
        return False
    return True


class Outcome(NamedTuple):
    """What came of an experiment.

    Attributes:
        results: In the targets' order; those that an interrupt left unbegun have none.
        interrupted: Whether it was ended by an interrupt.
    """

    results: list[Result]
    interrupted: bool


def run_experiment(
    experiment: Experiment,
    report: Report,
    *,
    resume: bool = False,
    save_every: int | None = None,
) -> Outcome:
    """Run every target and record it.

    The features of the experiment's caches are rescaled in place.

    Args:
        experiment: What to run.
        report: Takes what there is to tell.
        resume: Whether to go on with what is there.
        save_every: As `carry_out` has it.

    Raises:
        FedclipError: the input makes no sense; nothing was written then.
    """
    norm, whole = experiment.settings.feature_norm, experiment.whole
    pool = FeaturePool(experiment.clients, norm, experiment.device, in_place=True, whole=whole)
    trial = Trial(experiment, pool, resume=resume)
    dropped = [
        f"{name} was dealt only {rows} rows and is left out"
        for name, rows in sorted(trial.dropped.items())
    ]
    rest = "{} more clients were dealt too few rows and are left out; result.json has them all"
    for line in first_of(dropped, rest):
        report.warn(line)

    begun = False

    def progress(run: RecordedRun) -> None:
        nonlocal begun
        if whole is not None and not begun:
            report.note(forecast(run, unfinished(experiment)))
        begun = True
        best = run.last_validation
        detail = "" if best is None else f"validation {best:.2%}"
        task = f"target {run.target or NONE}"
        report.progress(task, run.state.number, run.settings.rounds, "rounds", detail)

    try:
        done = carry_out(trial.runs(), progress, save_every, tasks_at_once=1)
    finally:
        trial.release()
    if done and not begun:
        report.note(f"{experiment.folder}: is finished")
    return Outcome(trial.results, interrupted=not done)

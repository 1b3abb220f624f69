"""Runs that are recorded: started or resumed in a folder, saved, ended."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import NamedTuple

from ...cache import FedclipError
from ...cache.common.files import check_writable, path_for
from ...cache.common.progress import Progress, first_of, no_progress
from ...cache.common.text import counted
from ..data.federation import MIN_ROWS, FeaturePool
from ..flower import ENGINE as FLOWER
from ..models.classifier import CLASS_TEXTS
from ..server import Round
from ..simulation import Callback, Run, simulate
from .cost import forecast
from .experiment import KEEP_ALL, KEEP_SHARED, Experiment, kept_by
from .find import show_target
from .folder import PERSONAL, RUNS_DIR, RunFolder
from .predictions import PREDICTIONS, predictions_of, write_predictions
from .results import Facts, Result, RunResult, Status, result_of, summary_of

logger = logging.getLogger(__name__)

# The largest share of a run's time that saving its state may take, and what a save is taken to
# cost before one was measured, in seconds.
SAVING_SHARE = 0.01
SAVING_COST = 0.01


class Targets:
    """An experiment's folder: one run in it, or one for each target below it.

    Args:
        experiment: What to run.
        resume: Whether to continue with what is there; otherwise there must be nothing, or
            something that may be overwritten.
    """

    def __init__(self, experiment: Experiment, *, resume: bool = False) -> None:
        self.experiment = experiment
        self._resume = resume
        self._folder = RunFolder(experiment.folder)
        self._several = len(experiment.targets) > 1
        self._results: dict[str | None, RunResult] = {}
        self._claim = ExitStack()

    @property
    def results(self) -> list[RunResult]:
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
        if not self._several:
            return self.results[0]
        return summary_of(self.results, complete=self.complete)

    def places(self) -> Iterator[tuple[str | None, RunFolder]]:
        """Begin or resume the runs that are not over, one by one as they are asked for.

        Yields:
            The target, and the folder of its run.

        Raises:
            FedclipError: the folder has another run, or one that another process is working on.
        """
        experiment, folder = self.experiment, self._folder
        if self._resume and folder.begun:
            recorded = folder.read_config()
            experiment.check_config(recorded)
            self.experiment = experiment = replace(experiment, keep=kept_by(recorded))
        else:
            folder.begin(experiment.config(experiment.target), overwrite=experiment.overwrite)
        self._claim.enter_context(folder.claimed())
        for target in experiment.targets:
            place = folder
            if self._several and target is not None:
                place = RunFolder(path_for(folder.path, target))
                if not place.begun:
                    place.begin(experiment.config(show_target(target)))
            result = place.result_if_over()
            if isinstance(result, RunResult):
                place.clear()
                self.put(result)
            else:
                yield target, place

    def put(self, result: RunResult) -> None:
        """Take a run's result; sum up if it is the last, or no more will come."""
        self._results[result.target] = result
        if self.complete or result.status == "interrupted":
            if self._several:
                self._folder.write_result(summary_of(self.results, complete=self.complete))
            self.release()

    def release(self) -> None:
        """Allow other processes to use the folder."""
        self._claim.close()


class Trial(Targets):
    """An experiment's runs in this process.

    Args:
        experiment: What to run.
        pool: Its cache's features, rescaled according to its settings.
        resume: As of `Targets`.
        callbacks: Called besides what records the runs.

    Raises:
        FedclipError: the input makes no sense; nothing was written then.
    """

    def __init__(
        self,
        experiment: Experiment,
        pool: FeaturePool,
        *,
        resume: bool = False,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        super().__init__(experiment, resume=resume)
        if experiment.engine == FLOWER:
            raise FedclipError(
                f"--engine {FLOWER}: is for fedclip federate only; choose another engine"
            )
        self._callbacks = callbacks
        self._federations = {
            target: pool.federation(experiment.settings, target) for target in experiment.targets
        }

    @property
    def clients(self) -> set[str]:
        """Names of all clients, those that were dropped too."""
        federations = self._federations.values()
        names = {client.name for each in federations for client in each.participants}
        return names | self.dropped.keys()

    @property
    def dropped(self) -> dict[str, int]:
        """Clients that the partition left with too few rows: name and rows."""
        return {name: rows for each in self._federations.values() for name, rows in each.dropped}

    def runs(self) -> Iterator[Run]:
        """Begin or resume the runs that are not over, one by one as they are asked for.

        Raises:
            FedclipError: as `places`, or what was saved of a run is damaged.
        """
        for target, place in self.places():
            experiment, recorder = self.experiment, Recorder(self, place)
            settings, engine = experiment.settings, experiment.engine
            loggers = [make(place.path) for make in experiment.loggers]
            own, callbacks = experiment.keep == KEEP_ALL, [recorder, *self._callbacks, *loggers]
            federation = self._federations[target]
            run = Run(federation, settings, experiment.model, engine, callbacks, keep_own=own)
            recorder.restore(run)
            yield run


class Recorder(Callback):
    """Records a run as it goes, and its result when it ends.

    Args:
        trial: What the run is part of, and gets its result.
        folder: Where the records go.
    """

    def __init__(self, trial: Trial, folder: RunFolder) -> None:
        self._trial = trial
        self._folder = folder
        self._seconds: list[float] = []

    def restore(self, run: Run) -> None:
        """Continue from the last saved state, if there is one.

        Raises:
            FedclipError: what was saved is damaged.
        """
        run.state = self._folder.read_state(run.state) or run.state
        self._seconds = self._folder.keep_rounds(run.number)

    def on_round(self, run: Run, current: Round) -> None:
        """Record a round."""
        self._folder.append_round(current, run.scores)
        self._seconds.append(current.seconds)

    def save(self, run: Run) -> None:
        """Save the state, from which the run can be resumed."""
        self._folder.save_state(run.state)

    def on_end(self, run: Run, *, interrupted: bool) -> None:
        """Write the result and the best parameters, and the state if rounds are left."""
        status: Status = "failed" if run.state.server.failed else "finished"
        if interrupted:
            status = "interrupted"
            self._seconds = self._folder.keep_rounds(run.number)
            self.save(run)
        self._write_parameters(run)
        # Predicting takes as long as testing, for which nobody waits after an interrupt.
        predictions = None if interrupted else predictions_of(run)
        if predictions is not None:
            write_predictions(self._folder.path / PREDICTIONS, predictions)
        result = result_of(Facts.of(run), status, self._seconds, predictions)
        self._folder.write_result(result)
        if not interrupted:
            self._folder.clear()
        self._trial.put(result)

    def _write_parameters(self, run: Run) -> None:
        experiment, best = self._trial.experiment, run.state.server.best
        if best is None or not run.model.kept or experiment.keep not in (KEEP_ALL, KEEP_SHARED):
            return
        target = run.federation.target
        facts = experiment.facts(target.name if target else None)
        texts = {CLASS_TEXTS: run.federation.text} if run.model.facts is None else {}
        if run.settings.strategy.shared:
            name = f"{run.model.kind}.safetensors"
            self._folder.write_parameters(name, {**best.parameters, **texts}, facts)
        if run.settings.strategy.personalized and experiment.keep == KEEP_ALL:
            own = {
                f"{client}/{name}": tensor
                for client, parameters in run.state.best_own.items()
                for name, tensor in parameters.items()
            }
            self._folder.write_parameters(PERSONAL, {**own, **texts}, facts)


def result_on_disk(experiment: Experiment) -> Result | None:
    """Read the result of an experiment that is over; None of one that is not.

    Raises:
        FedclipError: its folder has another run.
    """
    folder = RunFolder(experiment.folder)
    result = folder.result_if_over()
    if result is not None:
        experiment.check_config(folder.read_config())
    return result


def places_of(experiment: Experiment) -> list[RunFolder]:
    """List the folders of an experiment's runs, one for each target."""
    folder = experiment.folder
    if len(experiment.targets) == 1:
        return [RunFolder(folder)]
    targets = [target for target in experiment.targets if target is not None]
    return [RunFolder(path_for(folder, target)) for target in targets]


def unfinished(experiment: Experiment) -> int:
    """Count the runs of an experiment that are not over."""
    return sum(place.result_if_over() is None for place in places_of(experiment))


class Saving(Callback):
    """Saves the runs in flight now and then.

    Args:
        every: Rounds between two saves; None for as often as takes 1 % of the time.
    """

    def __init__(self, every: int | None) -> None:
        self._every = every
        self._cost = SAVING_COST
        self._last = time.perf_counter()

    def on_step(self, runs: Sequence[Run]) -> None:
        """Save those of `runs` for which a save is due and which are not over."""
        due = [run for run in runs if not run.over]
        if self._every is not None:
            due = [run for run in due if run.number % self._every == 0]
        elif SAVING_SHARE * (time.perf_counter() - self._last) < self._cost:
            return
        start = time.perf_counter()
        for run in due:
            for callback in run.callbacks:
                if isinstance(callback, Recorder):
                    callback.save(run)
        self._last = time.perf_counter()
        self._cost = self._last - start


class Outcome(NamedTuple):
    """The outcome of an experiment.

    Attributes:
        results: In the order of the targets; those that an interrupt left out have none.
        interrupted: Whether it was ended by an interrupt.
    """

    results: list[RunResult]
    interrupted: bool


class _Shown(Callback):
    """Shows the progress of an experiment, and first what a full model will cost."""

    def __init__(self, experiment: Experiment, progress: Progress) -> None:
        self._experiment = experiment
        self._progress = progress
        self._validation = ""
        self.begun = False

    def on_begin(self, run: Run) -> None:
        """Show where the run starts."""
        if not self.begun and run.model.facts is not None:
            logger.info("%s", forecast(run, unfinished(self._experiment)))
        self.begun, self._validation = True, ""
        self.on_step([run])

    def on_step(self, runs: Sequence[Run]) -> None:
        """Show how far the run is."""
        for run in runs:
            target = show_target(run.federation.target.name if run.federation.target else None)
            best = run.last.mean_validation if run.last and run.last.validation else None
            self._validation = self._validation if best is None else f"validation {best:.2%}"
            rounds = run.settings.rounds
            self._progress(f"target {target}", run.number, rounds, "rounds", self._validation)


def run_experiment(
    experiment: Experiment,
    progress: Progress = no_progress,
    *,
    resume: bool = False,
    save_every: int | None = None,
    callbacks: Sequence[Callback] = (),
) -> Outcome:
    """Run every target and record it.

    The features of the experiment's caches are rescaled in place. A run that diverges ends as
    failed; an interrupt (Ctrl-C) ends the one in flight cleanly, to be resumed.

    Args:
        experiment: What to run.
        progress: Called with the rounds done of each target.
        resume: Whether to continue with what is there.
        save_every: Rounds between two saves; None for as often as takes 1 % of the time.
        callbacks: Called after each round, besides what records it.

    Raises:
        FedclipError: the input makes no sense; nothing was written then.
    """
    norm, model = experiment.settings.feature_norm, experiment.model
    pool = FeaturePool(experiment.clients, norm, experiment.device, in_place=True, model=model)
    trial = Trial(experiment, pool, resume=resume, callbacks=callbacks)
    if unfinished(experiment):
        check_writable(experiment.runs_dir, f"{RUNS_DIR} {experiment.runs_dir}")
    dropped = [
        f"client {name} got only {counted(rows, 'row')} and is left out"
        for name, rows in sorted(trial.dropped.items())
    ]
    for line in first_of(dropped, lambda more: f"and {more} more"):
        logger.warning("%s", line)
    if dropped:
        logger.warning(
            "%d of %d clients are left out, with fewer than %d rows; result.json lists them",
            *(len(dropped), len(trial.clients), MIN_ROWS),
        )
    shown = _Shown(experiment, progress)
    try:
        done = simulate(trial.runs(), [shown, Saving(save_every)], tasks_at_once=1)
    finally:
        trial.release()
    if done and not shown.begun:
        logger.info("%s: is finished", experiment.folder)
    return Outcome(trial.results, interrupted=not done)

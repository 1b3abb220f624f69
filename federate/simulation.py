"""Clients in this process: many runs side by side, their clients trained in one call.

`simulate` is the loop, `step` is one round. Recording, saving and progress are callbacks.
"""

import math
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from ..cache import FedclipError
from ..cache.common.errors import first_line
from .data.federation import Client, Federation
from .models.base import Model
from .models.network import trainable_parameters
from .seeding import seed_of
from .server import Pending, Round, Server, ServerState
from .settings import Settings
from .strategies.base import ClientRound, personal
from .training.engine import AUTO, train_clients
from .training.evaluate import accuracy, count, predict, zero_shot_accuracy, zero_shot_predict
from .training.metrics import Predicted, Scores, mean
from .training.tasks import (
    ClientState,
    Instruction,
    LocalTask,
    Parameters,
    Trained,
    Update,
    all_finite,
    copy_parameters,
)

# Enough to keep a device busy, and about 300 MB of adapters for ViT-B/32.
TASKS_AT_ONCE = 128


@dataclass(frozen=True, eq=False)
class RunState:
    """A run after some round: all that the next one depends on.

    Attributes:
        server: What the server keeps.
        zero_shot: Test accuracy by client without an adapter.
        clients: What each client keeps; one that has not trained yet is missing.
        best_own: The participants' own models after the best round, if they have any.
    """

    server: ServerState
    zero_shot: Mapping[str, float]
    clients: Mapping[str, ClientState] = field(default_factory=dict)
    best_own: Mapping[str, Parameters] = field(default_factory=dict)


class Callback:
    """What happens besides training; each method does nothing by default."""

    def on_begin(self, run: "Run") -> None:
        """Called when a run is started or resumed."""

    def on_round(self, run: "Run", current: Round) -> None:
        """Called after a round, before the run's state moves on to it."""

    def on_step(self, runs: "Sequence[Run]") -> None:
        """Called when all runs in flight have done a round."""

    def on_end(self, run: "Run", *, interrupted: bool) -> None:
        """Called when a run is over or interrupted."""


@dataclass(frozen=True, eq=False)
class Plan:
    """A round before it is trained.

    Attributes:
        instructed: What the server sends, by client.
        rounds: The round as each client sees it.
        trainings: What each client trains, by name.
    """

    instructed: Mapping[str, Instruction]
    rounds: Mapping[str, ClientRound]
    trainings: Mapping[str, Mapping[str, LocalTask]]

    @property
    def tasks(self) -> list[LocalTask]:
        """All that is trained."""
        return [task for named in self.trainings.values() for task in named.values()]


class Run:
    """A run in flight: a server, and clients with their samples and state.

    Args:
        federation: Who takes part.
        settings: What to do.
        model: What is trained; by default the settings' adapter.
        engine: What trains the clients.
        callbacks: Called besides those of `simulate`.
        keep_own: Whether to keep the participants' own models of the best round.

    Attributes:
        state: After the last round; set it to continue from another one.
        last: The last round done, if one was.
        scores: What came of the last evaluation of the test parts, by client, of the models that
            each is judged by; a target that several models are tested on is missing.
    """

    def __init__(
        self,
        federation: Federation,
        settings: Settings,
        model: Model | None = None,
        engine: str = AUTO,
        callbacks: Sequence[Callback] = (),
        *,
        keep_own: bool = True,
    ) -> None:
        self.federation = federation
        self.settings = settings
        self.model = model or settings.model
        self.engine = engine
        self.callbacks = callbacks
        self.keep_own = keep_own
        self.last: Round | None = None
        self.scores: dict[str, Scores] = {}
        trainers = (federation.together,) if settings.strategy.pooled else federation.participants
        self._trainers = {client.name: client for client in trainers}
        samples = {name: len(client.train) for name, client in self._trainers.items()}
        self.server = Server(settings, self.model, samples)
        with _explained([self]):
            seed = seed_of(self.model.kind, settings.seed)
            self.network = self.model.make(federation.text, seed).to(federation.text.device)
            self.initial = copy_parameters(self.network)
            begun = self.server.begin(self.initial)
        for name in (*begun.strategy, *(name for part in begun.strategy.values() for name in part)):
            if "/" in name:
                raise FedclipError(f"{name}: names of parts and parameters must not contain '/'")
        self.state = RunState(begun, _zero_shot(federation, self.model))

    @property
    def number(self) -> int:
        """Rounds done."""
        return self.state.server.number

    @property
    def over(self) -> bool:
        """Whether no round is left to do."""
        return self.server.over(self.state.server)

    @property
    def architecture(self) -> Hashable:
        """What runs must share for their clients to be trained in one call."""
        return self.engine, self.model, tuple(self.federation.text.shape)

    @property
    def clients_held(self) -> int:
        """Number of clients whose parameters come to be held at once."""
        everyone, drawn = len(self._trainers), self.server.clients_per_round
        return everyone if self.settings.strategy.keeps_state else drawn

    @property
    def trainable_parameters(self) -> int:
        """Size of the adapter."""
        return trainable_parameters(self.network)

    @property
    def bytes_per_client(self) -> int:
        """What crosses the network per client and direction in a round."""
        return self.server.bytes_per_client(self.state.server)

    def plan(self) -> Plan:
        """Let the server instruct clients, and derive what each of them trains."""
        instructed = self.server.instruct(self.state.server)
        rounds = {name: self.client_round(name, each) for name, each in instructed.items()}
        strategy = self.settings.strategy
        return Plan(
            instructed, rounds, {name: strategy.tasks(each) for name, each in rounds.items()}
        )

    def carry_on(self, plan: Plan, results: Mapping[LocalTask, Trained], seconds: float) -> Round:
        """Do the rest of a round whose tasks are trained: report, aggregate, evaluate.

        Args:
            plan: The round.
            results: The outcome of each task.
            seconds: What training them took.
        """
        start, server, before = time.perf_counter(), self.server, self.state
        updates, clients = {}, dict(before.clients)
        for name, tasks in plan.trainings.items():
            trained = {key: results[task] for key, task in tasks.items()}
            updates[name], kept = self.report(plan.rounds[name], trained)
            if kept or name in clients:
                clients[name] = kept
        pending = server.aggregate(before.server, plan.instructed, updates)
        if server.validates(pending):
            pending = server.validate(pending, self.validation(pending, clients))
        test, own = None, None
        self.scores = {}
        if pending.better or self.settings.eval_every == 1:
            test, own = self.test(pending, clients)
        seconds += time.perf_counter() - start
        current, after = server.close(pending, seconds, test, own)
        best_own = before.best_own
        if pending.better and self.keep_own:
            best_own = {each.name: model for each, model in self.own_models(pending, clients)}
        for callback in self.callbacks:
            callback.on_round(self, current)
        self.last, self.state = current, RunState(after, before.zero_shot, clients, best_own)
        return current

    def client_round(self, client: str, instruction: Instruction) -> ClientRound:
        """Turn an instruction into a round on a client's samples and state."""
        task = LocalTask(
            client=client,
            model=self.model,
            samples=self._trainers[client].train,
            text=self.federation.text,
            logit_scale=self.federation.logit_scale,
            settings=instruction.settings,
            round_number=instruction.round_number,
            start={**self.initial, **instruction.parameters},
        )
        return ClientRound(task, instruction.extra, self.state.clients.get(client, {}))

    def report(
        self, client: ClientRound, trained: Mapping[str, Trained]
    ) -> tuple[Update, ClientState]:
        """Return what a client sends back, and what it keeps."""
        report = self.settings.strategy.report(client, trained)
        update = Update(
            client=client.task.client,
            parameters=report.parameters,
            samples=len(client.task.samples),
            loss=next(iter(trained.values())).loss,
            extra=report.extra,
            finite=all_finite(report.state.values()),
        )
        return update, report.state

    def accuracy(self, client: Client, part: str, parameters: Parameters) -> float:
        """Return the accuracy of a model on a client's `validation` or `test` part."""
        self.network.load_state_dict(parameters)
        samples = getattr(client, part)
        text, scale = self.federation.text, self.federation.logit_scale
        return accuracy(self.network, self.model, samples, text, scale)

    def score(self, client: Client, parameters: Parameters) -> Scores:
        """Return how good a model's predictions for a client's test part are."""
        self.network.load_state_dict(parameters)
        text, scale = self.federation.text, self.federation.logit_scale
        return Scores.of(count(self.network, self.model, client.test, text, scale))

    def predict(self, client: Client, parameters: Parameters) -> Predicted:
        """Return what a model predicts for a client's test part."""
        self.network.load_state_dict(parameters)
        text, scale = self.federation.text, self.federation.logit_scale
        return predict(self.network, self.model, client.test, text, scale)

    def zero_shot_predict(self, client: Client) -> Predicted | None:
        """Return what a client's cached features predict; None if zero-shot is not defined."""
        if not _is_zero_shot(self.federation, self.model):
            return None
        return zero_shot_predict(client.test, self.federation.text, self.federation.logit_scale)

    def own_models(
        self, pending: Pending, clients: Mapping[str, ClientState]
    ) -> Iterator[tuple[Client, Parameters]]:
        """Yield each participant with its own model; the network remembers its samples."""
        if self.settings.strategy.personalized:
            for client in self.federation.participants:
                self.network.remember(client.train)
                yield client, personal(pending.parameters, clients.get(client.name, {}))

    def validation(self, pending: Pending, clients: Mapping[str, ClientState]) -> dict[str, float]:
        """Return the accuracy by participant on its validation part."""
        if self.settings.strategy.personalized:
            return {
                client.name: self.accuracy(client, "validation", own)
                for client, own in self.own_models(pending, clients)
            }
        return {
            client.name: self.accuracy(client, "validation", pending.parameters)
            for client in self.federation.participants
        }

    def test(
        self, pending: Pending, clients: Mapping[str, ClientState]
    ) -> tuple[dict[str, float], dict[str, float] | None]:
        """Return the test accuracy by client, and that of the participants' own models."""
        target, strategy = self.federation.target, self.settings.strategy
        own: dict[str, float] = {}
        on_target: list[float] = []
        scores = self.scores
        for client, parameters in self.own_models(pending, clients):
            if strategy.shared:
                own[client.name] = self.accuracy(client, "test", parameters)
            else:
                scores[client.name] = self.score(client, parameters)
                own[client.name] = scores[client.name].accuracy
            if target is not None and not strategy.shared:
                on_target.append(self.accuracy(target, "test", parameters))
        if not strategy.shared:
            return {**own, **({target.name: mean(on_target)} if target else {})}, own
        for client in self.federation.clients:
            scores[client.name] = self.score(client, pending.parameters)
        test = {name: each.accuracy for name, each in scores.items()}
        return test, own if strategy.personalized else None


def simulate(
    runs: Iterable[Run],
    callbacks: Sequence[Callback] = (),
    tasks_at_once: int = TASKS_AT_ONCE,
    on_error: Callable[[Run, FedclipError], None] | None = None,
) -> bool:
    """Do runs side by side until all are over.

    Another run is started as long as the parameters of fewer than `tasks_at_once` clients are
    held, and not taken from `runs` before, so `runs` may be a generator that opens them. An
    interrupt (Ctrl-C) ends those in flight, to be resumed, and starts no other.

    Args:
        runs: In the order in which they are started.
        callbacks: Of all runs, besides each run's own.
        tasks_at_once: Bounds the memory; 1 does one run after the other.
        on_error: Takes a run that cannot go on, and the others do; None to raise its error.

    Returns:
        Whether all were done; False after an interrupt.
    """
    waiting, flying = iter(runs), list[Run]()
    try:
        while True:
            while sum(run.clients_held for run in flying) < tasks_at_once:
                coming = next(waiting, None)
                if coming is None:
                    break
                flying.append(coming)
                for each in (*coming.callbacks, *callbacks):
                    each.on_begin(coming)
                _end_those_over(flying, callbacks)
            if not flying:
                return True
            alike: dict[Hashable, list[Run]] = {}
            for run in flying:
                alike.setdefault(run.architecture, []).append(run)
            for together in alike.values():
                if on_error is None:
                    step(together)
                    continue
                for run, error in _step_apart(together).items():
                    flying.remove(run)
                    on_error(run, error)
            for each in callbacks:
                each.on_step(flying)
            _end_those_over(flying, callbacks)
    except KeyboardInterrupt:
        for run in flying:
            for each in (*run.callbacks, *callbacks):
                each.on_end(run, interrupted=not run.over)
        return False


def _end_those_over(flying: list[Run], callbacks: Sequence[Callback]) -> None:
    for run in [run for run in flying if run.over]:
        for each in (*run.callbacks, *callbacks):
            each.on_end(run, interrupted=False)
        flying.remove(run)


def _step_apart(runs: Sequence[Run]) -> dict[Run, FedclipError]:
    """Do one round of each run, and return those that cannot go on."""
    before = {run: run.number for run in runs}
    try:
        step(runs)
    except FedclipError as error:
        if len(runs) == 1:
            return {runs[0]: error}
        failed: dict[Run, FedclipError] = {}
        for run in runs:
            if run.number == before[run]:
                failed |= _step_apart([run])
        return failed
    return {}


def step(runs: Sequence[Run]) -> list[Round]:
    """Do one round of each of several runs of one architecture.

    Returns:
        The rounds, in the order of the runs.
    """
    with _explained(runs):
        return _step(runs)


@contextmanager
def _explained(runs: Sequence[Run]) -> Iterator[None]:
    """Turn whatever methods from outside the package raise into one line."""
    try:
        yield
    except FedclipError:
        raise
    except Exception as error:
        outside = {name for run in runs for name in run.settings.outside}
        if not outside:
            raise
        raise FedclipError(
            f"{' with '.join(sorted(outside))}: failed with {type(error).__name__}: "
            f"{first_line(error)}"
        ) from error


def _step(runs: Sequence[Run]) -> list[Round]:
    start = time.perf_counter()
    plans = [run.plan() for run in runs]
    tasks = [task for plan in plans for task in plan.tasks]
    trained = train_clients(runs[0].network, tasks, runs[0].engine)
    results = dict(zip(tasks, trained, strict=True))
    seconds = (time.perf_counter() - start) / len(tasks)
    return [
        run.carry_on(plan, results, seconds * len(plan.tasks))
        for run, plan in zip(runs, plans, strict=True)
    ]


def _is_zero_shot(federation: Federation, model: Model) -> bool:
    """Return whether the model starts at the cached features and the federation at class texts."""
    return model.zero_shot and federation.zero_shot


def _zero_shot(federation: Federation, model: Model) -> dict[str, float]:
    """Return the test accuracy of features and class texts; NaN if it is not defined."""
    text, scale = federation.text, federation.logit_scale
    defined = _is_zero_shot(federation, model)
    return {
        client.name: zero_shot_accuracy(client.test, text, scale) if defined else math.nan
        for client in federation.clients
    }

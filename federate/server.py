"""A run as a state, and the step from one round to the next.

`Run` holds what a federation is and the state after its last round; `drive` steps any
number of runs side by side, their clients trained in one call.
"""

import math
import time
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch

from .data.federation import Client, Federation
from .models.adapters import Adapter, make_adapter, trainable_parameters
from .seeding import generator, seed_of
from .settings import Settings
from .strategies import SERVER, State, make_strategy
from .strategies.base import client_weights
from .training.engine import (
    AUTO,
    ClientUpdate,
    LocalTask,
    Parameters,
    copy_parameters,
    train_clients,
)
from .training.evaluate import accuracy, mean, test_accuracy, validation_accuracy

# Enough to keep a device busy, and about 300 MB of adapters for ViT-B/32.
TASKS_AT_ONCE = 128


@dataclass(frozen=True, eq=False)
class Round:
    """One round of federation.

    Attributes:
        number: Counted from 1.
        seconds: Wall-clock time of training, aggregation and evaluation; of training with
            other runs side by side, the share of this run's clients.
        train_loss: The clients' mean training losses, weighted as the server weighs them.
        validation: Accuracy by participant of the models that the strategy is for, the
            server's or each participant's own; None if not evaluated.
        test: Accuracy of the server's model by client, the target among them; where there
            is none, each participant's own model is tested, and the target has the mean of
            their accuracies on it. None if not evaluated.
        personal: Test accuracy by participant of its own model; None if not evaluated, or
            if the strategy makes none.
        bytes_up: What all clients together sent to the server.
        bytes_down: What the server sent to all clients together.
        finite: Whether training is still in the realm of numbers.
        parameters: The server's, after this round.
        own: Those of the participants' own models, by participant, if the strategy makes any.
    """

    number: int
    seconds: float
    train_loss: float
    validation: Mapping[str, float] | None
    test: Mapping[str, float] | None
    personal: Mapping[str, float] | None
    bytes_up: int
    bytes_down: int
    finite: bool
    parameters: Parameters
    own: Mapping[str, Parameters] = field(default_factory=dict)

    @property
    def mean_validation(self) -> float:
        """What the best round is chosen by; NaN if not evaluated. The target never counts."""
        return mean(self.validation.values()) if self.validation else math.nan


@dataclass(frozen=True, eq=False)
class RunState:
    """A run after some round: all that the next one depends on.

    There is no generator among it, as every draw depends on the seed, the round and the
    client alone.

    Attributes:
        number: Rounds done.
        strategy: What the strategy keeps, the server's parameters among it.
        zero_shot: Test accuracy by client without an adapter.
        best: The round with the best mean validation accuracy, the earlier one of equals.
        failed: Whether the last round left the finite numbers.
    """

    number: int
    strategy: State
    zero_shot: Mapping[str, float]
    best: Round | None = None
    failed: bool = False


class Run:
    """A run in flight.

    Args:
        federation: Who takes part.
        settings: What to do.
        state: Where to go on; None begins.
        engine: What trains the clients.

    Attributes:
        state: After the last round.
    """

    def __init__(
        self,
        federation: Federation,
        settings: Settings,
        state: RunState | None = None,
        engine: str = AUTO,
    ) -> None:
        self.federation = federation
        self.settings = settings
        self.engine = engine
        self.adapter = make_model(federation, settings).to(federation.text.device)
        self.strategy = make_strategy(federation, settings)
        self.state = state or RunState(
            number=0,
            strategy=self.strategy.init(copy_parameters(self.adapter)),
            zero_shot=_zero_shot(federation),
        )

    @property
    def over(self) -> bool:
        """Whether there is no round left to do."""
        return self.state.failed or self.state.number >= self.settings.rounds

    @property
    def architecture(self) -> Hashable:
        """What runs must share for their clients to be trained in one call."""
        settings, federation = self.settings, self.federation
        shape = tuple(federation.text.shape)
        return self.engine, settings.adapter, settings.ratio, shape, federation.whole

    @property
    def clients_a_round(self) -> int:
        """Number of clients that are drawn for a round."""
        everyone, participation = len(self.federation.participants), self.settings.participation
        if isinstance(participation, float):
            return max(1, round(participation * everyone))
        return min(participation, everyone)

    @property
    def clients_held(self) -> int:
        """Number of clients whose parameters come to be held at once."""
        keeps, everyone = self.strategy.keeps_clients, self.federation.participants
        return len(everyone) if keeps else self.clients_a_round

    @property
    def trainable_parameters(self) -> int:
        """Size of the adapter."""
        return trainable_parameters(self.adapter)

    @property
    def bytes_per_client(self) -> int:
        """What crosses the network per client and direction in a round."""
        return self.strategy.bytes_per_client(self.state.strategy[SERVER])

    def tasks(self) -> list[LocalTask]:
        """Say what the clients of the next round are to do."""
        number = self.state.number + 1
        return self.strategy.tasks(self.state.strategy, self._sample(number), number)

    def _sample(self, number: int) -> list[Client]:
        """Draw the clients of a round, in alphabetical order."""
        everyone = self.federation.participants
        random = generator("participation", self.settings.seed, number)
        drawn = random.choice(len(everyone), size=self.clients_a_round, replace=False)
        return [everyone[index] for index in sorted(drawn)]

    def take(self, updates: Sequence[ClientUpdate], training_seconds: float) -> Round:
        """Aggregate what the clients of a round sent back, and evaluate.

        Args:
            updates: In the order of `tasks`.
            training_seconds: What the training took.
        """
        start = time.perf_counter()
        before, number, best = self.state.strategy, self.state.number + 1, self.state.best
        strategy = self.strategy.apply(before, updates)
        every, last = self.settings.eval_every, self.settings.rounds
        first = updates[: self.clients_a_round]  # a task for each client, before any others
        weights = client_weights(first, self.settings.weighting)
        train_loss = sum(w * update.loss for w, update in zip(weights, first, strict=True))
        finite = math.isfinite(train_loss) and all(
            bool(torch.isfinite(tensor).all())
            for part, parameters in strategy.items()
            if parameters is not before.get(part)
            for tensor in parameters.values()
        )
        validation, better = None, False
        if number % every == 0 or number == last:
            validation = self._validate(strategy)
            better = finite and (best is None or mean(validation.values()) > best.mean_validation)
        test, personal = None, None
        if better or every == 1:
            test, personal = self._test(strategy)
        traffic = self.bytes_per_client * self.clients_a_round
        current = Round(
            number=number,
            seconds=training_seconds + time.perf_counter() - start,
            train_loss=train_loss,
            validation=validation,
            test=test,
            personal=personal,
            bytes_up=traffic,
            bytes_down=traffic,
            finite=finite,
            parameters=strategy[SERVER],
            own=self._own_parameters(strategy),
        )
        self.record(current)
        self.state = replace(
            self.state,
            number=number,
            strategy=strategy,
            best=current if better else best,
            failed=not finite,
        )
        return current

    def _validate(self, state: State) -> dict[str, float]:
        """Give the accuracy by participant on its validation part."""
        if self.strategy.personalised:
            return {
                client.name: accuracy(model, self.federation, client.validation)
                for client, model in self._own_models(state)
            }
        return validation_accuracy(self._model(state[SERVER]), self.federation)

    def _test(self, state: State) -> tuple[dict[str, float], dict[str, float] | None]:
        """Give the accuracy by client on its test part, and that of the models of its own."""
        federation, target = self.federation, self.federation.target
        if not self.strategy.personalised:
            return test_accuracy(self._model(state[SERVER]), federation), None
        personal, on_target = {}, []
        for client, model in self._own_models(state):
            personal[client.name] = accuracy(model, federation, client.test)
            if target is not None and not self.strategy.shared:
                on_target.append(accuracy(model, federation, target.test))
        if self.strategy.shared:
            return test_accuracy(self._model(state[SERVER]), federation), personal
        return {**personal, **({target.name: mean(on_target)} if target else {})}, personal

    def _own_models(self, state: State) -> Iterator[tuple[Client, Adapter]]:
        """Give each participant with its model, which is overwritten by the next one's."""
        for client in self.federation.participants:
            model = self._model(self.strategy.personal(state, client.name))
            model.remember(client.train)
            yield client, model

    def _own_parameters(self, state: State) -> dict[str, Parameters]:
        if not self.strategy.personalised:
            return {}
        names = (client.name for client in self.federation.participants)
        return {name: self.strategy.personal(state, name) for name in names}

    def _model(self, parameters: Parameters) -> Adapter:
        """Put parameters into the adapter."""
        self.adapter.load_state_dict(parameters)
        return self.adapter

    def record(self, current: Round) -> None:
        """Take note of a round, before the state moves on to it; nothing by itself."""


def make_model(federation: Federation, settings: Settings) -> Adapter:
    """Make what is trained, the same for equal seeds."""
    if federation.whole is not None:
        return federation.whole.make(seed_of("model", settings.seed))
    seed = seed_of("adapter", settings.seed)
    return make_adapter(settings.adapter, federation.text, seed, settings.ratio)


def _zero_shot(federation: Federation) -> dict[str, float]:
    """Test accuracy of the cached features; NaN where what is trained has other ones."""
    if federation.whole is not None and not federation.whole.zero_shot:
        return {client.name: math.nan for client in federation.clients}
    return test_accuracy(None, federation)


AnyRun = TypeVar("AnyRun", bound=Run)


def drive(
    runs: Iterable[AnyRun], tasks_at_once: int = TASKS_AT_ONCE
) -> Iterator[list[tuple[AnyRun, Round]]]:
    """Step runs side by side until all are over.

    Another run is begun as long as the parameters of fewer than `tasks_at_once` clients are
    held, and taken from `runs` no sooner, which so may be a generator that opens them.

    Args:
        runs: None of them over, in the order in which they are begun.
        tasks_at_once: What bounds the memory; 1 does one run after the other.

    Yields:
        After each step, the runs in flight, each with its round.
    """
    waiting = iter(runs)
    flying: list[AnyRun] = []
    while True:
        flying = [run for run in flying if not run.over]
        while sum(run.clients_held for run in flying) < tasks_at_once:
            coming = next(waiting, None)
            if coming is None:
                break
            flying.append(coming)
        if not flying:
            return
        alike: dict[Hashable, list[AnyRun]] = {}
        for run in flying:
            alike.setdefault(run.architecture, []).append(run)
        yield [stepped for each in alike.values() for stepped in _step(each)]


def _step(runs: Sequence[AnyRun]) -> list[tuple[AnyRun, Round]]:
    """Do a round of each of several runs of one architecture."""
    start = time.perf_counter()
    tasks = [run.tasks() for run in runs]
    everything = [task for own in tasks for task in own]
    updates = iter(train_clients(runs[0].adapter, everything, runs[0].engine))
    seconds = time.perf_counter() - start
    stepped = []
    for run, own in zip(runs, tasks, strict=True):
        share = seconds * len(own) / len(everything)
        stepped.append((run, run.take([next(updates) for _ in own], share)))
    return stepped

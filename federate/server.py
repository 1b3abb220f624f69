"""A run as a state, and the step from one round to the next.

`Run` holds what a federation is and the state after its last round; `drive` steps any
number of runs side by side, their clients trained in one call.
"""

import math
import time
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TypeVar

import torch
from torch import nn

from .adapters import make_adapter, trainable_parameters
from .clients import Client, Federation
from .evaluate import mean, test_accuracy, validation_accuracy
from .local import (
    ClientUpdate,
    LocalTask,
    Parameters,
    Proximal,
    copy_parameters,
    train_clients,
)
from .seeding import generator, seed_of
from .settings import Settings
from .strategies import SERVER, State, fedavg

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
        validation: Accuracy of the server's adapter by participant; None if not evaluated.
        test: Accuracy by client, the target among them; None if not evaluated.
        bytes_up: What all clients together sent to the server.
        bytes_down: What the server sent to all clients together.
        finite: Whether training is still in the realm of numbers.
        parameters: The server's, after this round.
    """

    number: int
    seconds: float
    train_loss: float
    validation: Mapping[str, float] | None
    test: Mapping[str, float] | None
    bytes_up: int
    bytes_down: int
    finite: bool
    parameters: Parameters

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

    Attributes:
        state: After the last round.
    """

    def __init__(
        self, federation: Federation, settings: Settings, state: RunState | None = None
    ) -> None:
        self.federation = federation
        self.settings = settings
        self.adapter = make_model(federation, settings).to(federation.text.device)
        self.state = state or RunState(
            number=0,
            strategy=fedavg.init(copy_parameters(self.adapter)),
            zero_shot=_zero_shot(federation),
        )

    @property
    def over(self) -> bool:
        """Whether there is no round left to do."""
        return self.state.failed or self.state.number >= self.settings.rounds

    @property
    def architecture(self) -> Hashable:
        """What runs must share for their clients to be trained in one call."""
        settings = self.settings
        return settings.adapter, settings.ratio, tuple(self.federation.text.shape)

    @property
    def tasks_a_round(self) -> int:
        """Number of clients that train in a round."""
        everyone, participation = len(self.federation.participants), self.settings.participation
        if isinstance(participation, float):
            return max(1, round(participation * everyone))
        return min(participation, everyone)

    @property
    def trainable_parameters(self) -> int:
        """Size of the adapter."""
        return trainable_parameters(self.adapter)

    @property
    def parameter_bytes(self) -> int:
        """What crosses the network per client and direction in a round."""
        server = self.state.strategy[SERVER]
        return sum(tensor.numel() * tensor.element_size() for tensor in server.values())

    def tasks(self) -> list[LocalTask]:
        """Say what the clients of the next round are to do."""
        start, number = self.state.strategy[SERVER], self.state.number + 1
        proximal = None
        if self.settings.strategy == "fedprox":
            proximal = Proximal(self.settings.mu, start)
        return [
            LocalTask(client, self.federation, self.settings, number, start, proximal)
            for client in self._sample(number)
        ]

    def _sample(self, number: int) -> list[Client]:
        """Draw the clients of a round, in alphabetical order."""
        everyone = self.federation.participants
        random = generator("participation", self.settings.seed, number)
        drawn = random.choice(len(everyone), size=self.tasks_a_round, replace=False)
        return [everyone[index] for index in sorted(drawn)]

    def take(self, updates: Sequence[ClientUpdate], training_seconds: float) -> Round:
        """Aggregate what the clients of a round sent back, and evaluate.

        Args:
            updates: In the order of `tasks`.
            training_seconds: What the training took.
        """
        start = time.perf_counter()
        strategy = fedavg.apply(self.state.strategy, updates, self.settings)
        weights = fedavg.client_weights(updates, self.settings.weighting)
        parameters = strategy[SERVER]
        self.adapter.load_state_dict(parameters)
        number, best = self.state.number + 1, self.state.best
        every, last = self.settings.eval_every, self.settings.rounds
        train_loss = sum(w * update.loss for w, update in zip(weights, updates, strict=True))
        finite = math.isfinite(train_loss) and all(
            bool(torch.isfinite(tensor).all()) for tensor in parameters.values()
        )
        validation, better = None, False
        if number % every == 0 or number == last:
            validation = validation_accuracy(self.adapter, self.federation)
            better = finite and (best is None or mean(validation.values()) > best.mean_validation)
        test = None
        if better or every == 1:
            test = test_accuracy(self.adapter, self.federation)
        traffic = self.parameter_bytes * len(updates)
        current = Round(
            number=number,
            seconds=training_seconds + time.perf_counter() - start,
            train_loss=train_loss,
            validation=validation,
            test=test,
            bytes_up=traffic,
            bytes_down=traffic,
            finite=finite,
            parameters=parameters,
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

    def record(self, current: Round) -> None:
        """Take note of a round, before the state moves on to it; nothing by itself."""


def make_model(federation: Federation, settings: Settings) -> nn.Module:
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

    Another run is begun as long as fewer than `tasks_at_once` clients train, and taken from
    `runs` no sooner, which so may be a generator that opens them.

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
        while sum(run.tasks_a_round for run in flying) < tasks_at_once:
            coming = next(waiting, None)
            if coming is None:
                break
            flying.append(coming)
        if not flying:
            return
        yield [
            stepped
            for _, alike in groupby(flying, key=lambda run: run.architecture)
            for stepped in _step(list(alike))
        ]


def _step(runs: Sequence[AnyRun]) -> list[tuple[AnyRun, Round]]:
    """Do a round of each of several runs of one architecture."""
    start = time.perf_counter()
    tasks = [run.tasks() for run in runs]
    everything = [task for own in tasks for task in own]
    updates = iter(train_clients(runs[0].adapter, everything))
    seconds = time.perf_counter() - start
    stepped = []
    for run, own in zip(runs, tasks, strict=True):
        share = seconds * len(own) / len(everything)
        stepped.append((run, run.take([next(updates) for _ in own], share)))
    return stepped

"""The loop over rounds: train, aggregate, evaluate, record, and keep the best round."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from .adapters import make_adapter
from .clients import Federation
from .evaluate import mean, test_accuracy, validation_accuracy
from .local import LocalTask, Parameters, copy_parameters, train_clients
from .seeding import seed_of
from .settings import Settings
from .strategies import fedavg

Status = Literal["finished", "interrupted", "failed"]


@dataclass(frozen=True, eq=False)
class Round:
    """One round of federation.

    Attributes:
        number: Counted from 1.
        seconds: Wall-clock time of training, aggregation and evaluation.
        train_loss: The clients' mean training losses, weighted as the server weighs them.
        validation: Accuracy of the server's adapter by participant.
        test: Accuracy by client, the target among them.
        bytes_up: What all clients together sent to the server.
        bytes_down: What the server sent to all clients together.
        parameters: The server's, after this round.
    """

    number: int
    seconds: float
    train_loss: float
    validation: Mapping[str, float]
    test: Mapping[str, float]
    bytes_up: int
    bytes_down: int
    parameters: Parameters

    @property
    def mean_validation(self) -> float:
        """What the best round is chosen by; the target never counts."""
        return mean(self.validation.values())

    @property
    def finite(self) -> bool:
        """Whether training is still in the realm of numbers."""
        return math.isfinite(self.train_loss) and all(
            bool(torch.isfinite(tensor).all()) for tensor in self.parameters.values()
        )


@dataclass(eq=False)
class Outcome:
    """What a run came to.

    Attributes:
        zero_shot: Test accuracy by client without an adapter.
        trainable_parameters: Size of the adapter.
        parameter_bytes: What crosses the network per client and direction in a round.
        status: Whether all rounds were run, or why not.
        best: The round with the best mean validation accuracy, the earlier one of equals.
        seconds: Of each recorded round.
    """

    zero_shot: Mapping[str, float]
    trainable_parameters: int
    parameter_bytes: int
    status: Status = "finished"
    best: Round | None = None
    seconds: list[float] = field(default_factory=list)


def run_rounds(adapter: nn.Module, federation: Federation, settings: Settings) -> Iterator[Round]:
    """Federate `adapter` round by round, starting from its parameters as they are."""
    parameters = copy_parameters(adapter)
    for number in range(1, settings.rounds + 1):
        start = time.perf_counter()
        tasks = [
            LocalTask(client, federation, settings, number, parameters)
            for client in federation.participants
        ]
        updates = train_clients(adapter, tasks)
        parameters = fedavg.apply(updates, settings.weighting)
        weights = fedavg.client_weights(updates, settings.weighting)
        adapter.load_state_dict(parameters)
        validation = validation_accuracy(adapter, federation)
        test = test_accuracy(adapter, federation)
        traffic = _bytes(parameters) * len(updates)
        yield Round(
            number=number,
            seconds=time.perf_counter() - start,
            train_loss=sum(w * update.loss for w, update in zip(weights, updates, strict=True)),
            validation=validation,
            test=test,
            bytes_up=traffic,
            bytes_down=traffic,
            parameters=parameters,
        )


def federate(
    federation: Federation,
    settings: Settings,
    record: Callable[[Round], None],
    progress: Callable[[int, Round | None], None],
) -> Outcome:
    """Run every round and keep the best.

    A run whose loss or parameters stop being finite ends as failed; an interrupt
    (Ctrl-C) ends it cleanly with what was recorded.

    Args:
        federation: Who takes part.
        settings: What to do.
        record: Called with each round, before the next begins.
        progress: Called with the number of rounds done and the last of them.
    """
    adapter = make_adapter(federation.embed_dim, seed_of("adapter", settings.seed))
    adapter.to(federation.text.device)
    outcome = Outcome(
        zero_shot=test_accuracy(None, federation),
        trainable_parameters=sum(p.numel() for p in adapter.parameters() if p.requires_grad),
        parameter_bytes=_bytes(adapter.state_dict()),
    )
    try:
        progress(0, None)
        for current in run_rounds(adapter, federation, settings):
            record(current)
            outcome.seconds.append(current.seconds)
            if not current.finite:
                outcome.status = "failed"
                break
            if outcome.best is None or current.mean_validation > outcome.best.mean_validation:
                outcome.best = current
            progress(current.number, current)
    except KeyboardInterrupt:
        outcome.status = "interrupted"
    return outcome


def _bytes(parameters: Parameters) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in parameters.values())

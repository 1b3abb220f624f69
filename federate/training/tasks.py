"""What travels between a server and its clients, and what a client trains.

A server sends each client of a round an `Instruction` and gets an `Update` back. Neither has
samples in it. A client turns an instruction into one or more `LocalTask`s on its own samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..seeding import generator

if TYPE_CHECKING:
    from ..data.samples import Samples
    from ..models.base import Model
    from .settings import TrainingSettings

Parameters = Mapping[str, Tensor]

# What a client keeps from round to round and never sends, part by part: its own parameters,
# or whatever else its strategy needs.
ClientState = Mapping[str, Parameters]


@dataclass(frozen=True, eq=False)
class Instruction:
    """What a server sends a client for a round.

    Attributes:
        round_number: Counted from 1.
        parameters: What training starts from. Names that are missing start from the client's
            own initial parameters, which every client draws from the same seed.
        extra: What the strategy adds, by name.
        settings: Those of local training.
    """

    round_number: int
    parameters: Parameters
    extra: Mapping[str, Parameters]
    settings: TrainingSettings

    @property
    def bytes(self) -> int:
        """Size of all tensors in it."""
        return size_of(self.parameters, *self.extra.values())


@dataclass(frozen=True, eq=False)
class Update:
    """What a client sends back.

    Attributes:
        client: Its name.
        parameters: Its trained parameters, or those of them that are shared.
        samples: Rows of its training part.
        loss: Mean training loss over the samples it trained on, NaN if there were none.
        extra: What the strategy adds, by name.
        finite: Whether everything that it trained is finite, what it keeps included.
        metrics: Whatever else it measured.
    """

    client: str
    parameters: Parameters
    samples: int
    loss: float
    extra: Mapping[str, Parameters] = field(default_factory=dict)
    finite: bool = True
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Size of all tensors in it."""
        return size_of(self.parameters, *self.extra.values())


@dataclass(frozen=True, eq=False)
class Proximal:
    """A pull towards an anchor: ``mu / 2 * ||w - anchor||^2`` on top of the loss.

    Attributes:
        mu: Its strength.
        anchor: The parameters that it pulls to.
    """

    mu: float
    anchor: Parameters


@dataclass(frozen=True, eq=False)
class LocalTask:
    """A training on a client's samples. Tasks of several rounds or runs may be trained at once.

    Attributes:
        client: Name of the client.
        model: What is trained.
        samples: Its training part.
        text: (C, D) class texts.
        logit_scale: The encoder's ``exp(logit_scale)``.
        settings: Epochs, batches, loss and optimizer.
        round_number: Counted from 1; batches are drawn from (seed, round, client).
        start: The parameters to start from.
        proximal: Adds ``mu * (w - anchor)`` to each gradient.
        correction: Is added to each gradient.
    """

    client: str
    model: Model
    samples: Samples
    text: Tensor
    logit_scale: float
    settings: TrainingSettings
    round_number: int
    start: Parameters
    proximal: Proximal | None = None
    correction: Parameters | None = None

    @property
    def steps(self) -> int:
        """Number of minibatches."""
        full, rest = divmod(len(self.samples), self.settings.batch_size)
        return self.settings.local_epochs * (full + (rest > 1))

    def batches(self) -> list[Tensor]:
        """Draw the task's minibatches, as tensors of row indices."""
        return list(draw_batches(len(self.samples), self.settings, self.round_number, self.client))


@dataclass(frozen=True, eq=False)
class Trained:
    """The outcome of a task.

    Attributes:
        parameters: The trained parameters.
        loss: Mean training loss over the samples trained on, NaN if there were none.
        steps: Minibatches trained on.
    """

    parameters: Parameters
    loss: float
    steps: int


def draw_batches(
    samples: int, settings: TrainingSettings, round_number: int, client: str
) -> Iterator[Tensor]:
    """Draw the minibatches of a client's round as tensors of row indices.

    Every epoch shuffles again; a batch of one sample is skipped, as it has no negatives.
    """
    random = generator("batches", settings.seed, round_number, client)
    for _ in range(settings.local_epochs):
        order = torch.from_numpy(random.permutation(samples))
        yield from (batch for batch in torch.split(order, settings.batch_size) if len(batch) > 1)


def copy_parameters(network: nn.Module) -> Parameters:
    """Copy a network's parameters as they are now."""
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def size_of(*several: Parameters) -> int:
    """Count the bytes of all tensors."""
    tensors = (tensor for parameters in several for tensor in parameters.values())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def all_finite(several: Iterable[Parameters]) -> bool:
    """Whether no number is NaN or infinite."""
    return all(
        bool(tensor.isfinite().all()) for parameters in several for tensor in parameters.values()
    )


def is_finite(update: Update) -> bool:
    """Whether an update can be aggregated."""
    return (
        update.finite
        and math.isfinite(update.loss)
        and all_finite([update.parameters, *update.extra.values()])
    )

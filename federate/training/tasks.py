"""What a client is to do in a round, and what it sends back."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..data.federation import Client, Federation
from ..seeding import generator
from ..settings import Settings

Parameters = Mapping[str, Tensor]


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
    """What a client is to do in a round. Tasks of several rounds or runs may be trained at once.

    Attributes:
        client: Who trains, on its training part.
        federation: Where the class texts and the logit scale come from.
        settings: Epochs, batches, loss and optimizer.
        round_number: Counted from 1; batches are drawn from (seed, round, client).
        start: The parameters to start from, as a rule the server's.
        proximal: Adds ``mu * (w - anchor)`` to each gradient.
        correction: Is added to each gradient.
    """

    client: Client
    federation: Federation
    settings: Settings
    round_number: int
    start: Parameters
    proximal: Proximal | None = None
    correction: Parameters | None = None

    @property
    def steps(self) -> int:
        """Number of minibatches."""
        full, rest = divmod(len(self.client.train), self.settings.batch_size)
        return self.settings.local_epochs * (full + (rest > 1))

    def batches(self) -> list[Tensor]:
        """Draw the task's minibatches, as tensors of row indices."""
        samples = len(self.client.train)
        return list(draw_batches(samples, self.settings, self.round_number, self.client.name))


@dataclass(frozen=True, eq=False)
class ClientUpdate:
    """What a client sends back after local training.

    Attributes:
        client: Its name.
        parameters: Its adapter's parameters.
        samples: Rows of its training part.
        loss: Mean training loss over the samples it trained on, NaN if there were none.
        steps: Minibatches it trained on.
    """

    client: str
    parameters: Parameters
    samples: int
    loss: float
    steps: int


def draw_batches(
    samples: int, settings: Settings, round_number: int, client: str
) -> Iterator[Tensor]:
    """Draw the minibatches of a client's round as tensors of row indices.

    Every epoch shuffles anew; a batch of one sample is skipped, as it has no negatives.
    """
    random = generator("batches", settings.seed, round_number, client)
    for _ in range(settings.local_epochs):
        order = torch.from_numpy(random.permutation(samples))
        yield from (batch for batch in torch.split(order, settings.batch_size) if len(batch) > 1)


def copy_parameters(adapter: nn.Module) -> Parameters:
    """Copy an adapter's parameters as they are now."""
    return {name: tensor.detach().clone() for name, tensor in adapter.state_dict().items()}

"""Trains many clients' adapters from the server's parameters."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .clients import Client, Federation
from .losses import LOSSES
from .seeding import generator
from .settings import Settings

Parameters = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class ClientUpdate:
    """What a client sends back after local training.

    Attributes:
        client: Its name.
        parameters: Its adapter's parameters.
        samples: Rows of its training part.
        loss: Mean training loss over the samples it trained on, NaN if there were none.
    """

    client: str
    parameters: Parameters
    samples: int
    loss: float


@dataclass(frozen=True, eq=False)
class LocalTask:
    """What a client is to do in a round. Tasks of several rounds or runs may be trained at once.

    Attributes:
        client: Who trains, on its training part.
        federation: Where the class texts and the logit scale come from.
        settings: Epochs, batches, loss and optimizer.
        round_number: Counted from 1; batches are drawn from (seed, round, client).
        start: The parameters to start from, as a rule the server's.
    """

    client: Client
    federation: Federation
    settings: Settings
    round_number: int
    start: Parameters


def train_clients(adapter: nn.Module, tasks: Sequence[LocalTask]) -> list[ClientUpdate]:
    """Do each task, and return the updates in their order.

    Args:
        adapter: The adapter's architecture; its own parameters are overwritten.
        tasks: Of any clients, of one adapter.
    """
    updates = []
    for task in tasks:
        adapter.load_state_dict(task.start)
        loss = _train(adapter, task)
        trained = copy_parameters(adapter)
        updates.append(ClientUpdate(task.client.name, trained, len(task.client.train), loss))
    return updates


def copy_parameters(adapter: nn.Module) -> Parameters:
    """Copy an adapter's parameters as they are now."""
    return {name: tensor.detach().clone() for name, tensor in adapter.state_dict().items()}


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


def _train(adapter: nn.Module, task: LocalTask) -> float:
    """Run a client's local epochs in place, with an optimizer made anew."""
    client, settings, federation = task.client, task.settings, task.federation
    loss_function = LOSSES[settings.loss]
    optimizer = torch.optim.Adam(
        adapter.parameters(),
        lr=settings.lr,
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    device = federation.text.device
    total, rows = torch.zeros((), device=device), 0
    for batch in draw_batches(len(client.train), settings, task.round_number, client.name):
        features, labels = client.train[batch.to(device)]
        image, text = adapter(features, federation.text)
        loss = loss_function(image, text, labels, federation.logit_scale)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        total += loss.detach() * len(batch)
        rows += len(batch)
    return total.item() / rows if rows else math.nan

"""The loop to check against the paper: one task after the other, autograd and torch.optim."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...cache.common.device import repeatable_cudnn
from ..models.full import training_loss
from ..seeding import seed_of
from ..settings import Settings
from .tasks import ClientUpdate, LocalTask, copy_parameters


def train(adapter: nn.Module, tasks: Sequence[LocalTask]) -> list[ClientUpdate]:
    """Do each task with `adapter`, whose parameters are overwritten."""
    # Convolutions, of whole models, must come out alike each time on a GPU too.
    with repeatable_cudnn():
        return [_train(adapter, task) for task in tasks]


def _train(adapter: nn.Module, task: LocalTask) -> ClientUpdate:
    """Run a client's local epochs, with an optimizer made anew."""
    client, settings = task.client, task.settings
    adapter.load_state_dict(task.start)
    adapter.train()
    optimizer = _optimizer(adapter, settings)
    device = client.train.rows.device
    total, rows = torch.zeros((), device=device), 0
    batches = task.batches()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        # Of dropout, which a whole model may have.
        torch.manual_seed(seed_of("dropout", settings.seed, task.round_number, client.name))
        for batch in batches:
            loss = _step(adapter, optimizer, task, batch.to(device))
            total += loss * len(batch)
            rows += len(batch)
    return ClientUpdate(
        client=client.name,
        parameters=copy_parameters(adapter),
        samples=len(client.train),
        loss=total.item() / rows if rows else math.nan,
        steps=len(batches),
    )


def _step(
    adapter: nn.Module, optimizer: torch.optim.Optimizer | None, task: LocalTask, batch: Tensor
) -> Tensor:
    """Train on one minibatch, given by its rows; return the loss."""
    federation = task.federation
    inputs, labels = task.client.train[batch]
    scale, name = federation.logit_scale, task.settings.loss
    loss = training_loss(adapter, inputs, federation.model_text, labels, scale, name)
    if optimizer is not None:
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        _adjust_gradients(adapter, task)
        optimizer.step()
    return loss.detach()


def _optimizer(adapter: nn.Module, settings: Settings) -> torch.optim.Optimizer | None:
    """Make the optimizer; None where there is nothing to train."""
    parameters = list(adapter.parameters())
    if not parameters:
        return None
    if settings.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=settings.lr, weight_decay=settings.weight_decay)
    return torch.optim.Adam(
        parameters,
        lr=settings.lr,
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def _adjust_gradients(adapter: nn.Module, task: LocalTask) -> None:
    """Add what the task's strategy adds to the gradients."""
    for name, parameter in adapter.named_parameters():
        if parameter.grad is None:  # a part of a whole model that the loss does not use
            continue
        if task.proximal is not None:
            away = parameter.detach() - task.proximal.anchor[name]
            parameter.grad.add_(away, alpha=task.proximal.mu)
        if task.correction is not None:
            parameter.grad.add_(task.correction[name])

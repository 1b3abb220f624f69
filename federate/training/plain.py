"""The loop to check against the paper: one task after the other, autograd and torch.optim."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...cache.common.device import repeatable_cudnn
from ..models.network import Network
from ..seeding import seed_of
from .settings import TrainingSettings
from .tasks import LocalTask, Trained, copy_parameters


def train(network: Network, tasks: Sequence[LocalTask]) -> list[Trained]:
    """Do each task with `network`, whose parameters are overwritten."""
    # Convolutions, which full models have, must compute the same result each time on a GPU too.
    with repeatable_cudnn():
        return [_train(network, task) for task in tasks]


def _train(network: Network, task: LocalTask) -> Trained:
    """Run a client's local epochs with a new optimizer."""
    settings, device = task.settings, task.samples.rows.device
    network.load_state_dict(task.start)
    network.train()
    optimizer = _optimizer(network, settings)
    total, rows = torch.zeros((), device=device), 0
    batches = task.batches()
    text = task.model.texts(task.text)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        # For dropout, which a full model may have.
        torch.manual_seed(seed_of("dropout", settings.seed, task.round_number, task.client))
        for batch in batches:
            loss = _step(network, optimizer, task, text, batch.to(device))
            total += loss * len(batch)
            rows += len(batch)
    return Trained(
        parameters=copy_parameters(network),
        loss=total.item() / rows if rows else math.nan,
        steps=len(batches),
    )


def _step(
    network: Network,
    optimizer: torch.optim.Optimizer | None,
    task: LocalTask,
    text: Tensor,
    batch: Tensor,
) -> Tensor:
    """Train on one minibatch, given by its rows; return the loss."""
    inputs, labels = task.samples[batch]
    loss = network.loss(inputs, text, labels, task.logit_scale, task.settings.loss)
    if optimizer is not None:
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        _adjust_gradients(network, task)
        optimizer.step()
    return loss.detach()


def _optimizer(network: Network, settings: TrainingSettings) -> torch.optim.Optimizer | None:
    """Make the optimizer; None if there is nothing to train."""
    parameters = list(network.parameters())
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


def _adjust_gradients(network: Network, task: LocalTask) -> None:
    """Add to the gradients what the task's strategy adds."""
    for name, parameter in network.named_parameters():
        if parameter.grad is None:  # a part of a full model that the loss does not use
            continue
        if task.proximal is not None:
            away = parameter.detach() - task.proximal.anchor[name]
            parameter.grad.add_(away, alpha=task.proximal.mu)
        if task.correction is not None:
            parameter.grad.add_(task.correction[name])

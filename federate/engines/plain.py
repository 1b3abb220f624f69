"""The loop to check against the paper: one task after the other, autograd and torch.optim."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from ..losses import LOSSES
from ..settings import Settings
from ..tasks import ClientUpdate, LocalTask, copy_parameters


def train(adapter: nn.Module, tasks: Sequence[LocalTask]) -> list[ClientUpdate]:
    """Do each task with `adapter`, whose parameters are overwritten."""
    return [_train(adapter, task) for task in tasks]


def _train(adapter: nn.Module, task: LocalTask) -> ClientUpdate:
    """Run a client's local epochs, with an optimizer made anew."""
    client, settings, federation = task.client, task.settings, task.federation
    adapter.load_state_dict(task.start)
    optimizer = _optimizer(adapter, settings)
    loss_function = LOSSES[settings.loss]
    features, labels = client.train.features, client.train.labels
    total, rows = torch.zeros((), device=labels.device), 0
    batches = task.batches()
    for batch in batches:
        batch = batch.to(labels.device)
        image, text = adapter(features[batch], federation.text)
        loss = loss_function(image, text, labels[batch], federation.logit_scale)
        if optimizer is not None:
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            _adjust_gradients(adapter, task)
            optimizer.step()
        total += loss.detach() * len(batch)
        rows += len(batch)
    return ClientUpdate(
        client=client.name,
        parameters=copy_parameters(adapter),
        samples=len(client.train),
        loss=total.item() / rows if rows else math.nan,
        steps=len(batches),
    )


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
        assert parameter.grad is not None
        if task.proximal is not None:
            away = parameter.detach() - task.proximal.anchor[name]
            parameter.grad.add_(away, alpha=task.proximal.mu)
        if task.correction is not None:
            parameter.grad.add_(task.correction[name])

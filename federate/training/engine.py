"""Trains many clients' adapters, by the back end that is fastest on their device."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import nn

from ...cache import FedclipError
from . import batched, plain, threads
from .tasks import ClientUpdate, LocalTask, Parameters, Proximal, copy_parameters, draw_batches

__all__ = [
    "AUTO",
    "ClientUpdate",
    "EngineName",
    "LocalTask",
    "Parameters",
    "Proximal",
    "choose_engine",
    "copy_parameters",
    "draw_batches",
    "train_clients",
]

EngineName = Literal["plain", "threads", "batched"]
AUTO = "auto"

_ENGINES: Mapping[EngineName, Callable[[nn.Module, Sequence[LocalTask]], list[ClientUpdate]]] = {
    "plain": plain.train,
    "threads": threads.train,
    "batched": batched.train,
}


def choose_engine(name: str, device: torch.device, *, whole: bool = False) -> EngineName:
    """Turn ``auto`` or a back end's name into a back end that works on `device`.

    On 2 cores `threads` takes half the time of `plain`, as `batched` does within a tenth
    (benchmarks/RESULTS.md), and its bits do not depend on what else is trained. On a GPU a
    step of one task is over before the next is launched, which is what `batched` is for.
    A whole model is for `plain`, as its inputs are decoded batch by batch.

    Args:
        name: As the user gives it.
        device: Where clients train.
        whole: Whether a whole model is trained, in an adapter's place.

    Raises:
        FedclipError: there is no such back end, or not on this device, or not for this model.
    """
    if name == AUTO and whole:
        return "plain"
    if name == AUTO:
        return "threads" if device.type == "cpu" else "batched"
    engine = next((engine for engine in _ENGINES if engine == name), None)
    if engine is None:
        raise FedclipError(f"there is no engine {name!r}; there is {AUTO}, {', '.join(_ENGINES)}")
    if whole and engine != "plain":
        raise FedclipError(f"the engine {engine} is for adapters; for a whole model use plain")
    if engine == "threads" and device.type != "cpu":
        raise FedclipError(f"the engine threads is for the CPU; on {device} use batched, or plain")
    return engine


def train_clients(
    adapter: nn.Module, tasks: Sequence[LocalTask], engine: str = AUTO
) -> list[ClientUpdate]:
    """Do each task, and return the updates in their order.

    All back ends give the same numbers but for rounding; `plain` and `threads` give the
    same bits whatever other tasks there are.

    Args:
        adapter: The adapter's architecture; its own parameters may be overwritten.
        tasks: Of any clients, settings and rounds, of one adapter and device.
        engine: A back end's name, or ``auto``.

    Raises:
        FedclipError: there is no such back end, or not on this device.
    """
    if not tasks:
        return []
    device, whole = tasks[0].client.train.labels.device, tasks[0].federation.whole is not None
    return _ENGINES[choose_engine(engine, device, whole=whole)](adapter, tasks)

"""Trains many clients with the engine that is fastest on their device."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch

from ...cache import FedclipError
from ...cache.common.fields import suggest
from ..models.network import Network
from . import batched, plain, threads
from .tasks import LocalTask, Trained

EngineName = Literal["plain", "threads", "batched"]
AUTO = "auto"

_ENGINES: Mapping[EngineName, Callable[[Network, Sequence[LocalTask]], list[Trained]]] = {
    "plain": plain.train,
    "threads": threads.train,
    "batched": batched.train,
}


def choose_engine(name: str, device: torch.device, network: Network) -> EngineName:
    """Turn ``auto`` or an engine's name into an engine that works on `device`.

    On 2 cores `threads` takes half the time of `plain`, as does `batched` within a tenth
    (benchmarks/RESULTS.md), and its bits do not depend on what else is trained. On a GPU a
    step of one task is over before the next is launched, which is what `batched` is for.

    Args:
        name: What the user chose.
        device: Where clients train.
        network: What is trained; one that is not stackable is for `plain`.

    Raises:
        FedclipError: the engine is unknown, or does not work on this device or with this model.
    """
    if name == AUTO:
        if not network.stackable:
            return "plain"
        return "threads" if device.type == "cpu" else "batched"
    engine = next((engine for engine in _ENGINES if engine == name), None)
    if engine is None:
        raise FedclipError(f"unknown engine {name!r}{suggest(name, [AUTO, *_ENGINES])}")
    if engine != "plain" and not network.stackable:
        raise FedclipError(
            f"--engine {engine}: trains adapters whose state is all trained float32 parameters; "
            "for this one choose plain"
        )
    if engine == "threads" and device.type != "cpu":
        raise FedclipError(
            f"--engine threads: works on the CPU only; on {device} choose batched or plain"
        )
    return engine


def train_clients(
    network: Network, tasks: Sequence[LocalTask], engine: str = AUTO
) -> list[Trained]:
    """Do each task, and return the outcomes in the same order.

    All engines produce the same numbers but for rounding; `plain` and `threads` produce the
    same bits whatever else is trained.

    Args:
        network: The architecture; its own parameters may be overwritten.
        tasks: Of any clients, settings and rounds, of one model and device.
        engine: An engine's name, or ``auto``.

    Raises:
        FedclipError: as `choose_engine`.
    """
    if not tasks:
        return []
    device = tasks[0].samples.rows.device
    return _ENGINES[choose_engine(engine, device, network)](network, tasks)

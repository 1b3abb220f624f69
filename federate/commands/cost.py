"""Stage two's half of `fedclip cost`: what is measured, and how it is shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import typer

from ...cache.common.console import Output
from ...cache.common.fields import option
from ...cache.common.options import DeviceOptions
from ...cache.common.text import counted
from .options import settings_of

if TYPE_CHECKING:
    import torch

    from ..models.base import Model
    from ..settings import Settings


@dataclass(frozen=True)
class CostOptions(DeviceOptions):
    """What is measured."""

    PANEL: ClassVar[str] = "Measurement"

    adapter: str = option(
        "attention", metavar="ADAPTER", help="What is trained; 'fedclip adapters' lists them."
    )
    classes: int = option(65, least=2, most=100_000, help="Number of classes.")
    samples: int = option(
        1000, least=2, most=10_000_000, help="Samples in the local epoch that is timed."
    )
    rounds: int = option(200, least=1, help="Rounds of a training.")
    clients: int = option(3, least=1, help="Clients that train in a round.")

    @property
    def settings(self) -> Settings:
        """The settings of the adapter.

        Raises:
            typer.BadParameter: it has nothing that could be measured.
        """
        settings = settings_of({"adapter": self.adapter, "strategy": "local"})
        if not settings.adapter.sends:
            raise typer.BadParameter(
                f"--adapter {self.adapter}: has nothing to train or send; choose one that does"
            )
        return settings


def print_costs(
    measured: CostOptions,
    full: Model,
    width: int,
    encoding: int,
    device: torch.device,
    output: Output,
) -> None:
    """Measure the adapter and the full model, and print both.

    Args:
        measured: What is measured.
        full: The full model.
        width: Width of the features.
        encoding: Multiply-adds that encoding an image takes.
        device: Where to train.
        output: Where to print.
    """
    from ...cache.common.progress import show_progress
    from ..report.terminal import cost_table
    from ..runs.cost import ClientCost, drawn_cache

    settings, samples = measured.settings, measured.samples
    cache = drawn_cache(width, measured.classes, settings.batch_size)
    models: tuple[Model, ...] = (settings.adapter, full)
    with show_progress() as progress:
        progress("counting", 0, len(models), "models")
        clients = [ClientCost(cache, settings, samples, device, each) for each in models]
        counts = []
        for client, model in zip(clients, models, strict=True):
            counts.append(client.count())
            progress("counting", len(counts), len(models), "models", model.title)
    if counts[0].parameters:
        times = counts[1].parameters / counts[0].parameters
        output.note(f"counted    {counts[1].parameters:,} / {counts[0].parameters:,} = {times:.0f}")
    with show_progress() as progress:
        progress("timing", 0, len(models), "models")
        costs = []
        for client, count, model in zip(clients, counts, models, strict=True):
            costs.append(client.time(count))
            progress("timing", len(costs), len(models), "models", model.title)
    messages = measured.rounds * measured.clients * 2
    adapter_cost, full_cost = costs
    output.table(cost_table(adapter_cost, full_cost, encoding, samples, messages))
    output.note(
        f"training   {counted(measured.rounds, 'round')} of {counted(measured.clients, 'client')}, "
        f"both ways; minibatches of {settings.batch_size}, {measured.classes} classes, timed on "
        f"{device}"
    )

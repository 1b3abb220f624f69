"""Loggers that people look at runs with: TensorBoard."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

from ...cache.common.extras import load_extra
from ..server import Round
from ..simulation import Callback, Run

# Makes what follows one run, given the run's folder.
MakeLogger: TypeAlias = Callable[[Path], Callback]


class TensorBoard(Callback):
    """Writes accuracies and losses as TensorBoard events into the run's folder.

    Args:
        folder: The run's, or that of one target of it.

    Raises:
        FedclipError: tensorboardX is not installed.
    """

    def __init__(self, folder: Path) -> None:
        self._writer_of = load_extra("tensorboard").SummaryWriter
        self._folder = folder

    def on_begin(self, run: Run) -> None:
        """Open the file; rounds that a resumed run repeats replace those written before."""
        self._writer = self._writer_of(str(self._folder), purge_step=run.number + 1)

    def on_round(self, run: Run, current: Round) -> None:
        """Write a round."""
        self._writer.add_scalar("train_loss", current.train_loss, current.number)
        for name, values in _accuracies(current).items():
            for client, value in values.items():
                self._writer.add_scalar(f"{name}/{client}", value, current.number)

    def on_end(self, run: Run, *, interrupted: bool) -> None:
        """Close the file."""
        self._writer.close()


def _accuracies(current: Round) -> dict[str, Mapping[str, float]]:
    parts = {
        "validation": current.validation,
        "test": current.test,
        "personal": current.personal,
    }
    return {name: values for name, values in parts.items() if values}

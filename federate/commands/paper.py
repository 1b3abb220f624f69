"""Stage two's half of `fedclip paper`: the rows of a table, their runs, and the table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, ClassVar

import typer

from ...cache import FedclipError
from ...cache.common.console import FAILED, INTERRUPTED, Output, complain
from ...cache.common.fields import option, suggest
from ...cache.common.options import flag, given
from ...cache.common.text import counted
from ..report.paper import METHODS, PUBLISHED, Method, choose_methods, paper_table
from .baseline import full_settings
from .options import settings_of

if TYPE_CHECKING:
    from ..runs.experiment import Experiment
    from ..runs.results import RunResult
    from ..settings import Settings


@dataclass(frozen=True)
class TableOptions:
    """Which rows of a paper's table to fill, and how."""

    PANEL: ClassVar[str] = "Table"

    methods: str | None = option(
        None,
        metavar="NAME,NAME",
        shown="all",
        help="Rows: alexnet-fedavg, alexnet-fedprox, clip-fedavg, clip-fedprox, zero-shot, "
        "fedclip.",
    )
    seeds: int = option(3, least=1, help="Number of seeds, starting at --seed.")
    seed: int = option(0, least=0, help="First seed.")
    rounds: int = option(200, least=1, help="Rounds of federation.")
    mu: float | None = option(None, least=0, help="FedProx's pull to the server's parameters.")

    def settings(self, row: str, seed: int, template: str) -> Settings:
        """Return the settings of a row's run."""
        method = METHODS[row]
        values: dict[str, Any] = {
            "rounds": self.rounds if row != "zero-shot" else 1,
            "seed": seed,
            "strategy": method.strategy,
        }
        if method.strategy == "fedprox" and self.mu is not None:
            values["mu"] = self.mu
        if method.backbone is not None:
            return full_settings(method.backbone, template, values)
        return settings_of({**values, "adapter": method.adapter, "prompts": (template,)})


def choose_rows(context: typer.Context, dataset: str, table: TableOptions) -> dict[str, Method]:
    """Return the methods of the table's rows that were chosen.

    Raises:
        FedclipError: the paper has no such table, or a method is unknown.
        typer.BadParameter: an option has no effect on them.
    """
    if dataset not in PUBLISHED:
        raise FedclipError(f"the paper has no table {dataset!r}{suggest(dataset, PUBLISHED)}")
    rows = {row: METHODS[row] for row in choose_methods(table.methods)}
    useful = {
        "mu": any(method.strategy == "fedprox" for method in rows.values()),
        "alexnet_weights": any(method.backbone == "alexnet" for method in rows.values()),
    }
    for name in sorted(given(context) & {name for name, used in useful.items() if not used}):
        raise typer.BadParameter(f"{flag(name)}: has no effect on the methods that are chosen")
    return rows


def fill_table(
    dataset: str,
    rows: Sequence[str],
    table: TableOptions,
    template: str,
    weights: str,
    make_experiment: Callable[[str, Settings], Experiment],
    output: Output,
    save_every: int | None,
) -> None:
    """Run the rows' methods with every seed, and print the table.

    Args:
        dataset: Names the table.
        rows: Its rows.
        table: The seeds, and settings.
        template: Template of the class prompts.
        weights: What AlexNet starts from.
        make_experiment: Makes the run of a row with its settings.
        output: Where to print.
        save_every: Rounds between two saves of a run's state; None for as often as is cheap.

    Raises:
        typer.Exit: it was interrupted, or a run diverged.
    """
    from ...cache.common.progress import show_progress
    from ..runs.runner import run_experiment

    results: dict[str, list[list[RunResult]]] = {row: [] for row in rows}
    for row, seed in product(rows, range(table.seed, table.seed + table.seeds)):
        experiment = make_experiment(row, table.settings(row, seed, template))
        output.note(f"run        {METHODS[row].name}, seed {seed}: {experiment.folder}")
        with show_progress() as progress:
            outcome = run_experiment(experiment, progress, resume=True, save_every=save_every)
        if outcome.interrupted:
            raise typer.Exit(INTERRUPTED)
        results[row].append(outcome.results)
    output.table(paper_table(dataset, results, f"{weights} weights"))
    clients = experiment.clients
    encoder = clients[0].encoder
    images = sum(len(client.labels) for client in clients)
    output.note(
        f"ours       {encoder['model']} {encoder['pretrained']}, "
        f"{counted(table.rounds, 'round')}, {counted(table.seeds, 'seed')} from {table.seed} on, "
        f"{counted(images, 'image')}; the paper's are ViT-B/32's of 200 rounds"
    )
    done = [each for runs in results.values() for targets in runs for each in targets]
    if any(each.status == "failed" for each in done):
        complain("training diverged (NaN or Inf) in some of the runs")
        raise typer.Exit(FAILED)

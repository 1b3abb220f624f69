"""The commands `fedclip federate`, `adapters` and `strategies`."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import typer

from ...cache.common.console import FAILED, INTERRUPTED, Output, complain
from ...cache.common.fields import option, options_of
from ...cache.common.options import CacheOptions, FormatOptions, with_options
from ...cache.common.tables import Column, Table, thousands
from ..flower import ENGINE as FLOWER
from ..runs.find import choose_targets
from ..strategies import STRATEGIES
from .flower import check_flower
from .options import (
    DataOptions,
    EngineOptions,
    Given,
    KeepOptions,
    RunOptions,
    cache_line,
    load,
    resumed,
    settings_of,
)

if TYPE_CHECKING:
    from ..runs.experiment import Experiment
    from ..runs.results import RunResult
    from ..runs.runner import Outcome


@with_options(
    examples=[
        "fedclip federate --rounds 50",
        "fedclip federate --preset tuned --target sketch --seed 1",
        "fedclip federate --strategy fedprox --mu 0.01 --clients 5 --alpha 0.3",
    ]
)
def federate(
    context: typer.Context,
    data: DataOptions,
    chosen: Given,
    compute: EngineOptions,
    run: RunOptions,
    kept: KeepOptions,
    caches: CacheOptions,
    form: FormatOptions,
) -> None:
    """Train and federate an adapter over a cache's features."""
    if run.resume is not None:
        experiment = resumed(context, run.resume, run.runs_dir, caches.cache_dir)
    else:
        settings = settings_of(chosen)
        folder, clients = load(data.cache, caches.cache_dir)
        targets = choose_targets(clients, data.target)

        from ...cache.common.device import resolve_device
        from ..runs.experiment import Experiment

        # Flower's simulation computes on the CPU.
        cpu = compute.engine == FLOWER and compute.device == "auto"
        experiment = Experiment(
            cache=folder,
            clients=clients,
            settings=settings,
            model=settings.model,
            preset=str(chosen.get("preset", "paper")),
            targets=targets,
            device=resolve_device("cpu" if cpu else compute.device),
            runs_dir=run.runs_dir,
            name=run.name,
            overwrite=run.overwrite,
            engine=compute.engine,
            keep=kept.keep,
        ).checked()

    latest = data.cache is None and run.resume is None
    output = Output(form.format)
    output.note(cache_line(experiment.cache.name, caches.cache_dir, latest=latest))
    experiment = replace(experiment, loggers=run.loggers)
    carry_out(experiment, output, resume=run.resume is not None, save_every=run.save_every)


def carry_out(
    experiment: Experiment, output: Output, *, resume: bool, save_every: int | None
) -> None:
    """Run an experiment, printing its settings before and its results after.

    Raises:
        typer.Exit: it was interrupted, or a run diverged.
    """
    from ...cache.common.progress import show_progress
    from ..report.terminal import describe_settings
    from ..runs.disk import disk_of
    from ..runs.runner import run_experiment

    run: Callable[..., Outcome] = partial(run_experiment, save_every=save_every)
    if experiment.engine == FLOWER:
        check_flower()
        from ..flower.simulated import run_with_flower

        run = run_with_flower
    for line in (*describe_settings(experiment), disk_of(experiment).describe()):
        if line:
            output.note(line)
    with show_progress() as progress:
        outcome = run(experiment, progress, resume=resume)
    if outcome.results:
        _print_results(outcome.results, experiment, output)
    if outcome.interrupted:
        command = "federate" if experiment.model.facts is None else "baseline"
        output.note(
            f"resume     fedclip {command} --resume {shlex.quote(str(experiment.folder))}",
            whole=True,
        )
        raise typer.Exit(INTERRUPTED)
    if any(result.status == "failed" for result in outcome.results):
        complain("training diverged (NaN or Inf); try a lower --lr")
        raise typer.Exit(FAILED)


def _print_results(results: Sequence[RunResult], experiment: Experiment, output: Output) -> None:
    from ..report.terminal import cost_line, results_table

    output.table(results_table(results, experiment))
    over_features = experiment.model.facts is None
    encoder = experiment.clients[0].encoder.get("parameters") if over_features else None
    output.note(f"cost       {cost_line(results[0], encoder)}")
    output.note(f"run        {experiment.folder}")


@dataclass(frozen=True)
class SizeOptions:
    """What adapters are counted for."""

    embed_dim: int = option(512, least=1, most=16384, help="Width of the features.")
    classes: int = option(65, least=1, most=100_000, help="Number of classes.")


@with_options(examples=["fedclip adapters", "fedclip adapters --embed-dim 768 --classes 10"])
def adapters(form: FormatOptions, sizes: SizeOptions) -> None:
    """List the adapters, their trainable parameters and options."""
    from ..models.adapters import ADAPTERS, describe_adapters

    classes_by_name = ADAPTERS.classes()
    rows = [
        (name, what, size, _options(classes_by_name[name]))
        for name, size, what in describe_adapters(sizes.embed_dim, sizes.classes)
    ]
    columns = [
        Column("name"),
        Column("what", wraps=True),
        Column("parameters", show=thousands),
        _OPTIONS,
    ]
    Output(form.format).table(Table(columns, rows))


@with_options(examples=["fedclip strategies"])
def strategies(form: FormatOptions) -> None:
    """List the strategies and their options, with defaults and sources."""
    rows = [
        (name, inspect.cleandoc(cls.__doc__ or "").split("\n")[0], _options(cls))
        for name, cls in STRATEGIES.classes().items()
    ]
    columns = [Column("name"), Column("what", wraps=True), _OPTIONS]
    Output(form.format).table(Table(columns, rows))


_OPTIONS = Column("options", show="; ".join, wraps=True)


def _options(cls: type) -> list[str]:
    """Describe each of a method's hyper-parameters: flag, default and source."""
    return [
        f"{each.flag} {each.shown_default}" + (f" ({each.source})" if each.source else "")
        for each in options_of(cls).values()
    ]

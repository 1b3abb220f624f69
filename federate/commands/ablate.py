"""The command `fedclip ablate`."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from ...cache.common.console import FAILED, INTERRUPTED, complain, show_table
from ...cache.common.options import given, options_but, with_options_of
from ..ablations.grids import NAMES as GRIDS
from .federate import federate, load, settings_of

# An ablation asks before it makes more runs than this.
MANY_RUNS = 1000

# Options of federate that do not shape a run, so that an ablation does not vary them.
SHARED_BY_RUNS = {"device", "engine", "save_every", "runs_dir", "cache_dir"}


@with_options_of((federate, options_but(federate, ("context", "name", "overwrite", "resume"))))
def ablate(
    context: typer.Context,
    grid: Annotated[
        str | None,
        typer.Argument(
            metavar="GRID",
            help="Lists of values for options, by their names: a TOML file (docs/formats.md has "
            f"an example), or one that comes with the package: {', '.join(GRIDS)}.",
            show_default=False,
        ),
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE,VALUE",
            help="Vary one of the options below over these values; may be given several times.",
            show_default=False,
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(min=1, help="So many seeds, from --seed on.", show_default=False),
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(
            "--csv",
            help="Where a line a run goes. By default beside the runs, named by the data set and "
            "a hash of them.",
            show_default=False,
        ),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help=f"Do not ask before more than {MANY_RUNS} runs.")
    ] = False,
    **options: Any,
) -> None:
    """Run federate over every combination of values, and compare.

    The runs are those of federate, side by side: a finished one is not repeated, and a killed
    ablation goes on where it was. An option below holds for all runs.
    """
    from ..ablations.grid import make_grid, read_toml, split_set
    from ..ablations.grids import grid_file

    can_vary, said = set(options) - SHARED_BY_RUNS, given(context)
    sets: list[tuple[str, Sequence[Any]]] = [split_set(text) for text in vary or ()]
    if seeds is not None:
        sets.append(("seeds", [seeds]))
    combinations = make_grid(
        read_toml(grid_file(grid)) if grid else {},
        sets,
        {name: value for name, value in options.items() if name in said & can_vary},
        can_vary,
        partial(_parse, context),
    )
    _confirm(combinations.count, yes)
    if table is not None:
        _check_table(table)

    from ...cache.common.device import resolve_device
    from ...cache.common.progress import open_report
    from ..ablations.runner import Entry, failures, own_name, run_ablation, summarise, write_csv
    from ..report.terminal import ablation_table
    from ..runs.experiment import Experiment, choose_targets

    device = resolve_device(options["device"])
    cached = functools.cache(lambda name: load(name, options["cache_dir"]))
    entries: dict[Path, Entry] = {}
    for values in combinations:
        chosen = {**options, **combinations.fixed, **values}
        folder, loaded = cached(chosen["cache"])
        experiment = Experiment(
            cache=folder,
            clients=loaded,
            settings=settings_of(**{name: chosen[name] for name in can_vary - {"cache", "target"}}),
            preset=chosen["preset"],
            targets=choose_targets(loaded, chosen["target"]),
            device=device,
            runs_dir=options["runs_dir"],
            engine=options["engine"],
        )
        entries.setdefault(experiment.folder, Entry(values, experiment))
    runs = list(entries.values())
    caches = ", ".join(dict.fromkeys(entry.experiment.cache.name for entry in runs))
    latest = "cache" not in {*combinations.names, *combinations.fixed}
    print(f"cache      {caches}{' (the one extracted last)' if latest else ''}")
    print(f"ablation   {len(runs)} runs: {combinations.describe()}", flush=True)
    if len(runs) < combinations.count:
        print(
            f"           ({combinations.count} combinations, some of which come to the same run)",
            flush=True,
        )
    table = table or options["runs_dir"] / f"{own_name(runs)}.csv"
    table.parent.mkdir(parents=True, exist_ok=True)
    with open_report() as report:
        done = run_ablation(runs, report, options["save_every"])
    show_table(ablation_table(summarise(runs, combinations.names)))
    write_csv(table, runs, combinations.names)
    print("runs      ", table)
    for line in failures(runs):
        complain(line)
    if not done:
        raise typer.Exit(INTERRUPTED)
    if any(entry.status == "failed" for entry in runs):
        raise typer.Exit(FAILED)


def _confirm(runs: int, yes: bool) -> None:
    """Ask before a great many runs; where nobody can answer, refuse."""
    from ...cache import FedclipError

    if runs <= MANY_RUNS or yes:
        return
    if not sys.stdin.isatty():
        raise FedclipError(f"this grid makes {runs:,} runs; give --yes to go on")
    typer.confirm(f"This grid makes {runs:,} runs. Go on?", abort=True)


def _check_table(path: Path) -> None:
    """Refuse to write a table where there is something else."""
    from ..ablations.runner import is_table

    if not path.name or path.is_dir():
        raise typer.BadParameter(f"--csv {path}: is a folder; give a file")
    if path.exists() and not is_table(path):
        raise typer.BadParameter(
            f"--csv {path}: is no table of runs, so it is not overwritten; give another"
        )


def _parse(context: typer.Context, name: str, value: Any) -> Any:
    """Parse a value as the option of that name does; a list is one given several times."""
    option: Any = next(each for each in context.command.params if each.name == name)
    listed = value if isinstance(value, list) else [value]
    text = [str(each) for each in listed]
    return option.process_value(context, text if option.multiple else " ".join(text))

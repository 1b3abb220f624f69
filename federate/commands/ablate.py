"""The command `fedclip ablate`."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer

from ...cache.common.console import FAILED, INTERRUPTED, Output, complain
from ...cache.common.fields import Option, option, options_of
from ...cache.common.options import (
    Also,
    CacheOptions,
    Chosen,
    FormatOptions,
    declared,
    with_options,
)
from ...cache.common.text import counted
from ..ablations.grids import NAMES as GRIDS
from ..runs.find import choose_targets
from .options import (
    ComputeOptions,
    DataOptions,
    KeepOptions,
    PresetOptions,
    SaveOptions,
    all_settings,
    cache_line,
    load,
    settings_of,
)

# An ablation asks before it makes more runs than this.
MANY_RUNS = 1000


@dataclass(frozen=True)
class GridOptions:
    """What varies, and where the table goes."""

    PANEL: ClassVar[str] = "Ablation"

    vary: tuple[str, ...] = option(
        (),
        flags=("--set",),
        metavar="NAME=VALUE,VALUE",
        help="Option to vary and its values; may be repeated.",
    )
    seeds: int | None = option(None, least=1, help="Number of seeds, starting at --seed.")
    table: Path | None = option(
        None,
        flags=("--csv",),
        shown="beside the runs, named by the dataset and a hash of the runs",
        help="CSV file with one row per run.",
    )
    baseline: str = option(
        "best",
        metavar="best|zero-shot|NAME=VALUE",
        help="What each setting is compared with, image by image: the best one, its own zero-shot "
        "predictions, or the one with this value and otherwise the same.",
    )
    figure: str = option(
        "mean",
        choices=("generalization", "personalization", "mean", "pooled"),
        help="Accuracy that the settings are sorted and compared by.",
    )
    yes: bool = option(False, help=f"Do not ask before more than {MANY_RUNS} runs.")


def _settings(arguments: Sequence[str]) -> list[Option]:
    """List all settings, also of methods that a grid's file names."""
    from ..ablations.grid import methods_in, read_toml

    named = [*arguments]
    for word in arguments:
        if word.endswith(".toml") and Path(word).is_file():
            named += methods_in(read_toml(Path(word)))
    return all_settings(named)


def _complete_grid(incomplete: str) -> list[str]:
    names = [*GRIDS, *map(str, sorted(Path().glob("*.toml")))]
    return [name for name in names if name.startswith(incomplete)]


@with_options(
    examples=[
        "fedclip ablate --set lr=5e-5,1e-4,5e-4 --seeds 3",
        "fedclip ablate strategies --preset tuned",
        "fedclip ablate grid.toml --rounds 30",
    ]
)
def ablate(
    context: typer.Context,
    data: DataOptions,
    chosen: Annotated[Chosen[PresetOptions], Also(_settings)],
    compute: ComputeOptions,
    grid_options: GridOptions,
    save: SaveOptions,
    kept: KeepOptions,
    caches: CacheOptions,
    form: FormatOptions,
    grid: Annotated[
        str | None,
        typer.Argument(
            metavar="GRID",
            help="TOML file with lists of values for options, by their names (docs/formats.md has "
            f"an example), or a grid of the package: {', '.join(GRIDS)}.",
            show_default=False,
            autocompletion=_complete_grid,
        ),
    ] = None,
) -> None:
    """Run federate over every combination of values, and compare.

    The runs are those of federate, side by side. A finished run is not repeated, and a killed
    ablation is resumed. The options below apply to all runs; each of them can be varied.
    """
    from ..ablations.grid import make_grid, read_baseline, read_toml, split_set
    from ..ablations.grids import grid_file

    options = _varied(declared(context))
    sets: list[tuple[str, Sequence[Any]]] = [split_set(text) for text in grid_options.vary]
    if grid_options.seeds is not None:
        sets.append(("seeds", [grid_options.seeds]))
    own = {"cache": data.cache, "target": data.target}
    plain = {**chosen, **{name: value for name, value in own.items() if value is not None}}

    def parse(name: str, value: Any) -> Any:
        return _parse(options[name], value)

    combinations = make_grid(
        read_toml(grid_file(grid)) if grid else {},
        sets,
        {label: plain[each.name] for label, each in options.items() if each.name in plain},
        options,
        parse,
    )
    if not combinations.axes:
        raise typer.BadParameter(
            "nothing varies; pass --set NAME=VALUE,VALUE, --seeds N or a GRID, or use federate"
        )
    _confirm(combinations.count, yes=grid_options.yes)
    if grid_options.table is not None:
        _check_table(grid_options.table, save.runs_dir)
    baseline = read_baseline(grid_options.baseline, combinations.values, parse)

    from ...cache import FedclipError
    from ...cache.common.device import resolve_device
    from ...cache.common.files import check_writable
    from ...cache.common.progress import show_progress
    from ..ablations.differences import differences
    from ..ablations.existing import describe_existing
    from ..ablations.runner import (
        Entry,
        describe_left_out,
        failures,
        own_name,
        run_ablation,
        write_csv,
    )
    from ..ablations.summary import summarize
    from ..report.terminal import ablation_table
    from ..runs.disk import Disk, disk_of
    from ..runs.experiment import Experiment
    from ..runs.folder import RUNS_DIR

    device = resolve_device(compute.device)
    cached = functools.cache(lambda name: load(name, caches.cache_dir))
    entries: dict[Path, Entry] = {}
    for values in combinations:
        every = {**combinations.fixed, **values}
        settings_values = {options[label].name: value for label, value in every.items()}
        folder, loaded = cached(settings_values.pop("cache", None))
        target = settings_values.pop("target", None)
        settings = settings_of(settings_values)
        experiment = Experiment(
            cache=folder,
            clients=loaded,
            settings=settings,
            model=settings.model,
            preset=str(settings_values.get("preset", "paper")),
            targets=choose_targets(loaded, target),
            device=device,
            runs_dir=save.runs_dir,
            engine=compute.engine,
            keep=kept.keep,
            loggers=save.loggers,
        ).checked()
        entries.setdefault(experiment.folder, Entry(values, experiment))
    runs = list(entries.values())
    if grid_options.figure == "generalization" and runs[0].experiment.targets == (None,):
        raise FedclipError(
            "--figure generalization: no domain is left out; choose --target, or another figure"
        )
    names = ", ".join(dict.fromkeys(entry.experiment.cache.name for entry in runs))
    latest = "cache" not in {*combinations.names, *combinations.fixed}
    output = Output(form.format)
    output.note(cache_line(names, caches.cache_dir, latest=latest))
    output.note(f"ablation   {counted(len(runs), 'run')}: {combinations.describe()}")
    if len(runs) < combinations.count:
        output.note(
            f"           ({combinations.count} combinations, some of which are the same run)"
        )
    varied = {options[label].name for label in combinations.names}
    disk = Disk(sum(disk_of(entry.experiment).left for entry in runs), 0)
    for line in (describe_existing(runs, varied, save.runs_dir), disk.describe()):
        if line:
            output.note(line)
    table = grid_options.table or save.runs_dir / f"{own_name(runs)}.csv"
    place = f"--csv {table}" if grid_options.table else f"{RUNS_DIR} {save.runs_dir}"
    check_writable(table.parent, place)
    table.parent.mkdir(parents=True, exist_ok=True)
    with show_progress() as progress:
        done = run_ablation(runs, progress, save.save_every)
    write_csv(table, runs, combinations.names)
    summaries = summarize(runs, combinations.names, grid_options.figure)
    compared = differences(summaries, baseline, grid_options.figure)
    output.table(ablation_table(summaries, compared, baseline.name))
    output.note(f"runs       {table}")
    if left_out := describe_left_out(runs):
        output.note(left_out)
    for line in failures(runs):
        complain(line)
    if not done:
        raise typer.Exit(INTERRUPTED)
    if any(entry.status == "failed" for entry in runs):
        raise typer.Exit(FAILED)


def _varied(options: dict[str, Option]) -> dict[str, Option]:
    """List the options that shape a run by the names that a grid has for them."""
    others = {
        name
        for group in (
            *(ComputeOptions, GridOptions, SaveOptions),
            *(KeepOptions, CacheOptions, FormatOptions),
        )
        for name in options_of(group)
    }
    varied = {name: each for name, each in options.items() if name not in others}
    return {
        each.flags[0].removeprefix("--").replace("-", "_") if len(each.flags) == 1 else name: each
        for name, each in varied.items()
    }


def _confirm(runs: int, *, yes: bool) -> None:
    """Ask before very many runs; if nobody can answer, refuse."""
    from ...cache import FedclipError

    if runs <= MANY_RUNS or yes:
        return
    if not sys.stdin.isatty():
        raise FedclipError(f"this grid has {runs:,} runs; pass --yes to start them")
    typer.confirm(f"This grid has {runs:,} runs. Start them?", abort=True)


def _check_table(path: Path, runs_dir: Path) -> None:
    """Refuse to overwrite anything but a table of runs."""
    from ..ablations.runner import is_table

    if not path.name or path.is_dir() or path.resolve() == runs_dir.resolve():
        raise typer.BadParameter(f"--csv {path}: is a folder; choose a file")
    if path.exists() and not is_table(path):
        raise typer.BadParameter(
            f"--csv {path}: is not a table of runs, so it is not overwritten; choose another"
        )


def _parse(option: Option, value: Any) -> Any:
    """Parse a value as the option does; a list is one given several times."""
    listed = [str(each) for each in (value if isinstance(value, list) else [value])]
    return option.read(listed if option.multiple else " ".join(listed))

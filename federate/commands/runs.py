"""The commands that look at runs: `fedclip ls`, `show`, `rm`, `compare` and `report`."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from ...cache.common.console import Output
from ...cache.common.extras import load_extra
from ...cache.common.fields import option
from ...cache.common.options import CacheOptions, FormatOptions, given, with_options
from .options import RunsDir

if TYPE_CHECKING:
    from ..runs.catalog import RecordedRun
    from ..runs.find import Fetch

SORTS = ("started", "name", "dataset", "encoder", "adapter", "strategy", "seed", "accuracy", "size")


def complete_run(ctx: typer.Context, incomplete: str) -> list[str]:
    """List the runs whose names start with `incomplete`, for shell completion."""
    from ..runs.catalog import find_runs

    runs_dir = Path(ctx.params.get("runs_dir") or RunsDir().runs_dir)
    return [run.name for run in find_runs(runs_dir) if run.name.startswith(incomplete)]


def _argument(metavar: str, text: str) -> Any:
    return typer.Argument(metavar=metavar, help=text, autocompletion=complete_run)


RunName = Annotated[str, _argument("RUN", "A run's name in 'fedclip ls', or its folder.")]
AnyRunName = Annotated[
    str,
    _argument(
        "RUN", "A run's name in 'fedclip ls', its folder, or hf:OWNER/NAME on the Hugging Face hub."
    ),
]


def _fetch(context: typer.Context) -> Fetch | None:
    """Return what downloads a run from the hub, which the command line brings."""
    fetch: Fetch | None = context.obj
    return fetch


@dataclass(frozen=True)
class ListOptions:
    """Which runs are listed, and in which order."""

    PANEL: ClassVar[str] = "List"

    sort: str = option(
        "started",
        choices=SORTS,
        help="What to sort by: the latest, most accurate or largest first, else in ascending "
        "order.",
    )
    filter: tuple[str, ...] = option(
        (),
        metavar="NAME=VALUE",
        help="List runs with this setting, dataset, encoder, target or status; may be repeated.",
    )


@with_options(
    examples=[
        "fedclip ls",
        "fedclip ls --filter adapter=linear --filter lr=3e-4 --sort accuracy",
    ]
)
def ls(shown: ListOptions, runs: RunsDir, form: FormatOptions) -> None:
    """List the runs."""
    from ..report.listing import runs_table
    from ..runs.catalog import filtered, find_runs

    output = Output(form.format)
    with _without_collection():
        every = find_runs(runs.runs_dir)
        found = filtered(every, shown.filter) if every else []
        if not found:
            with_them = f" with {' and '.join(shown.filter)}" if every else ""
            output.note(f"no runs{with_them} in {runs.runs_dir}")
        if found or form.format != "table":
            output.table(runs_table(sorted(found, key=_order(shown.sort))))


@contextmanager
def _without_collection() -> Iterator[None]:
    """Keep Python from looking for garbage again and again among thousands of runs that stay.

    That would take a fifth of the time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _order(sort: str) -> Callable[[RecordedRun], Any]:
    if sort == "started":
        return lambda run: (-run.started, run.name)
    if sort == "accuracy":
        return lambda run: (-(run.figure("mean")[1] or -1), run.name)
    if sort == "size":
        return lambda run: (-run.bytes, run.name)
    if sort == "seed":
        return lambda run: (run.seed, run.name)
    return lambda run: (str(run.facts.get(sort, "")), run.name)


@with_options(examples=["fedclip show demo-0a1b2c3d-seed0"])
def show(context: typer.Context, run: AnyRunName, runs: RunsDir) -> None:
    """Show a run: its settings, its figures by client, and which classes gained and lost."""
    from ...cache import FedclipError
    from ..report.listing import classes_table, facts_table, figures_table
    from ..runs.catalog import find_recorded

    output = Output("table")
    for recorded in find_recorded(runs.runs_dir, run, _fetch(context)):
        output.table(facts_table(recorded))
        if recorded.results:
            output.note("")
            output.table(figures_table(recorded.results))
            try:
                classes = classes_table(recorded)
            except FedclipError as error:
                output.note(f"classes    {error}")
            else:
                output.note("")
                output.table(classes)


@with_options(examples=["fedclip rm demo-0a1b2c3d-seed0", "fedclip rm old-run --yes"])
def rm(
    run: RunName,
    runs: RunsDir,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete a run."""
    from rich.filesize import decimal

    from ...cache import FedclipError
    from ...cache.common.text import printable
    from ..runs.catalog import find_recorded, remove_run

    found = find_recorded(runs.runs_dir, run)
    if len(found) > 1 or found[0].name != Path(run).name:
        names = ", ".join(each.name for each in found)
        raise FedclipError(f"run {run!r}: is not a run's whole name; name one of {names}")
    (recorded,) = found
    size, shown = decimal(recorded.bytes), printable(str(recorded.path))
    if not yes:
        if not sys.stdin.isatty():
            raise FedclipError(f"{recorded.path}: pass --yes to delete it ({size})")
        typer.confirm(f"Delete {shown} ({printable(recorded.status)}, {size})?", abort=True)
    remove_run(recorded, runs.runs_dir)
    print(f"deleted    {shown} ({size})")


@with_options(
    examples=[
        "fedclip compare demo-0a1b2c3d-seed0 demo-4e5f6a7b-seed0",
        "fedclip compare demo-0a1b2c3d demo-4e5f6a7b  # all their seeds",
        "fedclip compare demo-0a1b2c3d  # with its own zero-shot",
    ]
)
def compare(
    context: typer.Context,
    names: Annotated[
        list[str],
        _argument(
            "RUN...",
            "Runs by name or folder; a name without -seed0 stands for all seeds. Each is compared "
            "with the first one, a single one with zero-shot.",
        ),
    ],
    runs: RunsDir,
    form: FormatOptions,
) -> None:
    """Compare runs image by image: the difference, its 95 % interval, and who changes side.

    The runs are paired by seed and target, and their predictions by image. Runs of one seed each
    are paired whatever their seeds are.
    """
    from ...cache import FedclipError
    from ..report.compare import arm_of, comparison_table
    from ..report.compare import compare as compare_arms
    from ..runs.catalog import find_recorded
    from ..runs.predictions import ADAPTED, ZERO_SHOT

    if len({*names}) < len(names):
        raise FedclipError(f"{max(names, key=names.count)}: is named twice; name different runs")
    found = [find_recorded(runs.runs_dir, name, _fetch(context)) for name in names]
    arms = [arm_of(name, each, ADAPTED) for name, each in zip(names, found, strict=True)]
    if len(arms) == 1:
        arms.insert(0, arm_of("zero-shot", found[0], ZERO_SHOT))
    comparisons = [compare_arms(arms[0], arm) for arm in arms[1:]]
    Output(form.format).table(comparison_table(comparisons))


@dataclass(frozen=True)
class ReportOptions:
    """Where a report goes."""

    PANEL: ClassVar[str] = "Report"

    out: Path = option(Path("report.html"), help="The page, one HTML file.")
    figures: Path | None = option(
        None, metavar="FOLDER", help="Write the charts as SVG and PDF files there, and no page."
    )
    open: bool = option(False, help="Open the page in a browser.")


@with_options(
    examples=[
        "fedclip report --open",
        "fedclip report demo-0a1b2c3d-seed0 --out demo.html",
        "fedclip report runs/demo-5f72a6d5-ablation.csv --figures figures",
    ]
)
def report(
    context: typer.Context,
    page: ReportOptions,
    runs: RunsDir,
    caches: CacheOptions,
    names: Annotated[
        list[str] | None,
        _argument(
            "[RUN...|ABLATION]",
            "Runs by name, folder or hf:OWNER/NAME, where a name without -seed0 stands for all "
            "seeds, or the CSV file of an ablation; by default all runs.",
        ),
    ] = None,
) -> None:
    """Show runs as a page: what came out, how sure that is, and where it comes from.

    The page is one file that needs no network. It needs the extra report.
    """
    from ...cache.common.text import counted
    from ..report.collect import collect
    from ..report.page import write_figures, write_page

    load_extra("report")
    collection = collect(runs.runs_dir, names or [], _fetch(context))
    cache_dir = caches.cache_dir if "cache_dir" in given(context) else None
    if page.figures is not None:
        for path in write_figures(page.figures, collection, cache_dir):
            print(f"figure     {path}")
    else:
        if page.out.is_dir():
            raise typer.BadParameter(f"--out {page.out}: is a folder; choose a file")
        write_page(page.out, collection, cache_dir)
        print(f"report     {page.out}")
    if not names:
        count = counted(len(collection.runs), "run")
        print(f"runs       {count}, all in {runs.runs_dir}; name some to report on these alone")
    if page.open and page.figures is None:
        typer.launch(page.out.resolve().as_uri())

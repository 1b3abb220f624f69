"""The commands that look at runs: `fedclip ls`, `show`, `rm` and `compare`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from ...cache.common.console import print_table
from ...cache.common.fields import option, show_value, suggest
from ...cache.common.options import with_options
from .options import RunsDir

if TYPE_CHECKING:
    from ..report.compare import Comparison, Line
    from ..runs.catalog import RecordedRun

# A comparison and a run with more clients, or classes, than this is shown without them.
MANY = 20

SORTS = ("started", "name", "dataset", "encoder", "adapter", "strategy", "seed", "result", "size")


def complete_run(ctx: typer.Context, incomplete: str) -> list[str]:
    """List the runs whose names start with `incomplete`, for shell completion."""
    from ..runs.catalog import find_runs

    runs_dir = Path(ctx.params.get("runs_dir") or RunsDir().runs_dir)
    return [run.name for run in find_runs(runs_dir) if run.name.startswith(incomplete)]


def _argument(metavar: str, text: str) -> Any:
    return typer.Argument(metavar=metavar, help=text, autocompletion=complete_run)


RunName = Annotated[str, _argument("RUN", "A run's name in 'fedclip ls', or its folder.")]


@dataclass(frozen=True)
class ListOptions:
    """Which runs are listed, and in which order."""

    PANEL: ClassVar[str] = "List"

    sort: str = option(
        "started",
        choices=SORTS,
        help="What to sort by: the latest, or the best result, first; else in ascending order.",
    )
    filter: tuple[str, ...] = option(
        (),
        metavar="NAME=VALUE",
        help="List runs with this setting, dataset, encoder, target or status; may be repeated.",
    )


@with_options(
    examples=[
        "fedclip ls",
        "fedclip ls --filter adapter=linear --filter lr=3e-4 --sort result",
    ]
)
def ls(shown: ListOptions, runs: RunsDir) -> None:
    """List the runs."""
    from ..runs.catalog import find_runs

    every = find_runs(runs.runs_dir)
    if not every:
        print(f"no runs in {runs.runs_dir}")
        return
    found = [run for run in every if all(matches(run, each, every) for each in shown.filter)]
    if not found:
        print(f"none of the {len(every)} runs in {runs.runs_dir} has {' and '.join(shown.filter)}")
        return
    headings = (
        *("started", "name", "dataset", "encoder", "adapter", "strategy", "options", "target"),
        *("seed", "accuracy in %", "status", "size"),
    )
    rows = [_row(run) for run in sorted(found, key=_order(shown.sort))]
    print_table(headings, rows, words={*headings[1:8], "status"})


def _row(run: RecordedRun) -> tuple[object, ...]:
    from rich.filesize import decimal

    changed = ", ".join(f"{name}={show_value(value)}" for name, value in run.changed.items())
    preset = str(run.config.get("preset", "paper"))
    return (
        f"{datetime.fromtimestamp(run.started):%Y-%m-%d %H:%M}",
        run.name,
        run.dataset,
        run.encoder,
        run.method,
        run.settings.get("strategy", ""),
        f"{preset}: {changed}" if changed else preset,
        run.target,
        run.seed,
        _pair(*(run.result.figure("mean") if run.result else (None, None))),
        run.status,
        decimal(run.bytes),
    )


def _order(sort: str) -> Callable[[RecordedRun], Any]:
    if sort == "started":
        return lambda run: (-run.started, run.name)
    if sort == "result":
        return lambda run: (-(run.result.mean or 0) if run.result else 1, run.name)
    if sort == "size":
        return lambda run: (-run.bytes, run.name)
    return lambda run: (str(run.facts.get(sort, "")), run.name)


def matches(run: RecordedRun, condition: str, every: Sequence[RecordedRun]) -> bool:
    """Return whether a run has what ``NAME=VALUE`` asks for.

    Raises:
        FedclipError: none of `every` run has such a setting.
    """
    from ...cache import FedclipError

    name, equals, value = condition.partition("=")
    name = name.strip().replace("-", "_")
    if not equals:
        raise FedclipError(f"--filter {condition!r}: must be NAME=VALUE such as adapter=linear")
    known = {key: None for each in every for key in each.facts}
    if name not in known:
        raise FedclipError(f"--filter {condition}: unknown setting{suggest(name, known)}")
    return _is(run.facts.get(name), value.strip())


def _is(fact: Any, value: str) -> bool:
    if isinstance(fact, bool | int | float):
        try:
            return float(fact) == float(value)
        except ValueError:
            return False
    return value in (str(fact), show_value(fact))


@with_options(examples=["fedclip show tiny-0a1b2c3d-seed0"])
def show(run: RunName, runs: RunsDir) -> None:
    """Show a run: its settings, its figures by client, and which classes gained and lost."""
    from rich.filesize import decimal

    from ...cache import FedclipError
    from ..runs.catalog import find_recorded

    for recorded in find_recorded(runs.runs_dir, run):
        facts = {
            "run": recorded.path,
            "started": f"{datetime.fromtimestamp(recorded.started):%Y-%m-%d %H:%M}",
            "status": recorded.status,
            "cache": recorded.cache,
            "target": recorded.target,
            "preset": recorded.config.get("preset"),
            **{
                name.replace("_", " "): show_value(value)
                for name, value in recorded.settings.items()
                if value is not None
            },
            "device": recorded.config.get("device"),
            "fedclip": recorded.config.get("fedclip"),
            "size": decimal(recorded.bytes),
        }
        width = max(map(len, facts))
        for fact, value in facts.items():
            print(f"{fact:<{width}}  {value}")
        _show_figures(recorded)
        try:
            _show_classes(recorded)
        except FedclipError as error:
            print("classes   ", error)


def _show_figures(run: RecordedRun) -> None:
    """Print each target's and client's figures, zero-shot beside adapted."""
    headings = ["target", "client", "samples", "accuracy", "balanced", "macro F1", "ECE", "AUC"]
    rows = []
    for result in run.results:
        for client in result.accuracy:
            before, after = (
                (each or {}).get(client, {}) for each in (result.zero_shot_metrics, result.metrics)
            )
            pairs = [
                _pair(before.get(name), after.get(name))
                for name in ("balanced_accuracy", "macro_f1", "calibration_error", "auc")
            ]
            accuracy = _pair(result.zero_shot.get(client), result.accuracy[client])
            rows.append(
                [
                    result.target or "none",
                    client,
                    result.test_samples.get(client, "-"),
                    accuracy,
                    *pairs,
                ]
            )
    if rows:
        print("\nfigures in %, zero-shot > adapted; ECE is the expected calibration error")
        print_table(headings, rows, words={"client"})


def _show_classes(run: RecordedRun) -> None:
    """Print the recall of the classes, those that changed most first."""
    from ..runs.predictions import ADAPTED, ZERO_SHOT, read_predictions
    from ..training.metrics import Tally

    before: Tally | None = None
    after: Tally | None = None
    names: tuple[str, ...] = ()
    for part in run.parts:
        predictions = read_predictions(part.path)
        names = predictions.class_names
        before = _sum(before, predictions.tallies(ZERO_SHOT).values())
        after = _sum(after, predictions.tallies(ADAPTED).values())
    if after is None:
        return
    adapted = after.recall
    zero_shot = adapted if before is None else before.recall
    order = sorted(range(len(names)), key=lambda i: (-abs(adapted[i] - zero_shot[i]), names[i]))
    order = [i for i in order if after.confusion[i].sum()]
    print("\nrecall of the classes in %, zero-shot > adapted, the largest changes first")
    rows = []
    for i in order[:MANY]:
        wrong = after.confusion[i].copy()
        wrong[i] = 0
        most = int(wrong.argmax())
        mistaken = f"{names[most]} ({wrong[most]})" if wrong[most] else "-"
        rows.append(
            [
                names[i],
                int(after.confusion[i].sum()),
                _pair(None if before is None else zero_shot[i], adapted[i]),
                mistaken,
            ]
        )
    print_table(
        ("class", "samples", "recall", "taken most often for"), rows, words={"taken most often for"}
    )
    if len(order) > MANY:
        print(f"           ({len(order) - MANY} more classes changed less)")


def _sum(total: Any, tallies: Iterable[Any]) -> Any:
    for tally in tallies:
        total = tally if total is None else total + tally
    return total


@with_options(examples=["fedclip rm tiny-0a1b2c3d-seed0", "fedclip rm old-run --yes"])
def rm(
    run: RunName,
    runs: RunsDir,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete a run."""
    from rich.filesize import decimal

    from ...cache import FedclipError
    from ..runs.catalog import find_recorded, remove_run

    found = find_recorded(runs.runs_dir, run)
    if len(found) > 1:
        names = ", ".join(each.name for each in found)
        raise FedclipError(f"run {run!r} stands for {len(found)} runs ({names}); name one")
    (recorded,) = found
    size = decimal(recorded.bytes)
    if not yes:
        if not sys.stdin.isatty():
            raise FedclipError(f"{recorded.path}: pass --yes to delete it ({size})")
        typer.confirm(f"Delete {recorded.path} ({recorded.status}, {size})?", abort=True)
    remove_run(recorded)
    print(f"deleted    {recorded.path} ({size})")


@with_options(
    examples=[
        "fedclip compare tiny-0a1b2c3d-seed0 tiny-4e5f6a7b-seed0",
        "fedclip compare tiny-0a1b2c3d tiny-4e5f6a7b   # over all seeds of both settings",
        "fedclip compare tiny-0a1b2c3d   # with its own zero-shot predictions",
    ]
)
def compare(
    names: Annotated[
        list[str],
        _argument(
            "RUN...",
            "Runs by name or folder; a name without -seed0 stands for all seeds. Each is compared "
            "with the first one, a single one with zero-shot.",
        ),
    ],
    runs: RunsDir,
) -> None:
    """Compare runs image by image: the difference, its 95 % interval, and who changes side.

    The runs are paired by seed and target, and their predictions by image. Runs of one seed each
    are paired whatever their seeds are.
    """
    from ...cache import FedclipError
    from ..report.compare import arm_of
    from ..report.compare import compare as compare_arms
    from ..runs.catalog import find_recorded
    from ..runs.predictions import ADAPTED, ZERO_SHOT

    found = [find_recorded(runs.runs_dir, name) for name in names]
    arms = [arm_of(name, each, ADAPTED) for name, each in zip(names, found, strict=True)]
    if len(arms) == 1:
        arms.insert(0, arm_of("zero-shot", found[0], ZERO_SHOT))
    elif len({*names}) < len(names):
        raise FedclipError(f"{names[0]}: is given twice; name different runs")
    for arm in arms[1:]:
        print_comparison(compare_arms(arms[0], arm))


def print_comparison(comparison: Comparison) -> None:
    """Print two settings side by side."""
    lines = comparison.lines
    means = [line for line in lines if line.name in ("mean", "pooled")]
    shown = lines if len(lines) <= MANY else means
    seeds = ", ".join(map(str, comparison.seeds))
    print(f"\nfrom {comparison.first} to {comparison.second}, seeds {seeds}")
    print("accuracy in %, difference in points and its 95 % interval; * is beyond noise")
    headings = ("of", "images", "from", "to", "difference", "interval", "", "better", "worse")
    print_table(headings, [_compared(line) for line in shown], words={""})
    if len(shown) < len(lines):
        print(f"           ({len(lines) - len(shown)} clients are not shown)")
    if comparison.unpaired:
        print(f"           ({comparison.unpaired} images are tested by one of the two only)")


def _compared(line: Line) -> tuple[object, ...]:
    interval = line.interval
    return (
        line.name,
        line.images,
        f"{100 * line.before:.2f}",
        f"{100 * line.after:.2f}",
        f"{100 * interval.difference:+.2f}",
        f"{100 * interval.low:+.2f} to {100 * interval.high:+.2f}",
        "*" if interval.beyond_noise else "",
        line.better,
        line.worse,
    )


def _pair(before: float | None, after: float | None) -> str:
    if after is None:
        return "-"
    first = "-" if before is None else f"{100 * before:.2f}"
    return f"{first} > {100 * after:.2f}"

"""Runs as tables: a list of them, and one in detail.

Importing this imports neither torch nor numpy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any

from rich.filesize import decimal

from ...cache.common.fields import show_value
from ...cache.common.tables import Cell, Column, Table, percent
from ...cache.common.text import counted
from ..runs.catalog import RecordedRun
from ..runs.results import RunResult
from .cells import Accuracy

if TYPE_CHECKING:
    from ..training.metrics import Tally

# Classes that a run is shown with, those that changed most.
CLASSES_SHOWN = 20


def runs_table(runs: Sequence[RecordedRun]) -> Table:
    """Lay out one row per run."""
    columns = [
        Column("started"),
        Column("run"),
        *map(Column, ("dataset", "encoder", "adapter", "strategy", "preset")),
        Column("options", wraps=True),
        Column("target"),
        Column("seed"),
        Column("accuracy", show=percent, best="max"),
        Column("status"),
        Column("size", show=decimal),
    ]
    rows = [
        (
            datetime.fromtimestamp(run.started),
            run.name,
            run.dataset,
            run.encoder,
            run.method,
            str(run.settings.get("strategy", "")),
            str(run.config.get("preset", "")),
            [f"{name}={_shown(value)}" for name, value in run.changed.items()] or None,
            run.target,
            run.seed,
            Accuracy(*run.figure("mean")),
            run.status,
            run.bytes,
        )
        for run in runs
    ]
    return Table(columns, rows, "mean accuracy over the clients in %, zero-shot > adapted")


def facts_table(run: RecordedRun) -> Table:
    """Lay out what a run is."""
    facts: dict[str, Cell] = {
        "run": run.hub or run.path,
        **({} if run.hub else {"started": datetime.fromtimestamp(run.started)}),
        "status": run.status,
        "problem": run.problem,
        "cache": run.cache,
        "target": run.target,
        "preset": str(run.config.get("preset", "")),
        **{
            name.replace("_", " "): _shown(value)
            for name, value in run.settings.items()
            if value is not None and value != []
        },
        "device": str(run.config.get("device", "")),
        "engine": str(run.config.get("engine", "")),
        "fedclip": str(run.config.get("fedclip", "")),
        "size": decimal(run.bytes),
    }
    known = [(name, value) for name, value in facts.items() if value != ""]
    return Table([Column("fact"), Column("value", wraps=True)], known)


def _shown(value: Any) -> str:
    return show_value(tuple(value) if isinstance(value, list) else value)


def figures_table(results: Sequence[RunResult]) -> Table:
    """Lay out each target's and client's figures, zero-shot beside adapted."""
    figures = {
        "balanced_accuracy": "balanced accuracy",
        "macro_f1": "macro F1",
        "calibration_error": "ECE",
        "auc": "AUC",
    }
    measured = any(result.metrics for result in results)
    figures = {
        name: heading
        for name, heading in figures.items()
        if any(each.get(name) for result in results for each in (result.metrics or {}).values())
    }
    columns = [
        *map(Column, ("target", "client", "test samples")),
        Column("accuracy", show=percent),
        *(Column(heading, show=percent) for heading in figures.values()),
    ]
    rows: list[list[Cell]] = []
    for result in results:
        for client, accuracy in result.accuracy.items():
            before = (result.zero_shot_metrics or {}).get(client, {})
            after = (result.metrics or {}).get(client, {})
            rows.append(
                [
                    result.target or "none",
                    client,
                    result.test_samples.get(client),
                    Accuracy(result.zero_shot.get(client), accuracy),
                    *(Accuracy(before.get(name), after.get(name)) for name in figures),
                ]
            )
    caption = "in %, zero-shot > adapted"
    if measured:
        caption += "; ECE is the expected calibration error, the less the better"
    return Table(columns, rows, caption, labels=2)


def classes_table(run: RecordedRun) -> Table:
    """Lay out the classes whose recall changed most, over all targets and clients.

    Raises:
        FedclipError: the predictions are missing or damaged.
    """
    from ..runs.predictions import ADAPTED, ZERO_SHOT

    kept = [part.predictions for part in run.parts]
    names = kept[0].class_names
    before, after = (
        _sum(tally for each in kept for tally in each.tallies(model).values())
        for model in (ZERO_SHOT, ADAPTED)
    )
    columns = [
        Column("class"),
        Column("test samples"),
        Column("recall", show=percent),
        Column("mistaken most often for"),
        Column("times"),
    ]
    if after is None:
        return Table(columns, [])
    recall = after.recall
    old = before.recall if before is not None else recall
    there = [index for index in range(len(names)) if after.confusion[index].sum()]
    there.sort(key=lambda index: (-abs(recall[index] - old[index]), names[index]))
    rows: list[list[Cell]] = []
    for index in there[:CLASSES_SHOWN]:
        wrong = after.confusion[index].copy()
        wrong[index] = 0
        most = int(wrong.argmax())
        first = float(old[index]) if before is not None else None
        rows.append(
            [
                names[index],
                int(after.confusion[index].sum()),
                Accuracy(first, float(recall[index])),
                names[most] if wrong[most] else None,
                int(wrong[most]) or None,
            ]
        )
    caption = "recall of the classes in %, zero-shot > adapted, the largest changes first"
    if len(there) > len(rows):
        caption += f"; {counted(len(there) - len(rows), 'more class', 'more classes')} changed less"
    return Table(columns, rows, caption)


def _sum(tallies: Iterable[Tally]) -> Tally | None:
    listed = list(tallies)
    return reduce(add, listed) if listed else None

"""How the settings of an ablation differ from one of them, and whether by more than noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

from ...cache import FedclipError
from ..report.cells import Interval
from ..report.compare import Arm, arm_of, compare
from ..runs.catalog import RecordedRun
from ..runs.folder import RunFolder
from ..runs.predictions import ADAPTED
from .grid import show
from .summary import Summary

# The figure that is compared: the one that the table is sorted by.
FIGURE = "mean"


def differences(summaries: Sequence[Summary], baseline: Mapping[str, str]) -> list[Interval | None]:
    """Compare each setting with its baseline, image by image.

    Args:
        summaries: The settings, best first.
        baseline: Values of options: each setting is compared with the one that has these values
            and is otherwise the same. None of them: with the best setting.

    Returns:
        The difference of the mean accuracy; None for a baseline itself, and where predictions
        or common seeds are missing.
    """
    by_values = {_values(each): each for each in summaries}
    arms = cache(_arm)
    found: list[Interval | None] = []
    for each in summaries:
        wanted = {name: show(value) for name, value in each.values.items()} | dict(baseline)
        other = by_values.get(tuple(wanted.values())) if baseline else summaries[0]
        first, second = (None if one is None else arms(one) for one in (other, each))
        if other is each or first is None or second is None:
            found.append(None)
            continue
        try:
            line = compare(first, second).line(FIGURE)
        except FedclipError:
            line = None
        found.append(None if line is None else line.interval)
    return found


def _values(summary: Summary) -> tuple[str, ...]:
    return tuple(show(value) for value in summary.values.values())


def _arm(summary: Summary) -> Arm | None:
    """Read the predictions of a setting's finished runs; None if some are missing."""
    done = [entry for entry in summary.entries if entry.result and entry.status == "finished"]
    runs = [
        RecordedRun(entry.experiment.folder, RunFolder(entry.experiment.folder).read_config())
        for entry in done
    ]
    try:
        return arm_of(", ".join(_values(summary)), runs, ADAPTED) if runs else None
    except FedclipError:
        return None

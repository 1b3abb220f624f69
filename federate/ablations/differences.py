"""How the settings of an ablation differ from one of them, and whether by more than noise."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from ...cache import FedclipError
from ..report.cells import Interval
from ..report.compare import Arm, arm_of, compare, zero_shot_of
from ..runs.catalog import RecordedRun
from ..runs.predictions import ADAPTED
from .grid import Baseline, show
from .summary import Summary


def differences(
    summaries: Sequence[Summary], baseline: Baseline, figure: str
) -> list[Interval | None]:
    """Compare each setting with its baseline, image by image.

    Args:
        summaries: The settings, best first.
        baseline: What they are compared with.
        figure: What is compared, one of `runs.results.FIGURES`.

    Returns:
        The difference of the figure; None for a baseline itself, and where predictions
        or common seeds are missing.
    """
    by_values = {_values(each): each for each in summaries}
    arms = cache(_arm)

    def before(summary: Summary) -> Arm | None:
        if baseline.zero_shot:
            own = arms(summary)
            return own and zero_shot_of(own)
        wanted = {name: show(value) for name, value in summary.values.items()}
        wanted |= baseline.values
        other = by_values.get(tuple(wanted.values())) if baseline.values else summaries[0]
        return None if other is None or other is summary else arms(other)

    return [_difference(before(each), arms(each), figure) for each in summaries]


def _difference(first: Arm | None, second: Arm | None, figure: str) -> Interval | None:
    if first is None or second is None:
        return None
    try:
        line = compare(first, second).line(figure)
    except FedclipError:
        return None
    return None if line is None else line.interval


def _values(summary: Summary) -> tuple[str, ...]:
    return tuple(show(value) for value in summary.values.values())


def _arm(summary: Summary) -> Arm | None:
    """Read the predictions of a setting's finished runs; None if some are missing."""
    done = [entry for entry in summary.entries if entry.result and entry.status == "finished"]
    runs = [RecordedRun(entry.experiment.folder) for entry in done]
    try:
        return arm_of(", ".join(_values(summary)), runs, ADAPTED) if runs else None
    except FedclipError:
        return None

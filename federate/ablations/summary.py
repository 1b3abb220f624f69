"""What an ablation comes to, over the seeds."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ...cache.common.tables import Spread
from .grid import SEED, show
from .runner import Entry


class Summary:
    """What the entries of one setting came to, over the seeds.

    Args:
        values: Values of the options that vary, except the seed.
        entries: One per seed.
        figure: What settings are sorted by, one of `FIGURES`.

    Attributes:
        results: Those of the entries that finished.
    """

    def __init__(self, values: Mapping[str, Any], entries: Sequence[Entry], figure: str) -> None:
        self.values = values
        self.entries = entries
        self.figure = figure
        self.results = [
            entry.result for entry in entries if entry.result and entry.status == "finished"
        ]

    @property
    def rank(self) -> float:
        """The mean of the figure; without one, less than any."""
        values = self._of(self.figure)
        return statistics.fmean(values) if values else -1.0

    def accuracy(self, figure: str) -> Spread | None:
        """Mean and standard deviation of one of `FIGURES`; None without results."""
        return spread(self._of(figure))

    def gain(self, figure: str) -> Spread | None:
        """Mean and standard deviation of its difference to zero-shot, run by run.

        None without results, or where zero-shot is not defined.
        """
        pairs = [result.figure(figure) for result in self.results]
        return spread([b - a for a, b in pairs if a is not None and b is not None])

    def _of(self, figure: str) -> list[float]:
        values = (getattr(result, figure) for result in self.results)
        return [value for value in values if value is not None]


def summarize(
    entries: Sequence[Entry], names: Sequence[str], figure: str = "mean"
) -> list[Summary]:
    """Group the entries that differ only in the seed, the best first.

    Args:
        entries: What was run.
        names: The options that vary.
        figure: What they are sorted by.
    """
    groups: dict[tuple[str, ...], list[Entry]] = {}
    others = [name for name in names if name != SEED]
    for entry in entries:
        values = tuple(show(entry.values[name]) for name in others)
        groups.setdefault(values, []).append(entry)
    summaries = [
        Summary({name: members[0].values[name] for name in others}, members, figure)
        for members in groups.values()
    ]
    return sorted(summaries, key=lambda each: each.rank, reverse=True)


def spread(values: Sequence[float]) -> Spread | None:
    """Return mean and standard deviation; None of no values."""
    if not values:
        return None
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)

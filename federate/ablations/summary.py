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

    Attributes:
        results: Those of the entries that finished.
    """

    def __init__(self, values: Mapping[str, Any], entries: Sequence[Entry]) -> None:
        self.values = values
        self.entries = entries
        self.results = [
            entry.result for entry in entries if entry.result and entry.status == "finished"
        ]

    @property
    def rank(self) -> float:
        """The mean accuracy; without one, less than any."""
        return statistics.fmean(self._of("mean")) if self._of("mean") else -1.0

    def accuracy(self, figure: str) -> Spread | None:
        """Mean and standard deviation of one of `FIGURES`; None without results."""
        return spread(self._of(figure))

    def gain(self, figure: str) -> Spread | None:
        """Mean and standard deviation of its difference to zero-shot, run by run."""
        before = self._of(f"zero_shot_{figure}")
        return spread([b - a for a, b in zip(before, self._of(figure), strict=True)])

    def _of(self, figure: str) -> list[float]:
        values = (getattr(result, figure) for result in self.results)
        return [value for value in values if value is not None]


def summarize(entries: Sequence[Entry], names: Sequence[str]) -> list[Summary]:
    """Group the entries that differ only in the seed, best mean accuracy first.

    Args:
        entries: What was run.
        names: The options that vary.
    """
    groups: dict[tuple[str, ...], list[Entry]] = {}
    others = [name for name in names if name != SEED]
    for entry in entries:
        values = tuple(show(entry.values[name]) for name in others)
        groups.setdefault(values, []).append(entry)
    summaries = [
        Summary({name: members[0].values[name] for name in others}, members)
        for members in groups.values()
    ]
    return sorted(summaries, key=lambda each: each.rank, reverse=True)


def spread(values: Sequence[float]) -> Spread | None:
    """Return mean and standard deviation; None of no values."""
    if not values:
        return None
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)

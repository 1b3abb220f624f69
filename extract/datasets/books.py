"""The books of an extraction: what became of every file or row that was seen."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

# Reasons and names that a line shows before it counts the others.
_SHOWN = 3


@dataclass(frozen=True)
class Ignored:
    """Files that are not part of a dataset for one reason: how many, and the first."""

    reason: str
    count: int
    first: str


@dataclass(frozen=True)
class Books:
    """What was seen of a dataset beside its images.

    Attributes:
        unit: What is counted: ``files`` or ``rows``.
        ignored: Files that are not part of the dataset.
        aside: What was not looked into: folders, splits, columns; each with the reason.
    """

    unit: str = "files"
    ignored: tuple[Ignored, ...] = ()
    aside: tuple[str, ...] = ()

    @classmethod
    def of(cls, ignored: Iterable[tuple[str, str]], aside: Iterable[str]) -> Self:
        """Count ignored files, each with its reason and its id."""
        counts: Counter[str] = Counter()
        first: dict[str, str] = {}
        for reason, name in ignored:
            counts[reason] += 1
            first[reason] = min(first.get(reason, name), name)
        reasons = (Ignored(reason, n, first[reason]) for reason, n in counts.most_common())
        return cls(ignored=tuple(reasons), aside=tuple(sorted(aside)))

    @classmethod
    def from_json(cls, value: Any) -> Self | None:
        """Read what `to_json` wrote; None if a manifest has something else or nothing."""
        try:
            ignored = tuple(
                Ignored(str(item["reason"]), int(item["count"]), str(item["first"]))
                for item in value["ignored"]
            )
            return cls(str(value["unit"]), ignored, tuple(map(str, value["aside"])))
        except (KeyError, TypeError, ValueError):
            return None

    def to_json(self) -> Mapping[str, Any]:
        """Return the books as JSON."""
        return asdict(self)

    def balance(self, taken: int, skipped: Iterable[str]) -> str:
        """Account for everything that was seen in one line.

        Args:
            taken: Number of images in the cache.
            skipped: The reason of each skipped image.
        """
        reasons = Counter(skipped).most_common()
        ignored = sum(item.count for item in self.ignored)
        parts = (
            f"{taken:,} taken",
            f"{sum(n for _, n in reasons):,} skipped" + _listed(reasons),
            f"{ignored:,} ignored"
            + _listed([(f"{i.reason}, such as {i.first}", i.count) for i in self.ignored]),
        )
        seen = taken + sum(n for _, n in reasons) + ignored
        aside = f"; not looked into: {_few(self.aside)}" if self.aside else ""
        return f"{self.unit:<10} {seen:,} seen: {', '.join(parts)}{aside}"


def _listed(reasons: list[tuple[str, int]]) -> str:
    if not reasons:
        return ""
    return f" ({_few([f'{count:,} {reason}' for reason, count in reasons])})"


def _few(texts: Iterable[str]) -> str:
    texts = list(texts)
    more = [f"{len(texts) - _SHOWN:,} more"] if len(texts) > _SHOWN else []
    return "; ".join([*texts[:_SHOWN], *more])

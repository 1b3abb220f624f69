"""The paper's tables: its methods, its published figures, and ours beside them.

Lu et al. 2023 (arXiv:2302.13485). A column is the domain left out, a figure the mean
accuracy over all domains: the participants' test parts and the whole of the one left out.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...cache import FedclipError
from ...cache.common.fields import suggest
from ...cache.common.tables import Cell, Column, Compound, Show, Spread, Table, percent, points

if TYPE_CHECKING:
    from ..runs.results import RunResult

MEAN = "mean"


@dataclass(frozen=True)
class Method:
    """A row of the tables.

    Attributes:
        name: As in the paper.
        backbone: The full model that is trained; None for methods over features.
        strategy: What the server does.
        adapter: The adapter that is trained on features.
    """

    name: str
    backbone: str | None = None
    strategy: str = "fedavg"
    adapter: str = "none"


METHODS: Mapping[str, Method] = {
    "alexnet-fedavg": Method("AlexNet FedAVG", "alexnet"),
    "alexnet-fedprox": Method("AlexNet FedProx", "alexnet", "fedprox"),
    "clip-fedavg": Method("CLIP FedAVG", "clip"),
    "clip-fedprox": Method("CLIP FedProx", "clip", "fedprox"),
    "zero-shot": Method("CLIP zero-shot"),
    "fedclip": Method("FedCLIP", adapter="attention"),
}

# In percent, with ViT-B/32. Figures without a source that we could read are left out.
PUBLISHED: Mapping[str, Mapping[str, Mapping[str, float]]] = {
    "pacs": {
        "alexnet-fedavg": {MEAN: 58.69},
        "alexnet-fedprox": {MEAN: 58.52},
        "clip-fedavg": {
            "art_painting": 64.65,
            "cartoon": 84.50,
            "photo": 87.87,
            "sketch": 89.16,
            MEAN: 81.55,
        },
        "clip-fedprox": {
            "art_painting": 77.81,
            "cartoon": 87.95,
            "photo": 89.42,
            "sketch": 90.08,
            MEAN: 86.32,
        },
        "fedclip": {
            "art_painting": 95.15,
            "cartoon": 95.36,
            "photo": 95.46,
            "sketch": 94.99,
            MEAN: 95.24,
        },
    },
    "vlcs": {},
    "office-home": {},
}


def choose_methods(text: str | None) -> list[str]:
    """Turn a comma-separated list into keys of `METHODS`, in the paper's order; None is all.

    Raises:
        FedclipError: a method is unknown.
    """
    wanted = list(METHODS) if text is None else [name.strip() for name in text.split(",")]
    for name in wanted:
        if name not in METHODS:
            raise FedclipError(f"--methods {name}: unknown method{suggest(name, METHODS)}")
    return [name for name in METHODS if name in wanted]


@dataclass(frozen=True)
class Comparison(Compound):
    """Our accuracy over the seeds beside the published one, as fractions.

    Attributes:
        mean: None if a run failed.
        deviation: None of one seed.
        published: None if the paper has none.
    """

    mean: float | None
    deviation: float | None
    published: float | None

    @property
    def rank(self) -> float | None:
        """Our mean."""
        return self.mean

    def text(self, show: Show) -> str:
        """Return ours, the paper's and the difference."""
        if self.mean is None:
            return "failed"
        ours = Spread(self.mean, self.deviation).text(show)
        if self.published is None:
            return f"{ours}  {'-':>5} {'-':>6}"
        return f"{ours}  {show(self.published)} {points(self.mean - self.published):>6}"

    def latex(self, show: Show) -> str:
        """Return ours, and the paper's in parentheses."""
        if self.mean is None:
            return r"\mbox{failed}"
        ours = Spread(self.mean, self.deviation).latex(show)
        return ours if self.published is None else rf"{ours}\ ({show(self.published)})"


def paper_table(
    dataset: str, results: Mapping[str, Sequence[Sequence[RunResult]]], weights: str
) -> Table:
    """Lay out our figures beside the published ones.

    Args:
        dataset: A key of `PUBLISHED`.
        results: By key of `METHODS`, for each seed the results by target.
        weights: What AlexNet began from.
    """
    targets = list(
        dict.fromkeys(
            str(each.target) for seeds in results.values() for one in seeds for each in one
        )
    )
    headings = (*targets, MEAN)
    rows: list[list[Cell]] = []
    for key, seeds in results.items():
        method = METHODS[key]
        name = f"{method.name} ({weights})" if method.backbone == "alexnet" else method.name
        by_target = [[_accuracy(one, target) for one in seeds] for target in targets]
        means = [_mean(of_seed) for of_seed in zip(*by_target, strict=True)]
        published = PUBLISHED[dataset].get(key, {})
        rows.append(
            [
                name,
                *(
                    _compared(values, published.get(heading))
                    for values, heading in zip([*by_target, means], headings, strict=True)
                ),
            ]
        )
    return Table(
        [Column("method"), *(Column(each, show=percent, best="max") for each in headings)],
        rows,
        caption=f"{dataset}: mean accuracy over the domains in %, by the domain left out: "
        "ours, the paper's, the difference",
    )


def _accuracy(results: Sequence[RunResult], target: str) -> float | None:
    (value,) = (each.mean for each in results if each.target == target)
    return value


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None


def _compared(values: Sequence[float | None], published: float | None) -> Comparison:
    known = [value for value in values if value is not None]
    return Comparison(
        mean=_mean(values),
        deviation=statistics.stdev(known) if len(known) > 1 else None,
        published=None if published is None else published / 100,
    )

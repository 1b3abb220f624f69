"""Whether one setting is better than another, or differs by noise: image by image, seed by seed.

Both runs of a pair test the same images, so what differs is counted image by image, and the
difference of two accuracies is the mean of +1 (only the second is right), -1 (only the first is)
and 0. The interval of 95 % says how far that mean may be off:

* with one seed, by a bootstrap over images (Efron & Tibshirani 1993, chapter 13): each client's
  images are drawn again with replacement. Before, one image is added to either side, as Bonett
  & Price (2012) do; without that, four changes to none would pass for a difference.
* with several seeds, by the variances over seeds and over images together, less what both
  contain (Cameron, Gelbach & Miller 2011), and Student's t for the seeds. A bootstrap over
  seeds would be too narrow: over three, its interval has the truth in three cases of four.

Importing this imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ...cache import FedclipError
from ...cache.common.tables import Column, Table, percent, points
from ...cache.common.text import counted, inflected
from ..runs.catalog import RecordedRun
from ..runs.predictions import NOTHING, ZERO_SHOT, Predictions
from ..runs.results import FIGURES, RunResult
from ..seeding import generator
from .cells import Interval

DRAWS = 10_000

# A comparison of more clients than this is shown without them.
MANY = 20

# Two-sided 95 % points: of the normal distribution, and of Student's t by degrees of freedom.
_Z95 = 1.959964
_T95 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)

Floats = npt.NDArray[np.float64]


class Key(NamedTuple):
    """What distinguishes the runs of one setting."""

    seed: int
    target: str | None


class _Image(NamedTuple):
    """What identifies an image in every run over it."""

    dataset: str
    domain: str
    id: bytes


@dataclass(frozen=True, eq=False)
class Member:
    """A run with its predictions.

    Attributes:
        predictions: For its test samples.
        domains: Domain of each client.
        model: The model that predicts, one of `predictions.MODELS`.
        dataset: Name of the dataset; images of two datasets differ, whatever their ids are.
    """

    predictions: Predictions
    domains: Mapping[str, str]
    model: str
    dataset: str = ""


@dataclass(frozen=True, eq=False)
class Arm:
    """The runs of one setting: of any seeds and targets."""

    name: str
    members: Mapping[Key, Member]

    @property
    def seeds(self) -> list[int]:
        """Its seeds, ascending."""
        return sorted({key.seed for key in self.members})

    @property
    def targets(self) -> list[str | None]:
        """Its targets, in their order."""
        return list(dict.fromkeys(key.target for key in self.members))


@dataclass(frozen=True)
class Line:
    """One figure of two settings.

    Attributes:
        name: A client, a domain left out, or one of the figures of a result.
        images: Number of images that both test, over all seeds and targets.
        before: Accuracy of the first setting on them.
        after: Accuracy of the second.
        interval: Of their difference.
        better: Images that only the second has right.
        worse: Images that only the first has right.
    """

    name: str
    images: int
    before: float
    after: float
    interval: Interval
    better: int
    worse: int


@dataclass(frozen=True)
class Comparison:
    """Two settings compared.

    Attributes:
        first: Name of the first.
        second: Name of the second.
        seeds: Those that both have, or both, if each has one.
        lines: The figures, clients first.
        unpaired: Images that only one of the two tests.
    """

    first: str
    second: str
    seeds: tuple[int, ...]
    lines: tuple[Line, ...]
    unpaired: int

    def line(self, name: str) -> Line | None:
        """Return a figure by name."""
        return next((line for line in self.lines if line.name == name), None)


@dataclass(frozen=True, eq=False)
class _Pair:
    """Two runs' predictions for the images that both test.

    Attributes:
        key: Which runs.
        image: (n,) int64, the image's number, the same in all pairs.
        group: (n,) index into `groups`.
        groups: The clients; the domains, if the two have different clients.
        target: Index of the target's group; None without one.
        before: (n,) whether the first is right.
        after: (n,) whether the second is.
    """

    key: Key
    image: npt.NDArray[np.int64]
    group: npt.NDArray[np.int64]
    groups: tuple[str, ...]
    target: int | None
    before: npt.NDArray[np.bool_]
    after: npt.NDArray[np.bool_]

    @cached_property
    def change(self) -> Floats:
        """(n,) +1, 0 or -1."""
        return self.after.astype(np.float64) - self.before

    @cached_property
    def sizes(self) -> npt.NDArray[np.int64]:
        """Number of images of each group."""
        return np.bincount(self.group, minlength=len(self.groups))

    def weights(self, shares: Floats) -> Floats:
        """Return each image's weight in a figure that is a weighted mean over groups."""
        return (shares / np.maximum(self.sizes, 1))[self.group]


def arm_of(name: str, runs: Sequence[RecordedRun], model: str) -> Arm:
    """Read the predictions of the runs of one setting.

    Args:
        name: What to call it.
        runs: One or more, which differ in the seed.
        model: The model that predicts, one of `predictions.MODELS`.

    Raises:
        FedclipError: a run is not over, or its predictions are missing or damaged.
    """
    members = {}
    for run in runs:
        for problem in (each.problem for each in (run, *run.parts)):
            if problem:
                raise FedclipError(problem)
        for part in run.parts:
            predictions = part.predictions
            if not isinstance(part.result, RunResult) or model not in predictions.classes:
                raise FedclipError(
                    f"{part.path}: has no {model.replace('_', '-')} predictions to compare"
                )
            key = Key(run.seed, part.result.target)
            members[key] = Member(predictions, part.result.domains, model, run.dataset)
    return Arm(name, members)


def zero_shot_of(arm: Arm) -> Arm | None:
    """Return what the features themselves predict; None if they do not, or if it was not kept."""
    if any(ZERO_SHOT not in each.predictions.classes for each in arm.members.values()):
        return None
    members = {key: replace(each, model=ZERO_SHOT) for key, each in arm.members.items()}
    return Arm("zero-shot", members)


def compare(first: Arm, second: Arm, draws: int = DRAWS) -> Comparison:
    """Compare two settings over the images, seeds and targets that both have.

    Args:
        first: What the second is compared with.
        second: The other.
        draws: Of the bootstrap.

    Raises:
        FedclipError: they have no seed, no target or no image in common.
    """
    numbers: dict[_Image, int] = {}
    pairs, unpaired = [], 0
    for key, one, other in _matched(first, second):
        pair, missing = _pair(key, one, other, numbers)
        unpaired += missing
        if len(pair.image):
            pairs.append(pair)
    if not pairs:
        raise FedclipError(
            f"{first.name} and {second.name}: test no image in common; compare runs over the "
            "same dataset"
        )
    lines = tuple(
        _line(name, pairs, weights, draws) for name, weights in _figures(pairs) if weights
    )
    seeds = first.seeds if first.seeds == second.seeds else [pair.key.seed for pair in pairs]
    if len(first.seeds) == len(second.seeds) == 1:
        seeds = [*first.seeds, *second.seeds]
    return Comparison(first.name, second.name, tuple(sorted({*seeds})), lines, unpaired)


def _matched(first: Arm, second: Arm) -> Iterator[tuple[Key, Member, Member]]:
    """Pair the runs: by target and seed, and by target alone if each has one seed."""
    targets = [target for target in first.targets if target in second.targets]
    if not targets:
        raise FedclipError(
            f"{first.name} and {second.name}: leave out different domains; compare runs with the "
            "same --target"
        )
    if len(first.seeds) == len(second.seeds) == 1:
        seeds = [(first.seeds[0], second.seeds[0])]
    else:
        seeds = [(seed, seed) for seed in first.seeds if seed in second.seeds]
    if not seeds:
        raise FedclipError(
            f"{first.name} and {second.name}: have no seed in common; run both with the same seeds"
        )
    for one, other in seeds:
        for target in targets:
            keys = Key(one, target), Key(other, target)
            if keys[0] in first.members and keys[1] in second.members:
                yield keys[0], first.members[keys[0]], second.members[keys[1]]


def _pair(key: Key, one: Member, other: Member, numbers: dict[_Image, int]) -> tuple[_Pair, int]:
    """Match two runs' images by domain and id, and count those that only one has."""
    rows = [_rows(member) for member in (one, other)]
    both = [image for image in rows[0] if image in rows[1]]
    mine, theirs = (np.array([found[image] for image in both], dtype=np.intp) for found in rows)
    names = [
        np.array(member.predictions.clients, dtype=object)[member.predictions.client[which]]
        for member, which in ((one, mine), (other, theirs))
    ]
    same = bool((names[0] == names[1]).all())
    labels = [*names[0]] if same else [image.domain for image in both]
    groups = tuple(dict.fromkeys(labels))
    place = {name: index for index, name in enumerate(groups)}
    target = next(
        (i for i, name in enumerate(groups) if one.domains.get(name, name) == key.target), None
    )
    right = [
        member.predictions.classes[member.model][which] == member.predictions.labels[which]
        for member, which in ((one, mine), (other, theirs))
    ]
    pair = _Pair(
        key=key,
        image=np.array([numbers.setdefault(image, len(numbers)) for image in both], dtype=np.int64),
        group=np.array([place[name] for name in labels], dtype=np.int64),
        groups=groups,
        target=target if key.target is not None else None,
        before=right[0],
        after=right[1],
    )
    return pair, len(rows[0]) + len(rows[1]) - 2 * len(both)


def _rows(member: Member) -> dict[_Image, int]:
    """Return the rows that the member's model predicts, by image."""
    predictions = member.predictions
    domains = [member.domains.get(client, client) for client in predictions.clients]
    known = np.flatnonzero(predictions.classes[member.model] != NOTHING)
    clients, ids = predictions.client[known].tolist(), predictions.ids[known].tolist()
    return {
        _Image(member.dataset, domains[client], name): row
        for client, name, row in zip(clients, ids, known.tolist(), strict=True)
    }


# The weights of the images of some pairs in a figure, by position of the pair; those of one seed
# sum to 1.
_Weights = Mapping[int, Floats]


def _figures(pairs: Sequence[_Pair]) -> Iterator[tuple[str, _Weights]]:
    """List the figures: each client, or each domain left out if there are several; then means."""
    targets = {pair.key.target for pair in pairs}
    if len(targets) == 1:
        for name in dict.fromkeys(chain.from_iterable(pair.groups for pair in pairs)):
            yield (
                name,
                _weights(pairs, [[group == name for group in pair.groups] for pair in pairs]),
            )
    else:
        for target in dict.fromkeys(pair.key.target for pair in pairs):
            yield str(target), _weights(pairs, [_target(pair, target) for pair in pairs])
    if targets != {None}:
        yield "generalization", _weights(pairs, [_target(pair, pair.key.target) for pair in pairs])
        others = [[i != pair.target for i in range(len(pair.groups))] for pair in pairs]
        yield "personalization", _weights(pairs, others)
    yield "mean", _weights(pairs, [[True] * len(pair.groups) for pair in pairs])
    yield "pooled", _weights(pairs, [pair.sizes for pair in pairs])


def _target(pair: _Pair, target: str | None) -> list[bool]:
    return [pair.key.target == target and i == pair.target for i in range(len(pair.groups))]


def _weights(
    pairs: Sequence[_Pair], shares: Sequence[Sequence[float] | npt.NDArray[np.int64]]
) -> _Weights:
    """Turn each pair's weights of its groups into weights of its images.

    Pairs of one seed, which differ by target, count alike.
    """
    given = {i: np.asarray(each, dtype=np.float64) for i, each in enumerate(shares)}
    given = {i: each for i, each in given.items() if each.sum() > 0}
    alike: dict[int, int] = {}
    for i in given:
        alike[pairs[i].key.seed] = alike.get(pairs[i].key.seed, 0) + 1
    return {
        i: pairs[i].weights(each / each.sum()) / alike[pairs[i].key.seed]
        for i, each in given.items()
    }


def _line(name: str, pairs: Sequence[_Pair], weights: _Weights, draws: int) -> Line:
    used = {i: (pairs[i], each) for i, each in weights.items()}
    seeds = len({pair.key.seed for pair, _ in used.values()})
    before, after = (
        sum(float(each @ getattr(pair, side)) for pair, each in used.values()) / seeds
        for side in ("before", "after")
    )
    counted = [pair.change[each > 0] for pair, each in used.values()]
    interval = (_of_images if seeds == 1 else _of_seeds)([*used.values()], draws)
    return Line(
        name=name,
        images=sum(map(len, counted)),
        before=before,
        after=after,
        interval=interval,
        better=int(sum((each > 0).sum() for each in counted)),
        worse=int(sum((each < 0).sum() for each in counted)),
    )


def _of_images(used: Sequence[tuple[_Pair, Floats]], draws: int) -> Interval:
    """Return the difference in one seed, and its bootstrap interval over images.

    Images that count in the same clients and targets are drawn together, so that an image
    which is tested for several targets stays one.
    """
    count = 1 + max(int(pair.image.max()) for pair, _ in used)
    change, weight = np.zeros(count), np.zeros(count)
    where = np.zeros(count, dtype=np.uint64)
    random = generator("bootstrap", count, len(used))
    for pair, each in used:
        np.add.at(change, pair.image, each * pair.change)
        np.add.at(weight, pair.image, each)
        marks = random.integers(1, 1 << 63, len(pair.groups), dtype=np.uint64)
        np.add.at(where, pair.image, np.where(each > 0, marks[pair.group], np.uint64(0)))
    strata = np.unique(where[weight > 0])
    drawn = np.zeros(draws)
    for mark in strata:
        mine = (where == mark) & (weight > 0)
        full = weight[mine].max()
        values, counts = np.unique(np.round(change[mine], 15), return_counts=True)
        # The one image on either side, shared among the strata.
        values = np.append(values, [full, -full])
        shares = np.append(counts, [1 / len(strata)] * 2)
        drawn += random.multinomial(int(mine.sum()), shares / shares.sum(), draws) @ values
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(float(change.sum()), float(low), float(high))


def _of_seeds(used: Sequence[tuple[_Pair, Floats]], draws: int) -> Interval:
    """Return the mean difference over seeds, and its interval by the variances of both."""
    places = {seed: i for i, seed in enumerate(dict.fromkeys(p.key.seed for p, _ in used))}
    seeds = len(places)
    by_seed = np.zeros(seeds)
    count = 1 + max(int(pair.image.max()) for pair, _ in used)
    weight, rest = np.zeros(count), np.zeros((seeds, count))
    for pair, each in used:
        seed = places[pair.key.seed]
        by_seed[seed] += each @ pair.change
        np.add.at(weight, pair.image, each / seeds)
        means = np.bincount(pair.group, pair.change) / np.maximum(pair.sizes, 1)
        np.add.at(rest[seed], pair.image, each * (pair.change - means[pair.group]))
    over_seeds = float(by_seed.var(ddof=1)) / seeds
    over_images = float(np.square(rest.sum(axis=0) / seeds).sum())
    over_both = float(np.square(rest / seeds).sum())
    over_images += 2 * float(np.square(weight[weight > 0]).mean())
    t = _T95[seeds - 2] if seeds - 2 < len(_T95) else _Z95 * (1 + 1.2 / (seeds - 1))
    wide = t**2 * over_seeds + _Z95**2 * (over_images - over_both)
    # Seeds that agree by luck leave the images' part.
    half = math.sqrt(max(wide, _Z95**2 * over_images))
    middle = float(by_seed.mean())
    return Interval(middle, middle - half, middle + half)


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """Lay out one row per figure of settings that are compared with one and the same.

    Args:
        comparisons: One or more.
    """
    several, caption = len(comparisons) > 1, "accuracy in %"
    if not several:
        (only,) = comparisons
        caption = f"{only.first} > {only.second}, {_seeds(only)}: {caption}"
    caption += "; difference in points with its 95 % interval, * beyond noise"
    columns = [
        Column("to", hidden=not several),
        Column("from", hidden=True),
        Column("seeds", hidden=not several),
        Column("of"),
        Column("samples"),
        Column("before", show=percent),
        Column("after", show=percent),
        Column("difference", show=points),
        Column("better"),
        Column("worse"),
    ]
    rows = []
    for each in comparisons:
        lines = each.lines
        if len(lines) > MANY:
            lines = tuple(line for line in lines if line.name in FIGURES)
        left_out, where = len(each.lines) - len(lines), f" of {each.second}" if several else ""
        if left_out:
            caption += f"; {counted(left_out, 'client')}{where} left out"
        if each.unpaired:
            caption += f"; {counted(each.unpaired, 'image')}{where} tested by one of the two only"
        rows += [
            (
                *(each.second, each.first, [*map(str, each.seeds)]),
                *(line.name, line.images, line.before, line.after),
                *(line.interval, line.better, line.worse),
            )
            for line in lines
        ]
    if several:
        caption = f"from {comparisons[0].first}: {caption}"
    return Table(columns, rows, caption, labels=4)


def _seeds(comparison: Comparison) -> str:
    numbers = ", ".join(map(str, comparison.seeds))
    return f"{inflected(len(comparison.seeds), 'seed')} {numbers}"

"""Comparisons of runs: exact counts, and intervals that have the truth as often as they say."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fedclip.cache import FedclipError
from fedclip.federate.report.cells import Interval
from fedclip.federate.report.compare import Arm, Key, Member, compare
from fedclip.federate.runs.predictions import ADAPTED, Predictions


def member(
    right: Sequence[bool] | npt.NDArray[np.bool_],
    ids: Sequence[int] | npt.NDArray[np.int64] | None = None,
    client: npt.NDArray[np.int32] | None = None,
    clients: Sequence[str] = ("art",),
    domains: Mapping[str, str] | None = None,
) -> Member:
    """Make a run whose predictions are right or wrong as given."""
    count = len(right)
    names = range(count) if ids is None else ids
    predictions = Predictions(
        clients=tuple(clients),
        class_names=("yes", "no"),
        client=np.zeros(count, np.int32) if client is None else client,
        ids=np.array([str(each) for each in names], dtype=np.bytes_),
        labels=np.zeros(count, np.int32),
        classes={ADAPTED: np.where(right, 0, 1).astype(np.int32)},
        confidence={ADAPTED: np.full(count, 0.5, np.float32)},
    )
    return Member(predictions, domains or {}, ADAPTED)


def arm(name: str, *members: Member, seeds: Sequence[int] = (), target: str | None = None) -> Arm:
    numbers = seeds or range(len(members))
    return Arm(name, {Key(s, target): each for s, each in zip(numbers, members, strict=True)})


def test_images_are_paired_by_id_and_counted_by_the_side_they_change_to() -> None:
    one = member([True, True, False, False, True], ids=[1, 2, 3, 4, 5])
    other = member([True, True, False, True, True], ids=[9, 4, 3, 1, 2])
    compared = compare(arm("one", one), arm("other", other))
    assert compared.unpaired == 2
    line = compared.line("art")
    assert line is not None
    assert (line.images, line.better, line.worse) == (4, 1, 0)
    assert (line.before, line.after) == (0.5, 0.75)
    assert line.interval.difference == 0.25


def test_images_of_two_datasets_differ_whatever_their_ids() -> None:
    one = member([True, False])
    other = replace(one, dataset="another")
    with pytest.raises(FedclipError, match="test no image in common"):
        compare(arm("one", one), arm("other", other))


def test_means_weigh_clients_and_pooled_weighs_images() -> None:
    client = np.array([0, 0, 1, 1, 1, 1], np.int32)
    both: dict[str, Any] = {"client": client, "clients": ("art", "photo")}
    one = member([False] * 6, **both)
    other = member([True, False, False, False, False, False], **both)
    compared = compare(arm("one", one), arm("other", other))
    values = {line.name: line.interval.difference for line in compared.lines}
    assert values == pytest.approx({"art": 0.5, "photo": 0.0, "mean": 0.25, "pooled": 1 / 6})


def test_a_target_gives_generalization_and_personalization() -> None:
    client = np.array([0, 0, 1, 1], np.int32)
    both: dict[str, Any] = {"client": client, "clients": ("art", "photo")}
    one = member([False, False, False, False], **both)
    other = member([True, True, True, False], **both)
    compared = compare(arm("one", one, target="photo"), arm("other", other, target="photo"))
    values = {line.name: line.interval.difference for line in compared.lines}
    assert (values["generalization"], values["personalization"]) == (0.5, 1.0)


def test_targets_are_listed_each_and_averaged() -> None:
    client = np.array([0, 0, 1, 1], np.int32)
    both: dict[str, Any] = {"client": client, "clients": ("art", "photo")}
    one, other = member([False] * 4, **both), member([True, True, True, False], **both)
    arms = [
        Arm(name, {Key(0, target): each for target in ("art", "photo")})
        for name, each in (("one", one), ("other", other))
    ]
    values = {line.name: line.interval.difference for line in compare(arms[0], arms[1]).lines}
    assert values == pytest.approx(
        {
            "art": 1.0,
            "photo": 0.5,
            "generalization": 0.75,
            "personalization": 0.75,
            "mean": 0.75,
            "pooled": 0.75,
        }
    )


def test_other_clients_are_compared_by_domain() -> None:
    one = member([False, True], clients=("art-000",), domains={"art-000": "art"})
    other = member([True, True], clients=("art-007",), domains={"art-007": "art"})
    compared = compare(arm("one", one), arm("other", other))
    assert [line.name for line in compared.lines] == ["art", "mean", "pooled"]
    assert compared.unpaired == 0


def test_runs_are_paired_by_seed_unless_each_has_one() -> None:
    one, other = member([True] * 4), member([False] * 4)
    assert compare(arm("one", one, seeds=[3]), arm("other", other, seeds=[5])).seeds == (3, 5)
    both = compare(
        arm("one", one, one, one, seeds=[0, 1, 2]), arm("other", other, other, seeds=[1, 2])
    )
    assert both.seeds == (1, 2)
    assert both.lines[0].images == 8
    with pytest.raises(FedclipError, match="one and other: have no seed in common"):
        compare(arm("one", one, one), arm("other", other, other, seeds=[7, 8]))


def test_nothing_in_common_is_an_error() -> None:
    one, other = member([True], ids=[1]), member([True], ids=[2])
    with pytest.raises(FedclipError, match="test no image in common"):
        compare(arm("one", one), arm("other", other))
    with pytest.raises(FedclipError, match="leave out different domains"):
        compare(arm("one", one, target="art"), arm("other", one, target="photo"))


@pytest.mark.parametrize(("better", "sure"), [(0, False), (4, False), (5, False), (7, True)])
def test_a_few_changes_are_no_difference(better: int, sure: bool) -> None:
    """As in McNemar's exact test, in which 5 to 0 has p = 0.06, and 7 to 0 p = 0.02."""
    one = member([False] * 100)
    other = member([index < better for index in range(100)])
    line = compare(arm("one", one), arm("other", other)).line("art")
    assert line is not None
    assert line.interval.difference == better / 100
    assert line.interval.beyond_noise is sure


def test_the_same_comparison_has_the_same_interval() -> None:
    random = np.random.default_rng(0)
    one, other = (member(random.random(200) < 0.6) for _ in range(2))
    first, again = (compare(arm("one", one), arm("other", other)) for _ in range(2))
    assert first == again


def changed(
    random: np.random.Generator, ids: npt.NDArray[np.int64], gain: npt.NDArray[np.float64]
) -> tuple[Member, Member]:
    """Draw two runs of which every tenth image changes side, to the better by (0.1 + gain) / 2."""
    draw = random.random(len(ids))
    better, worse = draw < (0.1 + gain) / 2, draw > 1 - (0.1 - gain) / 2
    others = random.random(len(ids)) < 0.5
    return member((others | worse) & ~better, ids), member((others | better) & ~worse, ids)


def covered(intervals: Sequence[Interval], truth: float) -> float:
    return float(np.mean([each.low <= truth <= each.high for each in intervals]))


@pytest.mark.parametrize(
    ("images", "gain"),
    [(300, 0.0), (500, 0.03), pytest.param(1000, -0.02, marks=pytest.mark.slow)],
)
def test_the_interval_has_the_truth_in_95_percent_of_1000_pairs(images: int, gain: float) -> None:
    random = np.random.default_rng(images)
    ids = np.arange(images)
    intervals = []
    for _ in range(1000):
        one, other = changed(random, ids, np.full(images, gain))
        line = compare(arm("one", one), arm("other", other), draws=2000).line("mean")
        assert line is not None
        intervals.append(line.interval)
    assert 0.93 <= covered(intervals, gain) <= 0.97


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("whole", [True, False])
def test_the_interval_over_seeds_has_the_truth_whether_images_or_seeds_make_it_noisy(
    seeds: int, whole: bool
) -> None:
    random = np.random.default_rng(seeds)
    for spread in (0.0, 0.03):
        intervals = []
        for _ in range(300):
            pairs = []
            for _ in range(seeds):
                ids = np.arange(300) if whole else random.permutation(1500)[:300]
                own = np.clip(0.01 + spread * random.standard_normal(), -0.1, 0.1)
                pairs.append(changed(random, ids, np.full(300, own)))
            arms = [
                arm(name, *each) for name, each in zip("ab", zip(*pairs, strict=True), strict=True)
            ]
            line = compare(arms[0], arms[1]).line("mean")
            assert line is not None
            intervals.append(line.interval)
        assert covered(intervals, 0.01) >= 0.93

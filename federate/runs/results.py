"""What comes of a run: `result.json` as typed objects.

Importing this imports neither torch nor numpy; making a result does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from statistics import median
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from ...cache import FedclipError

if TYPE_CHECKING:
    from ..server import Round
    from ..simulation import Run
    from .predictions import Predictions

Status = Literal["finished", "interrupted", "failed"]

# With one of these no rounds are left to do.
OVER: tuple[Status, ...] = ("finished", "failed")

# Version 1 had no version; its fields are the same.
VERSION = 2

# No number of a result is larger; neither NaN nor an infinity is smaller.
_LARGEST = 1e18

# The accuracies that a table has a column for.
FIGURES = ("generalization", "personalization", "personal_mean", "mean", "pooled")

ByClient = Mapping[str, float | None]

Metrics = Mapping[str, Mapping[str, float | None]]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one run, or the runs over several targets, came to.

    Accuracies are fractions, those of the best round; None if not finite or not measured.

    Attributes:
        status: How it ended.
        trainable_parameters: Size of what is trained.
        bytes_per_round: What crosses the network per client and direction.
        model: What identifies a full model; None for an adapter.
        seconds_per_round: Median of the rounds, as the first one warms up.
        generalization: Accuracy on the target; None without one.
        personalization: Mean over the participants.
        personal_mean: Mean over the participants of their own models; None without these.
        mean: Mean over all clients.
        pooled: Over all test samples together.
        version: Of the format.
    """

    status: Status
    trainable_parameters: int
    bytes_per_round: int
    model: Mapping[str, Any] | None = None
    seconds_per_round: float | None = None
    generalization: float | None = None
    zero_shot_generalization: float | None = None
    personalization: float | None = None
    zero_shot_personalization: float | None = None
    personal_mean: float | None = None
    zero_shot_personal_mean: float | None = None
    mean: float | None = None
    zero_shot_mean: float | None = None
    pooled: float | None = None
    zero_shot_pooled: float | None = None
    version: int = VERSION

    def figure(self, name: str) -> tuple[float | None, float | None]:
        """Return zero-shot and adapted accuracy of one of `FIGURES`."""
        return getattr(self, f"zero_shot_{name}"), getattr(self, name)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; what is not finite is null."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return dict(finite_or_null(values))


@dataclass(frozen=True, kw_only=True)
class RunResult(Result):
    """What one run came to.

    Attributes:
        rounds: Rounds done.
        target: The domain left out.
        best_round: The round with the best mean validation accuracy.
        validation: Accuracy by participant in that round.
        zero_shot: Test accuracy by client without an adapter.
        accuracy: Test accuracy by client.
        personal: Test accuracy by participant of its own model; None if it has none.
        domains: Domain of each client.
        test_samples: Number of test samples of each client.
        dropped: Clients that the partition left with too few rows, and how many.
        metrics: By client, the figures of `training.metrics.METRICS` on its test part; of runs
            that are over. None in the results of earlier versions.
        zero_shot_metrics: The same without an adapter.
        personal_metrics: By participant, the same of its own model; None if it has none.
    """

    rounds: int
    target: str | None
    best_round: int | None
    validation: ByClient
    zero_shot: ByClient
    accuracy: ByClient
    personal: ByClient | None = None
    domains: Mapping[str, str]
    test_samples: Mapping[str, int]
    dropped: Mapping[str, int]
    metrics: Metrics | None = None
    zero_shot_metrics: Metrics | None = None
    personal_metrics: Metrics | None = None


@dataclass(frozen=True, kw_only=True)
class TargetsResult(Result):
    """What the runs over several targets came to: each target's own accuracy, and the means.

    Attributes:
        targets: The domains that were left out in turn.
        best_round: By target.
        zero_shot: Accuracy by target without an adapter.
        accuracy: Accuracy by target.
    """

    target: ClassVar[str] = "all"

    targets: Sequence[str | None]
    best_round: Mapping[str, int | None]
    zero_shot: ByClient
    accuracy: ByClient

    def to_json(self) -> dict[str, Any]:
        """Return JSON values, the target among them."""
        return {**super().to_json(), "target": self.target}


def read_result(content: Mapping[str, Any]) -> Result | None:
    """Make a result of the content of `result.json`; None if it is not one.

    Raises:
        FedclipError: a later version of fedclip wrote it.
    """
    version = content.get("version", 1)
    if not isinstance(version, int) or version > VERSION:
        raise FedclipError(
            f"result.json has format version {version!r}, and this fedclip reads up to {VERSION}; "
            "update fedclip"
        )
    # A domain may be called all, too, so the target does not tell them apart.
    kind = TargetsResult if "targets" in content else RunResult
    known = {each.name: str(each.type) for each in fields(kind) if each.name in content}
    values = {name: content[name] for name in known}
    try:
        return kind(**values) if all(map(_fits, values.values(), known.values())) else None
    except TypeError:  # a field is missing
        return None


def _fits(value: Any, annotation: str) -> bool:
    """Return whether a value from a file is what a field of that type may hold."""
    kind = annotation.removesuffix(" | None")
    return (value is None and kind != annotation) or _CHECKS[kind](value)


def _is_dict(value: Any, check: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(map(check, value.values()))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    """Return whether a value is a number that any format can show: not NaN, not infinite."""
    return isinstance(value, int | float) and abs(value) < _LARGEST


def _is_number_or_null(value: Any) -> bool:
    return value is None or _is_number(value)


# By the type of a field, whether a value from a file may be one, whoever wrote the file.
_CHECKS: Mapping[str, Callable[[Any], bool]] = {
    "Status": _is_text,
    "str": _is_text,
    "int": _is_number,
    "float": _is_number,
    "ByClient": lambda value: _is_dict(value, _is_number_or_null),
    "Metrics": lambda value: _is_dict(value, lambda each: _is_dict(each, _is_number_or_null)),
    "Mapping[str, str]": lambda value: _is_dict(value, _is_text),
    "Mapping[str, int]": lambda value: _is_dict(value, _is_number),
    "Mapping[str, int | None]": lambda value: _is_dict(value, _is_number_or_null),
    "Mapping[str, Any]": lambda value: isinstance(value, dict),
    "Sequence[str | None]": lambda value: (
        isinstance(value, list) and all(each is None or _is_text(each) for each in value)
    ),
}


def finite_or_null(value: Any) -> Any:
    """Replace every float that is not finite by None, at any depth."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite_or_null(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_null(item) for item in value]
    return value


@dataclass(frozen=True, eq=False)
class Facts:
    """What a run's result is made of, wherever its clients are.

    Attributes:
        rounds: Rounds done.
        best: The best round, if there is one yet.
        zero_shot: Test accuracy by client without an adapter, the target among them.
        target: The domain left out, if one was.
        domains: The domain of each client, in the order of the clients.
        samples: Test samples of each client.
        dropped: Clients that the partition left with too few rows: name and rows.
        trainable_parameters: Size of what is trained.
        bytes_per_client: What crosses the network per client and direction in a round.
        model: What identifies a full model; None for an adapter.
    """

    rounds: int
    best: Round | None
    zero_shot: Mapping[str, float]
    target: str | None
    domains: Mapping[str, str]
    samples: Mapping[str, int]
    trainable_parameters: int
    bytes_per_client: int
    dropped: Mapping[str, int] = field(default_factory=dict)
    model: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, run: Run) -> Self:
        """Take them from a run of this process, as its last round left it."""
        federation, server = run.federation, run.state.server
        return cls(
            rounds=run.number,
            best=server.best.round if server.best else None,
            zero_shot=run.state.zero_shot,
            target=federation.target.name if federation.target else None,
            domains={client.name: client.domain for client in federation.clients},
            samples={client.name: len(client.test) for client in federation.clients},
            trainable_parameters=run.trainable_parameters,
            bytes_per_client=run.bytes_per_client,
            dropped=dict(federation.dropped),
            model=run.model.facts,
        )


def result_of(
    facts: Facts, status: Status, seconds: Sequence[float], predictions: Predictions | None = None
) -> RunResult:
    """Sum up a run.

    Args:
        facts: Of the run.
        status: How it ended.
        seconds: Of each round.
        predictions: Those of the best round, if they were made.
    """
    from ..training.metrics import pooled
    from .predictions import ADAPTED, PERSONAL, ZERO_SHOT

    best, zero_shot, target = facts.best, facts.zero_shot, facts.target
    accuracy = best.test if best and best.test else dict.fromkeys(zero_shot, math.nan)
    participants = [name for name in facts.domains if name != target]
    personal = best.personal if best else None
    validation = (best and best.validation) or dict.fromkeys(participants, math.nan)
    return RunResult(
        status=status,
        rounds=facts.rounds,
        target=target,
        best_round=best.number if best else None,
        validation=_finite(validation),
        zero_shot=_finite(zero_shot),
        accuracy=_finite(accuracy),
        generalization=_number(accuracy[target]) if target else None,
        zero_shot_generalization=_number(zero_shot[target]) if target else None,
        personalization=_mean(accuracy[name] for name in participants),
        zero_shot_personalization=_mean(zero_shot[name] for name in participants),
        personal=_finite(personal) if personal is not None else None,
        personal_mean=_mean(personal.values()) if personal else None,
        zero_shot_personal_mean=_mean(zero_shot[name] for name in personal) if personal else None,
        mean=_mean(accuracy.values()),
        zero_shot_mean=_mean(zero_shot.values()),
        pooled=_number(pooled(accuracy, facts.samples)),
        zero_shot_pooled=_number(pooled(zero_shot, facts.samples)),
        domains=dict(facts.domains),
        test_samples=dict(facts.samples),
        dropped=dict(facts.dropped),
        trainable_parameters=facts.trainable_parameters,
        bytes_per_round=facts.bytes_per_client,
        model=facts.model,
        seconds_per_round=_number(median(seconds)) if seconds else None,
        metrics=_metrics(predictions, ADAPTED),
        zero_shot_metrics=_metrics(predictions, ZERO_SHOT),
        personal_metrics=_metrics(predictions, PERSONAL),
    )


def _metrics(predictions: Predictions | None, model: str) -> Metrics | None:
    if predictions is None or model not in predictions.classes:
        return None
    tallies = predictions.tallies(model)
    return {client: finite_or_null(tally.figures()) for client, tally in tallies.items()}


def summary_of(results: Sequence[RunResult], *, complete: bool = True) -> TargetsResult:
    """Sum up the runs over several targets.

    Args:
        results: One or more.
        complete: Whether no more are to come.
    """
    statuses = {result.status for result in results} | (set() if complete else {"interrupted"})
    status: Status = "finished"
    if "interrupted" in statuses:  # it can be resumed, whatever else failed
        status = "interrupted"
    elif "failed" in statuses:
        status = "failed"
    means: dict[str, Any] = {
        name: _mean(_nan(getattr(result, name)) for result in results)
        for name in ("seconds_per_round", *FIGURES, *(f"zero_shot_{name}" for name in FIGURES))
    }
    return TargetsResult(
        status=status,
        targets=[result.target for result in results],
        best_round={str(result.target): result.best_round for result in results},
        zero_shot={str(result.target): result.zero_shot_generalization for result in results},
        accuracy={str(result.target): result.generalization for result in results},
        trainable_parameters=results[0].trainable_parameters,
        bytes_per_round=results[0].bytes_per_round,
        model=results[0].model,
        **means,
    )


def _mean(values: Iterable[float]) -> float | None:
    from ..training.metrics import mean

    return _number(mean(values))


def _finite(values: Mapping[str, float]) -> ByClient:
    return {name: _number(value) for name, value in values.items()}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _nan(value: float | None) -> float:
    return math.nan if value is None else value

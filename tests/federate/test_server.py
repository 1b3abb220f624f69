"""The server alone: names, sample counts and updates, without any data."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedclip.cache import FedclipError
from fedclip.federate.server import Pending, Server, ServerState
from fedclip.federate.settings import Settings
from fedclip.federate.strategies import STRATEGIES
from fedclip.federate.strategies.base import SERVER, Cohort, State, Strategy
from fedclip.federate.training.tasks import Parameters, Update

SAMPLES = {"art": 10, "clipart": 25, "photo": 35, "sketch": 30}
NAMES = ("attention.0.weight", "attention.2.weight")
BYTES = 4 * (6 + 4)


def parameters(*values: float) -> dict[str, torch.Tensor]:
    """Make parameters of two layers that hold one number each."""
    return {
        name: torch.full(shape, value)
        for name, shape, value in zip(NAMES, ((2, 3), (4,)), values, strict=True)
    }


def server_of(strategy: str = "fedavg", **changes: Any) -> tuple[Server, ServerState]:
    settings = Settings.preset("paper", strategy=strategy, rounds=3, **changes)
    server = Server(settings, settings.adapter, SAMPLES)
    return server, server.begin(parameters(1.0, 2.0))


def updates_of(server: Server, state: ServerState, **values: float) -> dict[str, Update]:
    """Make an update of each client given, every number of its parameters being the value."""
    updates = {}
    for client, value in values.items():
        instruction = server.instruct(state)[client]
        sent: Parameters = {name: tensor + value for name, tensor in instruction.parameters.items()}
        extra = {
            part: {name: torch.full_like(tensor, value) for name, tensor in more.items()}
            for part, more in instruction.extra.items()
        }
        updates[client] = Update(client, sent, SAMPLES[client], loss=value, extra=extra)
    return updates


def aggregate(server: Server, state: ServerState, updates: Mapping[str, Update]) -> Pending:
    return server.aggregate(state, server.instruct(state), updates)


def test_every_client_is_told_the_round_the_parameters_and_the_settings_of_training() -> None:
    server, state = server_of(lr=0.5)
    instructions = server.instruct(state)
    assert [*instructions] == [*SAMPLES]
    for instruction in instructions.values():
        assert instruction.round_number == 1
        assert instruction.parameters is state.strategy[SERVER]
        assert instruction.extra == {}
        assert instruction.settings == server.settings.training
        assert instruction.bytes == BYTES


@pytest.mark.parametrize(
    ("strategy", "sent", "extra"),
    [
        ("fedavg", {*NAMES}, set()),
        ("scaffold", {*NAMES}, {"control"}),
        ("fedrep", {NAMES[0]}, set()),
        ("local", set(), set()),
    ],
)
def test_a_strategy_decides_what_is_sent(strategy: str, sent: set[str], extra: set[str]) -> None:
    server, state = server_of(strategy)
    instruction = server.instruct(state)["photo"]
    assert {*instruction.parameters} == sent
    assert {*instruction.extra} == extra


def test_fedavg_weights_updates_by_samples() -> None:
    server, state = server_of()
    pending = aggregate(
        server, state, updates_of(server, state, art=1.0, clipart=2.0, photo=3.0, sketch=4.0)
    )
    mean = (10 * 1 + 25 * 2 + 35 * 3 + 30 * 4) / 100
    assert pending.state.number == pending.round.number == 1
    torch.testing.assert_close(dict(pending.parameters), parameters(1 + mean, 2 + mean))
    assert pending.round.train_loss == pytest.approx(mean)
    assert pending.round.bytes_up == pending.round.bytes_down == 4 * BYTES
    assert pending.round.finite
    assert not pending.state.failed


def test_a_client_without_an_update_is_left_out_of_the_mean() -> None:
    server, state = server_of()
    pending = aggregate(server, state, updates_of(server, state, art=1.0, photo=3.0))
    mean = (10 * 1 + 35 * 3) / 45
    torch.testing.assert_close(dict(pending.parameters), parameters(1 + mean, 2 + mean))
    assert pending.round.train_loss == pytest.approx(mean)
    # It was sent to all four, and two of them answered.
    assert (pending.round.bytes_down, pending.round.bytes_up) == (4 * BYTES, 2 * BYTES)


@pytest.mark.parametrize("weighting", ["samples", "uniform"])
def test_scaffold_moves_its_control_by_the_share_of_those_who_answered(weighting: str) -> None:
    server, state = server_of("scaffold", weighting=weighting)
    pending = aggregate(server, state, updates_of(server, state, art=1.0, photo=3.0))
    moved = (10 * 1 + 35 * 3) / 100 if weighting == "samples" else (1 + 3) / 4
    control = dict(pending.state.strategy["control"])
    torch.testing.assert_close(control, parameters(moved, moved))
    assert (pending.round.bytes_down, pending.round.bytes_up) == (8 * BYTES, 4 * BYTES)


@given(
    strategy=st.sampled_from([name for name in STRATEGIES if name not in ("centralized", "local")]),
    order=st.permutations([*SAMPLES]),
    values=st.lists(st.floats(-2, 2, width=32), min_size=4, max_size=4),
)
def test_updates_may_come_in_any_order(
    strategy: str, order: list[str], values: list[float]
) -> None:
    server, state = server_of(strategy)
    updates = updates_of(server, state, **dict(zip(SAMPLES, values, strict=True)))
    one = aggregate(server, state, updates)
    other = aggregate(server, state, {client: updates[client] for client in order})
    assert one.round == one.round
    assert (one.round.train_loss, one.round.bytes_up) == (
        *(other.round.train_loss, other.round.bytes_up),
    )
    for part, tensors in one.state.strategy.items():
        for name, tensor in tensors.items():
            assert torch.equal(other.state.strategy[part][name], tensor)


@pytest.mark.parametrize(
    "broken",
    [
        Update("photo", parameters(math.nan, 1.0), 35, 0.5),
        Update("photo", parameters(1.0, math.inf), 35, 0.5),
        Update("photo", parameters(1.0, 1.0), 35, math.nan),
        Update("photo", parameters(1.0, 1.0), 35, 0.5, extra={"x": parameters(1.0, math.nan)}),
        Update("photo", parameters(1.0, 1.0), 35, 0.5, finite=False),
    ],
)
def test_an_update_that_is_not_finite_fails_the_round_and_is_never_the_best(
    broken: Update,
) -> None:
    server, state = server_of()
    pending = aggregate(server, state, {**updates_of(server, state, art=1.0), "photo": broken})
    assert not pending.round.finite
    assert pending.state.failed
    assert server.over(pending.state)
    validated = server.validate(pending, dict.fromkeys(SAMPLES, 1.0))
    assert not validated.better
    assert server.close(validated, 0.0)[1].best is None


def test_a_sum_that_overflows_fails_the_round() -> None:
    server, state = server_of("fedavgm", server_lr=1e38)
    pending = aggregate(server, state, updates_of(server, state, art=1e38))
    assert not pending.round.finite


def test_the_best_round_is_the_earlier_of_equals_and_keeps_its_parameters() -> None:
    server, state = server_of()
    scores, kept = (0.5, 0.75, 0.75), []
    for number, score in enumerate(scores, start=1):
        pending = aggregate(server, state, updates_of(server, state, art=float(number)))
        assert server.validates(pending)
        pending = server.validate(pending, {"art": score, "photo": score})
        current, state = server.close(pending, 2.0, test={"art": score})
        assert (current.number, current.seconds, current.mean_validation) == (number, 2.0, score)
        kept.append(pending.parameters)
    assert state.best is not None
    assert state.best.round.number == 2
    assert state.best.round.test == {"art": 0.75}
    assert state.best.parameters is kept[1]
    assert server.over(state)


def test_validation_is_due_every_so_often_and_in_the_last_round() -> None:
    settings = Settings(rounds=7, eval_every=3)
    server, state, due = Server(settings, settings.adapter, SAMPLES), None, []
    state = server.begin(parameters(1.0, 2.0))
    while not server.over(state):
        pending = aggregate(server, state, updates_of(server, state, art=1.0))
        due.append(server.validates(pending))
        _, state = server.close(pending, 0.0)
    assert due == [False, False, True, False, False, True, True]
    assert state.best is None


def test_the_methods_change_nothing() -> None:
    server, state = server_of("fedadam")
    before = {
        part: {name: tensor.clone() for name, tensor in tensors.items()}
        for part, tensors in state.strategy.items()
    }
    aggregate(server, state, updates_of(server, state, art=1.0, photo=3.0))
    assert state.number == 0
    for part, tensors in before.items():
        for name, tensor in tensors.items():
            assert torch.equal(state.strategy[part][name], tensor)


@pytest.mark.parametrize(("strategy", "expected"), [("fedavg", BYTES), ("centralized", 0)])
def test_the_bytes_of_a_client_are_known_before_the_first_round(
    strategy: str, expected: int
) -> None:
    server, state = server_of(strategy)
    assert server.bytes_per_client(state) == expected


@dataclass(frozen=True)
class InPlace(Strategy):
    """Changes what it gets."""

    def aggregate(self, state: State, updates: Sequence[Update], cohort: Cohort) -> State:
        for tensor in state[SERVER].values():
            tensor.add_(1)
        return {**state}


def test_a_strategy_that_changes_tensors_in_place_is_refused() -> None:
    server, state = server_of()
    settings = replace(server.settings, strategy=InPlace())
    careless = replace(server, settings=settings)
    with pytest.raises(FedclipError, match="aggregate changes tensors in place"):
        aggregate(careless, state, updates_of(server, state, art=1.0))

"""The server's side of FedAvg and FedOpt, compared with Flower's."""

from collections.abc import Sequence
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from fedclip.federate.strategies import STRATEGIES
from fedclip.federate.strategies.base import SERVER, Cohort
from fedclip.federate.training.tasks import Parameters, Update

pytestmark = pytest.mark.flower
common = pytest.importorskip("flwr.common", reason="flwr is not installed: CONTRIBUTING.md")
flower = pytest.importorskip("flwr.server.strategy")

NAMES = ("weight", "bias")
SIZES = (10, 35, 3)
ROUNDS = 6
RATE, BETA, BETA2, TAU = 0.1, 0.8, 0.95, 0.01


def arrays_of(parameters: Parameters) -> list[Any]:
    return [parameters[name].numpy() for name in NAMES]


def flower_strategy(name: str, first: Parameters) -> Any:
    initial = common.ndarrays_to_parameters(arrays_of(first))
    if name == "fedavg":
        return flower.FedAvg(initial_parameters=initial)
    if name == "fedavgm":
        return flower.FedAvgM(
            initial_parameters=initial, server_learning_rate=RATE, server_momentum=BETA
        )
    made = {"fedadam": flower.FedAdam, "fedyogi": flower.FedYogi}[name](
        initial_parameters=initial, eta=RATE, beta_1=BETA, beta_2=BETA2, tau=TAU
    )
    # The paper's second moment begins at tau^2, Flower's at 0 unless it is set.
    made.v_t = [np.full_like(array, TAU**2) for array in arrays_of(first)]
    return made


def aggregate(strategy: Any, number: int, updates: Sequence[Update]) -> list[Any]:
    if isinstance(strategy, flower.FedAdam):
        # Flower corrects the moments' bias by way of the rate; the paper does not.
        correction = np.sqrt(1 - BETA2 ** (number + 1)) / (1 - BETA ** (number + 1))
        strategy.eta = RATE / correction
    results = [
        (
            Mock(),
            common.FitRes(
                status=common.Status(common.Code.OK, ""),
                parameters=common.ndarrays_to_parameters(arrays_of(update.parameters)),
                num_examples=update.samples,
                metrics={},
            ),
        )
        for update in updates
    ]
    parameters, _ = strategy.aggregate_fit(number, results, [])
    arrays: list[Any] = common.parameters_to_ndarrays(parameters)
    return arrays


@pytest.mark.parametrize("name", ["fedavg", "fedavgm", "fedadam", "fedyogi"])
def test_the_server_ends_where_flowers_does(name: str) -> None:
    given: dict[str, Any] = {}
    if name != "fedavg":
        given |= {"server_lr": RATE, "server_momentum": BETA}
    if name in ("fedadam", "fedyogi"):
        given |= {"server_beta2": BETA2, "tau": TAU}
    cohort = Cohort({str(index): size for index, size in enumerate(SIZES)}, "samples")
    random = torch.Generator().manual_seed(1)

    def draw() -> Parameters:
        return {
            "weight": torch.randn(4, 3, generator=random),
            "bias": torch.randn(3, generator=random),
        }

    first = draw()
    ours, theirs = STRATEGIES.make(name, given), flower_strategy(name, first)
    state = ours.init(first)
    for number in range(1, ROUNDS + 1):
        updates = [
            Update(str(index), draw(), samples, loss=0.0) for index, samples in enumerate(SIZES)
        ]
        state = ours.aggregate(state, updates, cohort)
        expected = aggregate(theirs, number, updates)
        for array, tensor in zip(expected, arrays_of(state[SERVER]), strict=True):
            np.testing.assert_allclose(tensor, array, rtol=0, atol=1e-5)

"""FedOpt: the mean update of the clients is a gradient for an optimizer at the server.

Reddi et al. 2021, "Adaptive Federated Optimization" (arXiv:2003.00295, algorithm 2); FedAvgM is
of Hsu et al. 2019 (arXiv:1909.06335). With d the weighted mean of ``w_i - w``:

- FedAvgM: ``m = b1 m + d``, ``w = w + lr m``
- FedAdam: ``m = b1 m + (1 - b1) d``, ``v = b2 v + (1 - b2) d^2``,
  ``w = w + lr m / (sqrt(v) + tau)``
- FedYogi: the same with ``v = v - (1 - b2) d^2 sign(v - d^2)``

At first m = 0 and v = tau^2, and as in the paper nothing corrects their bias. b1 = 0.9,
b2 = 0.99 and tau = 1e-3 are the paper's.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...cache.common.fields import option
from .aggregate import zeros_like
from .base import SERVER, Cohort, State, Strategy

if TYPE_CHECKING:
    from torch import Tensor

    from ..training.tasks import Parameters, Update

MOMENTUM = "momentum"
SECOND = "second-moment"

# The papers' rates are for whole networks. These were chosen for adapters, on seeds that no figure
# in the docs is from: docs/ablations.md.
_ADAPTED = "chosen for adapters, docs/ablations.md"


@dataclass(frozen=True)
class FedAvgM(Strategy):
    """FedAvg with momentum at the server (Hsu et al. 2019)."""

    server_lr: float = option(
        1.0, above=0, most=1e38, help="Learning rate of the server.", source=_ADAPTED
    )
    server_momentum: float = option(
        0.9, least=0, below=1, help="Decay of the first moment.", source="Hsu et al. 2019"
    )

    def init(self, parameters: Parameters) -> State:
        """Start without momentum."""
        return {SERVER: parameters, MOMENTUM: zeros_like(parameters)}

    def aggregate(self, state: State, updates: Sequence[Update], cohort: Cohort) -> State:
        """Move the server by its momentum."""
        server, mean = state[SERVER], cohort.average(updates)
        momentum = {
            name: self.server_momentum * old + (mean[name] - server[name])
            for name, old in state[MOMENTUM].items()
        }
        moved = {name: tensor + self.server_lr * momentum[name] for name, tensor in server.items()}
        return {SERVER: moved, MOMENTUM: momentum}


@dataclass(frozen=True)
class Adaptive(Strategy):
    """What FedAdam and FedYogi share: a rate for each number, from its second moment."""

    server_lr: float = option(
        1e-2, above=0, most=1e38, help="Learning rate of the server.", source=_ADAPTED
    )
    server_momentum: float = option(
        0.9, least=0, below=1, help="Decay of the first moment.", source="Reddi et al. 2021"
    )
    server_beta2: float = option(
        0.99, least=0, below=1, help="Decay of the second moment.", source="Reddi et al. 2021"
    )
    tau: float = option(
        1e-3,
        above=0,
        most=1e6,
        help="Degree of adaptivity: added to the root of the second moment.",
        source="Reddi et al. 2021",
    )

    def init(self, parameters: Parameters) -> State:
        """Start with a first moment of 0 and a second of tau^2."""
        second = self.tau**2
        return {
            SERVER: parameters,
            MOMENTUM: zeros_like(parameters),
            SECOND: {name: w.new_full(w.shape, second) for name, w in parameters.items()},
        }

    def aggregate(self, state: State, updates: Sequence[Update], cohort: Cohort) -> State:
        """Move the server by its first moment over the root of its second."""
        rate, beta, tau = self.server_lr, self.server_momentum, self.tau
        mean = cohort.average(updates)
        server, momentum, second = {}, {}, {}
        for name, tensor in state[SERVER].items():
            change = mean[name] - tensor
            momentum[name] = beta * state[MOMENTUM][name] + (1 - beta) * change
            second[name] = self.second_moment(state[SECOND][name], change.square())
            server[name] = tensor + rate * momentum[name] / (second[name].sqrt() + tau)
        return {SERVER: server, MOMENTUM: momentum, SECOND: second}

    @abstractmethod
    def second_moment(self, old: Tensor, square: Tensor) -> Tensor:
        """Update the second moment by a squared change."""


@dataclass(frozen=True)
class FedAdam(Adaptive):
    """Adam at the server: the second moment is a moving mean (Reddi et al. 2021)."""

    def second_moment(self, old: Tensor, square: Tensor) -> Tensor:
        """Move the mean towards `square`."""
        return self.server_beta2 * old + (1 - self.server_beta2) * square


@dataclass(frozen=True)
class FedYogi(Adaptive):
    """Yogi at the server: the second moment changes by at most the square (Reddi et al. 2021)."""

    def second_moment(self, old: Tensor, square: Tensor) -> Tensor:
        """Step towards `square`."""
        return old - (1 - self.server_beta2) * square * (old - square).sign()

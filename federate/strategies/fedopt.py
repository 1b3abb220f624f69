"""FedOpt: the mean update of the clients is a gradient for an optimizer of the server's.

Reddi et al. 2021, "Adaptive Federated Optimization" (arXiv:2003.00295, algorithm 2); FedAvgM is
of Hsu et al. 2019 (arXiv:1909.06335). With d the weighted mean of ``w_i - w``:

- FedAvgM: ``m = b1 m + d``, ``w = w + lr m``
- FedAdam: ``m = b1 m + (1 - b1) d``, ``v = b2 v + (1 - b2) d^2``,
  ``w = w + lr m / (sqrt(v) + tau)``
- FedYogi: the same with ``v = v - (1 - b2) d^2 sign(v - d^2)``

At first m = 0 and v = tau^2, and as in the paper nothing corrects their bias. b1 = 0.9,
b2 = 0.99 and tau = 1e-3 are the paper's.
"""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from ..training.tasks import ClientUpdate, Parameters
from .base import SERVER, State, Strategy, average, zeros_like

MOMENTUM = "momentum"
SECOND = "second-moment"


class FedAvgM(Strategy):
    """Hsu et al. 2019: momentum."""

    def init(self, parameters: Parameters) -> State:
        """Begin without momentum."""
        return {SERVER: parameters, MOMENTUM: zeros_like(parameters)}

    def apply(self, state: State, updates: Sequence[ClientUpdate]) -> State:
        """Move the server by its momentum."""
        server, mean = state[SERVER], average(updates, self.settings.weighting)
        rate, beta = self.settings.option("server_lr"), self.settings.option("server_momentum")
        momentum = {
            name: beta * old + (mean[name] - server[name]) for name, old in state[MOMENTUM].items()
        }
        moved = {name: tensor + rate * momentum[name] for name, tensor in server.items()}
        return {SERVER: moved, MOMENTUM: momentum}


class _Adaptive(Strategy):
    """What FedAdam and FedYogi share: a rate for each number, from its second moment."""

    def init(self, parameters: Parameters) -> State:
        """Begin with a first moment of 0 and a second of tau^2."""
        second = self.settings.option("tau") ** 2
        return {
            SERVER: parameters,
            MOMENTUM: zeros_like(parameters),
            SECOND: {name: torch.full_like(w, second) for name, w in parameters.items()},
        }

    def apply(self, state: State, updates: Sequence[ClientUpdate]) -> State:
        """Move the server by its first moment over the root of its second."""
        option = self.settings.option
        rate, beta, tau = option("server_lr"), option("server_momentum"), option("tau")
        mean = average(updates, self.settings.weighting)
        server, momentum, second = {}, {}, {}
        for name, tensor in state[SERVER].items():
            change = mean[name] - tensor
            momentum[name] = beta * state[MOMENTUM][name] + (1 - beta) * change
            second[name] = self.second_moment(state[SECOND][name], change.square())
            server[name] = tensor + rate * momentum[name] / (second[name].sqrt() + tau)
        return {SERVER: server, MOMENTUM: momentum, SECOND: second}

    @abstractmethod
    def second_moment(self, old: Tensor, square: Tensor) -> Tensor:
        """Take a squared change into the second moment."""


class FedAdam(_Adaptive):
    """Reddi et al. 2021: the second moment is a moving mean."""

    def second_moment(self, old: Tensor, square: Tensor) -> Tensor:
        """Move the mean towards `square`."""
        beta = self.settings.option("server_beta2")
        return beta * old + (1 - beta) * square


class FedYogi(_Adaptive):
    """Reddi et al. 2021: the second moment changes by no more than the square."""

    def second_moment(self, old: Tensor, square: Tensor) -> Tensor:
        """Step towards `square`."""
        return old - (1 - self.settings.option("server_beta2")) * square * (old - square).sign()

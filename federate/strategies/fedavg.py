"""FedAvg: the server's parameters become the mean of the clients'.

McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from
Decentralized Data" (arXiv:1602.05629); FedCLIP uses it on adapters (Lu et al. 2023,
arXiv:2302.13485, algorithm 1).

``w = sum_i n_i / sum_j n_j * w_i`` with n_i the training samples of client i, or all
n_i equal, as the public FedCLIP script has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .base import SERVER, Cohort, State, Strategy

if TYPE_CHECKING:
    from ..training.tasks import Update


@dataclass(frozen=True)
class FedAvg(Strategy):
    """Weighted mean of the clients' parameters (McMahan et al. 2017)."""

    def aggregate(self, state: State, updates: Sequence[Update], cohort: Cohort) -> State:
        """Replace the server's parameters by the mean of the clients'."""
        return {**state, SERVER: cohort.average(updates)}

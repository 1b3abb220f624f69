"""What the server does with updates: one algorithm a file.

An algorithm is a few pure functions over a state, which is nothing but named parameters, so
that a run can be saved after any round as it is (the manner of Ro et al. 2021, "FedJAX",
arXiv:2108.02117).
"""

from collections.abc import Mapping

from ..data.federation import Federation
from ..settings import Settings, StrategyName
from .base import SERVER, State, Strategy
from .centralized import Centralized
from .ditto import Ditto
from .fedavg import FedAvg
from .fedopt import FedAdam, FedAvgM, FedYogi
from .fedprox import FedProx
from .fedrep import FedRep
from .local import Local
from .scaffold import Scaffold

__all__ = ["SERVER", "STRATEGIES", "State", "Strategy", "make_strategy"]

STRATEGIES: Mapping[StrategyName, type[Strategy]] = {
    "fedavg": FedAvg,
    "fedprox": FedProx,
    "fedavgm": FedAvgM,
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
    "scaffold": Scaffold,
    "fedrep": FedRep,
    "ditto": Ditto,
    "local": Local,
    "centralized": Centralized,
}


def make_strategy(federation: Federation, settings: Settings) -> Strategy:
    """Make the strategy that a run's settings name."""
    return STRATEGIES[settings.strategy](federation, settings)

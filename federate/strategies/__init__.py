"""What the server does with updates, and what its clients do for it: one algorithm a file."""

from ..registry import Registry
from .base import Strategy
from .centralized import Centralized
from .ditto import Ditto
from .fedavg import FedAvg
from .fedopt import FedAdam, FedAvgM, FedYogi
from .fedprox import FedProx
from .fedrep import FedRep
from .local import Local
from .scaffold import Scaffold

STRATEGIES: Registry[Strategy] = Registry(
    "strategy",
    Strategy,  # type: ignore[type-abstract]
    {
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
    },
    group="fedclip.strategies",
)

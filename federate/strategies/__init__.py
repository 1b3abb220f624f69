"""What the server does with updates, and what its clients do for it: one algorithm a file."""

from ..registry import Registry
from .base import Strategy

STRATEGIES: Registry[Strategy] = Registry(
    "strategy",
    Strategy,  # type: ignore[type-abstract]
    __name__,
    {
        "fedavg": "fedavg:FedAvg",
        "fedprox": "fedprox:FedProx",
        "fedavgm": "fedopt:FedAvgM",
        "fedadam": "fedopt:FedAdam",
        "fedyogi": "fedopt:FedYogi",
        "scaffold": "scaffold:Scaffold",
        "fedrep": "fedrep:FedRep",
        "ditto": "ditto:Ditto",
        "local": "local:Local",
        "centralized": "centralized:Centralized",
    },
    group="fedclip.strategies",
)

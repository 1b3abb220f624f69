"""What methods from outside the package are made of: see docs/extend.md."""

from ..cache.common.fields import option
from .models.adapters import Adapter
from .models.losses import cosine_logits
from .strategies.aggregate import difference, weighted_sum, zeros_like
from .strategies.base import (
    OWN,
    PERSONAL,
    SERVER,
    SHARED,
    ClientRound,
    Cohort,
    Report,
    State,
    Strategy,
)
from .strategies.fedavg import FedAvg
from .training.tasks import LocalTask, Proximal, Trained, Update

__all__ = [
    "OWN",
    "PERSONAL",
    "SERVER",
    "SHARED",
    "Adapter",
    "ClientRound",
    "Cohort",
    "FedAvg",
    "LocalTask",
    "Proximal",
    "Report",
    "State",
    "Strategy",
    "Trained",
    "Update",
    "cosine_logits",
    "difference",
    "option",
    "weighted_sum",
    "zeros_like",
]

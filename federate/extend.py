"""What methods from outside the package are made of: see docs/extend.md."""

from ..cache.common.fields import option
from .models.adapters import Adapter
from .models.losses import Batch, Loss, cosine_logits
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

__all__ = [
    "OWN",
    "PERSONAL",
    "SERVER",
    "SHARED",
    "Adapter",
    "Batch",
    "ClientRound",
    "Cohort",
    "Loss",
    "Report",
    "State",
    "Strategy",
    "cosine_logits",
    "difference",
    "option",
    "weighted_sum",
    "zeros_like",
]

"""Centralized: all participants' training samples in one place.

The upper bound that federation is measured against: one client has the union of the
participants' training parts, and trains on it for as many epochs a round; ``w = argmin sum_i
n_i / n F_i(w)`` without the constraint that samples stay where they are. No parameters cross the
network, as the samples themselves were brought together. Validation and test stay by client.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from .base import SERVER, Cohort, State, Strategy

if TYPE_CHECKING:
    from ..training.tasks import Update


@dataclass(frozen=True)
class Centralized(Strategy):
    """One model trained on everybody's samples: the upper bound."""

    pooled: ClassVar[bool] = True

    def aggregate(self, state: State, updates: Sequence[Update], cohort: Cohort) -> State:
        """Take what the only client trained."""
        (update,) = updates
        return {**state, SERVER: update.parameters}

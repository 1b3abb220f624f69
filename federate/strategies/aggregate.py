"""Sums and averages of parameters.

Importing this imports no torch, so that the command line can list strategies before it needs any.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..training.tasks import Parameters


def weighted_sum(weights: Sequence[float], several: Sequence[Parameters]) -> Parameters:
    """Add parameters up, name by name.

    Args:
        weights: One for each of `several`.
        several: At least one, of the same names and shapes.
    """
    return {
        name: sum(
            (
                weight * parameters[name]
                for weight, parameters in zip(weights, several, strict=True)
            ),
            start=tensor.new_zeros(tensor.shape),
        ).to(tensor.dtype)  # batch normalization counts its batches
        for name, tensor in several[0].items()
    }


def zeros_like(parameters: Parameters) -> Parameters:
    """Make zeros of the same names and shapes."""
    return {name: tensor.new_zeros(tensor.shape) for name, tensor in parameters.items()}


def difference(one: Parameters, other: Parameters) -> Parameters:
    """Subtract `other` from `one`, name by name."""
    return {name: tensor - other[name] for name, tensor in one.items()}

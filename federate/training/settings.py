"""The settings of local training: what a client is sent besides parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ...cache import FedclipError
from ...cache.common.fields import check_options, option
from ..models.losses import ClipLoss, Loss

OptimizerName = Literal["adam", "sgd"]


@dataclass(frozen=True)
class TrainingSettings:
    """How a client trains in a round.

    Attributes:
        betas: Adam's decay rates.
        eps: Adam's epsilon.
        loss: What is minimized.
    """

    PANEL: ClassVar[str] = "Local training"

    local_epochs: int = option(
        1, least=1, most=10**6, help="Passes over its training part that a client makes in a round."
    )
    batch_size: int = option(
        32,
        least=2,
        most=10**9,
        help="Samples in a minibatch; a final minibatch of one sample is skipped.",
    )
    optimizer: OptimizerName = option("adam", help="Optimizer of the clients; sgd has no momentum.")
    lr: float = option(5e-5, above=0, most=1e38, help="Learning rate of the clients.")
    weight_decay: float = option(
        0.2,
        least=0,
        most=1e38,
        help="L2 penalty, added to the gradient (Adam's, not AdamW's).",
    )
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    loss: Loss = ClipLoss()
    seed: int = option(0, least=0, panel="Output", help="Seed of every random draw.")

    def __post_init__(self) -> None:
        check_options(self)
        betas: Any = self.betas
        pair = isinstance(betas, tuple) and len(betas) == 2
        if not pair or not all(map(_is_decay_rate, betas)) or self.eps <= 0:
            raise FedclipError(
                f"betas {self.betas} and eps {self.eps}: must be two numbers such as 0.9, from 0 "
                "to below 1, and one above 0"
            )


def _is_decay_rate(value: Any) -> bool:
    return isinstance(value, float) and 0 <= value < 1

"""What a run can be told, its defaults and its presets."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from ..cache import FedclipError

Weighting = Literal["samples", "uniform"]
LossName = Literal["clip", "class"]
OptimizerName = Literal["adam", "sgd"]
StrategyName = Literal["fedavg", "fedprox"]
AdapterName = Literal[
    "attention",
    "attention-text",
    "attention-both",
    "linear",
    "residual",
    "taskres",
    "scale",
    "linear-probe",
    "none",
]

# What the source of each adapter that blends sets its ratio to.
RATIOS: Mapping[AdapterName, float] = {"residual": 0.2, "taskres": 0.5}

PAPER = "paper"

# `paper` is Lu et al. 2023 to the letter; `tuned` is what gains more on real features.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    PAPER: {},
    "tuned": {"loss": "class", "lr": 3e-4, "weight_decay": 0.0},
}


@dataclass(frozen=True)
class Settings:
    """Everything that shapes a run's numbers, apart from the cache and the target.

    Attributes:
        rounds: Rounds of federation.
        participation: Clients that train in a round: a share of them (a float up to 1), or a
            number (an int); one at least.
        eval_every: Rounds between two validations; the last is always validated. With more
            than 1, test parts are evaluated only where validation is better than ever.
        local_epochs: Passes over its training part that a client makes in a round.
        batch_size: Samples in a minibatch; a last one of a single sample is skipped.
        adapter: What is trained.
        ratio: CLIP-Adapter's ratio (`residual`) or TaskRes's scale (`taskres`); None for
            that of the source, and for adapters without one.
        strategy: What the server does with updates.
        mu: Strength of FedProx's pull to the server's parameters; of no use to others.
        optimizer: `adam`, or `sgd` without momentum.
        lr: The optimizer's learning rate.
        weight_decay: L2 penalty, added to the gradient (not AdamW's).
        betas: Adam's decay rates.
        eps: Adam's epsilon.
        weighting: Whether the server weighs clients by their training samples or equally.
        loss: `clip`, symmetric cross-entropy inside the minibatch, or `class`,
            cross-entropy over all class texts.
        feature_norm: L2 norm that image features are rescaled to; None leaves them raw.
        prompts: Templates of the class texts, several are averaged; none: the first cached.
        clients: Clients that each domain's samples are dealt to; None keeps one a domain.
        alpha: Concentration of the Dirichlet draw that deals them.
        seed: Of splits, partitions, batches and the adapter's first parameters.
    """

    rounds: int = 50
    participation: int | float = 1.0
    eval_every: int = 1
    local_epochs: int = 1
    batch_size: int = 32
    adapter: AdapterName = "attention"
    ratio: float | None = None
    strategy: StrategyName = "fedavg"
    mu: float = 1e-3
    optimizer: OptimizerName = "adam"
    lr: float = 5e-5
    weight_decay: float = 0.2
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    weighting: Weighting = "samples"
    loss: LossName = "clip"
    feature_norm: float | None = None
    prompts: tuple[str, ...] = ()
    clients: int | None = None
    alpha: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        least = {
            "rounds": 1,
            "eval_every": 1,
            "local_epochs": 1,
            "batch_size": 2,
            "clients": 1,
            "seed": 0,
        }
        for name, minimum in least.items():
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise FedclipError(f"{name} is {value}; it must be at least {minimum}")
        share = isinstance(self.participation, float)
        if not (0 < self.participation <= 1 if share else self.participation >= 1):
            raise FedclipError(
                f"participation is {self.participation}; it must be a share such as 0.1, up to "
                "1.0, or a number of clients such as 20"
            )
        for name in ("lr", "alpha", "feature_norm", "ratio"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise FedclipError(f"{name} is {value}; it must be a positive number")
        for name in ("weight_decay", "mu"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise FedclipError(f"{name} is {value}; it must not be negative")
        for name, allowed in (
            ("weighting", get_args(Weighting)),
            ("loss", get_args(LossName)),
            ("adapter", get_args(AdapterName)),
            ("strategy", get_args(StrategyName)),
            ("optimizer", get_args(OptimizerName)),
        ):
            if getattr(self, name) not in allowed:
                names = f"{', '.join(allowed[:-1])} or {allowed[-1]}"
                raise FedclipError(f"{name} is {getattr(self, name)!r}; it must be {names}")
        if self.ratio is not None and self.adapter not in RATIOS:
            raise FedclipError(
                f"ratio is {self.ratio}, but the adapter {self.adapter} has none; "
                f"{' and '.join(RATIOS)} have one"
            )
        if self.ratio is not None and self.adapter == "residual" and self.ratio > 1:
            raise FedclipError(f"ratio is {self.ratio}; of the adapter residual it is at most 1")

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "Settings":
        """Take a preset's settings, and override those that are not None.

        Raises:
            FedclipError: there is no such preset, or a value makes no sense.
        """
        if name not in PRESETS:
            raise FedclipError(f"there is no preset {name!r}; there is {', '.join(PRESETS)}")
        given = {key: value for key, value in overrides.items() if value is not None}
        return replace(cls(), **{**PRESETS[name], **given})

    def to_json(self) -> dict[str, Any]:
        """Give the settings as JSON values."""
        values = asdict(self)
        return {**values, "betas": list(self.betas), "prompts": list(self.prompts)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Settings":
        """Take what `to_json` gave; what it lacks has its default.

        Raises:
            FedclipError: a value makes no sense.
            TypeError: there is a setting that is none, or of another type.
        """
        tuples = {name: tuple(values[name]) for name in ("betas", "prompts") if name in values}
        return cls(**{**values, **tuples})

"""What a run can be told, its defaults and its presets."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from ..cache import FedclipError

Weighting = Literal["samples", "uniform"]
LossName = Literal["clip", "class"]
OptimizerName = Literal["adam", "sgd"]
StrategyName = Literal[
    "fedavg",
    "fedprox",
    "fedavgm",
    "fedadam",
    "fedyogi",
    "scaffold",
    "fedrep",
    "ditto",
    "local",
    "centralized",
]
AdapterName = Literal[
    "attention",
    "attention-text",
    "attention-both",
    "linear",
    "residual",
    "taskres",
    "scale",
    "linear-probe",
    "cache-model",
    "none",
]

# What the source of each adapter that blends sets its ratio to.
RATIOS: Mapping[AdapterName, float] = {"residual": 0.2, "taskres": 0.5, "cache-model": 1.0}

# Options that some strategies have, with their default: mu is the least that FedProx's paper tries,
# lambda and the moments are the papers'. The server's rates were chosen for adapters, on
# seeds that no figure in the docs is from: docs/ablations.md.
STRATEGY_OPTIONS: Mapping[str, Mapping[StrategyName, float]] = {
    "mu": {"fedprox": 1e-3},
    "ditto_lambda": {"ditto": 1.0},
    "server_lr": {"fedavgm": 1.0, "fedadam": 1e-2, "fedyogi": 1e-2},
    "server_momentum": {"fedavgm": 0.9, "fedadam": 0.9, "fedyogi": 0.9},
    "server_beta2": {"fedadam": 0.99, "fedyogi": 0.99},
    "tau": {"fedadam": 1e-3, "fedyogi": 1e-3},
}

# What fedrep leaves with the client: the names' beginnings, of the adapters that have a part
# to keep. Of two layers it is the second, as the head is in FedRep; of two sides the texts'.
LOCAL_PARTS: Mapping[AdapterName, tuple[str, ...]] = {
    "attention": ("attention.2.",),
    "attention-text": ("attention.2.",),
    "attention-both": ("text_attention.",),
    "linear": ("linear.bias",),
    "residual": ("bottleneck.2.",),
}

PAPER = "paper"

# `paper` is Lu et al. 2023 to the letter; `tuned` is what gains more on real features.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    PAPER: {},
    "tuned": {"loss": "class", "lr": 3e-4, "weight_decay": 0.0},
}

# What SGD takes in place of a preset's values, which mean nothing to it.
SGD: Mapping[str, Any] = {"lr": 0.1, "weight_decay": 0.0}


@dataclass(frozen=True)
class Settings:
    """Everything that shapes a run's numbers, apart from the cache and the target.

    Attributes:
        rounds: Rounds of federation.
        participation: Clients that train in a round: a share of them (a float up to 1), or a
            number (an int); one at least.
        eval_every: Rounds between two validations; the last is always validated. With more
            than 1, test parts are evaluated only where validation is better than ever.
        data_fraction: Share of its training part that each client trains on.
        local_epochs: Passes over its training part that a client makes in a round.
        batch_size: Samples in a minibatch; a last one of a single sample is skipped.
        adapter: What is trained.
        ratio: CLIP-Adapter's ratio (`residual`), TaskRes's scale (`taskres`) or the weight of
            Tip-Adapter's cache (`cache-model`); None for that of the source, and for adapters
            without one.
        strategy: What the server does with updates.
        mu: FedProx's pull to the server's parameters. This and the next five are None for
            the source's value, and for strategies without one.
        ditto_lambda: Ditto's pull of a client's own model to the server's.
        server_lr: Learning rate of FedAvgM, FedAdam and FedYogi.
        server_momentum: Their decay of the first moment.
        server_beta2: Decay of the second moment of FedAdam and FedYogi.
        tau: What FedAdam and FedYogi add to the root of the second moment.
        optimizer: `adam`, or `sgd` without momentum.
        lr: The optimizer's learning rate.
        weight_decay: L2 penalty, added to the gradient (not AdamW's).
        betas: Adam's decay rates.
        eps: Adam's epsilon.
        weighting: Whether the server weighs clients by their training samples or equally.
        loss: `clip`, symmetric cross-entropy inside the minibatch, or `class`,
            cross-entropy over all class texts.
        feature_norm: L2 norm that image features are rescaled to; None leaves them raw.
        prompts: Templates of the class texts, several are averaged; none: the first cached;
            `all`: every one cached.
        clients: Clients that each domain's samples are dealt to; None keeps one a domain.
        alpha: Concentration of the Dirichlet draw that deals them.
        seed: Of splits, partitions, batches and the adapter's first parameters.
    """

    rounds: int = 50
    participation: int | float = 1.0
    eval_every: int = 1
    data_fraction: float = 1.0
    local_epochs: int = 1
    batch_size: int = 32
    adapter: AdapterName = "attention"
    ratio: float | None = None
    strategy: StrategyName = "fedavg"
    mu: float | None = None
    ditto_lambda: float | None = None
    server_lr: float | None = None
    server_momentum: float | None = None
    server_beta2: float | None = None
    tau: float | None = None
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
        if not 0 < self.data_fraction <= 1:
            raise FedclipError(
                f"data_fraction is {self.data_fraction}; it must be a share such as 0.1, up to 1"
            )
        for name in ("lr", "alpha", "feature_norm", "ratio", "server_lr", "tau"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise FedclipError(f"{name} is {value}; it must be a positive number")
        if self.feature_norm is not None and not 1e-6 <= self.feature_norm <= 1e6:
            raise FedclipError(
                f"feature_norm is {self.feature_norm}; float32 wants it between 1e-6 and 1e6"
            )
        for name in ("weight_decay", "mu", "ditto_lambda"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise FedclipError(f"{name} is {value}; it must not be negative")
        for name in ("server_momentum", "server_beta2"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise FedclipError(f"{name} is {value}; it must be at least 0 and below 1")
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
                f"{', '.join(RATIOS)} have one"
            )
        if self.ratio is not None and self.adapter == "residual" and self.ratio > 1:
            raise FedclipError(f"ratio is {self.ratio}; of the adapter residual it is at most 1")

        self._check_strategy()

    def _check_strategy(self) -> None:
        """Refuse what does not go with the strategy."""
        for name, owners in STRATEGY_OPTIONS.items():
            if getattr(self, name) is not None and self.strategy not in owners:
                raise FedclipError(
                    f"{name} is {getattr(self, name)}, but the strategy {self.strategy} has none; "
                    f"it is for {' and '.join(owners)}"
                )
        if self.strategy == "scaffold" and self.optimizer != "sgd":
            raise FedclipError(
                f"optimizer is {self.optimizer!r}, but the controls of the strategy scaffold are "
                "made of plain gradient steps; give sgd, or no optimizer"
            )
        if self.adapter == "cache-model" and self.strategy != "local":
            raise FedclipError(
                "the adapter cache-model is made of a client's own samples, and nothing of it is "
                f"sent, so the strategy {self.strategy} has nothing to do; give the strategy local"
            )
        if self.strategy == "fedrep" and self.adapter not in LOCAL_PARTS:
            raise FedclipError(
                f"the adapter {self.adapter} has no part that the strategy fedrep could keep "
                f"local; {', '.join(LOCAL_PARTS)} have one"
            )
        everyone = isinstance(self.participation, float) and self.participation == 1
        if self.strategy == "centralized" and not everyone:
            raise FedclipError(
                f"participation is {self.participation}, but the strategy centralized trains on "
                "all participants' samples at once; leave it at 1.0"
            )

    def option(self, name: str) -> float:
        """Give an option of the strategy: what it was set to, or its source's value."""
        value = getattr(self, name)
        return float(STRATEGY_OPTIONS[name][self.strategy] if value is None else value)

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "Settings":
        """Take a preset's settings, and override those that are not None.

        A preset's learning rate and weight decay are Adam's, so SGD has its own.

        Raises:
            FedclipError: there is no such preset, or a value makes no sense.
        """
        if name not in PRESETS:
            raise FedclipError(f"there is no preset {name!r}; there is {', '.join(PRESETS)}")
        given = {key: value for key, value in overrides.items() if value is not None}
        if given.get("strategy") == "scaffold":
            given = {"optimizer": "sgd", **given}
        own = SGD if given.get("optimizer") == "sgd" else {}
        return replace(cls(), **{**PRESETS[name], **own, **given})

    def to_json(self) -> dict[str, Any]:
        """Give the settings as JSON values."""
        values = asdict(self)
        for name, owners in STRATEGY_OPTIONS.items():
            if self.strategy in owners:
                values[name] = self.option(name)
        values["ratio"] = RATIOS.get(self.adapter) if self.ratio is None else self.ratio
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

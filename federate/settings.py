"""All settings of a run, its methods among them, and the presets.

Importing this imports neither torch nor numpy: the command line makes its options from it.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self

from ..cache import FedclipError
from ..cache.common.fields import Option, flag, listed, merge_options, option, options_of, suggest
from .data.partition import PARTITIONS, Partition
from .models.adapters import ADAPTERS, Adapter, Attention, NoAdapter
from .models.base import Model
from .models.heads import WithHead
from .models.losses import LOSSES
from .registry import Registry
from .strategies import STRATEGIES
from .strategies.base import Strategy, Weighting
from .strategies.fedavg import FedAvg
from .training.settings import TrainingSettings

logger = logging.getLogger(__name__)

PAPER = "paper"

# `paper` is Lu et al. 2023 to the letter; `tuned` is what gains more on real features.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    PAPER: {},
    "tuned": {"loss": "class", "lr": 3e-4, "weight_decay": 0.0},
}

# What SGD takes in place of a preset's values, which are Adam's.
_SGD: Mapping[str, Any] = {"lr": 0.1, "weight_decay": 0.0}

# The panels of the help, in their order.
_PANELS = ("Data", "Method", "Options of methods", "Federation", "Local training", "Output")

# Options of methods in fedclip 0.1, which recorded those without effect too.
_FIRST_OPTIONS: Mapping[str, Any] = {
    **dict.fromkeys(("mu", "ditto_lambda", "server_lr", "server_momentum", "server_beta2", "tau")),
    **dict.fromkeys(("ratio", "clients")),
    "alpha": 0.5,
}

# Hashes of sources, as to_json names them.
SOURCES = frozenset({"adapter_source", "strategy_source", "loss_source", "partition_source"})
# Names of options that no method may have: they mean something else, or stand in config.json.
_RESERVED = SOURCES | {"preset", "cache", "target", "seeds", "help", "grid", "table", "vary"}

# In place of templates: every template that the cache has.
ALL_PROMPTS = "all"

# What images or texts are compared with: see `Settings.class_vectors`.
TEXT, MEANS, HEAD = CLASS_VECTORS = ("text", "means", "head")

# Settings that came after fedclip 0.1; a run's name has them only if they are not the default.
_LATER = ("class_vectors", "logit_scale")

REGISTRIES: Mapping[str, Registry[Any]] = {
    "adapter": ADAPTERS,
    "strategy": STRATEGIES,
    "loss": LOSSES,
    "partition": PARTITIONS,
}


@dataclass(frozen=True)
class Methods:
    """The methods of a run by name."""

    PANEL: ClassVar[str] = "Method"

    adapter: str = option(
        "attention",
        choices=lambda: [*ADAPTERS],
        closed=False,
        metavar="NAME|MODULE:CLASS",
        help="What is trained; 'fedclip adapters' describes them.",
    )
    strategy: str = option(
        "fedavg",
        choices=lambda: [*STRATEGIES],
        closed=False,
        metavar="NAME|MODULE:CLASS",
        help="How clients and server train together; 'fedclip strategies' describes them.",
    )
    loss: str = option(
        "clip",
        choices=lambda: [*LOSSES],
        help="Loss of the clients: clip, symmetric cross-entropy inside the minibatch, or class, "
        "cross-entropy over all class texts.",
    )
    partition: str = option(
        "dirichlet",
        panel="Data",
        choices=lambda: [*PARTITIONS],
        help="How --clients splits a domain.",
    )


def _norm(text: str) -> float | None:
    if text == "raw":
        return None
    try:
        return float(text)
    except ValueError:
        raise ValueError("must be raw or a number") from None


def _participation(text: str) -> int | float:
    """Read a share, such as 30% or 0.3, or a number of clients, such as 20clients or 20."""
    try:
        if text.endswith(("client", "clients")):
            return int(text.removesuffix("s").removesuffix("client"))
        if text.endswith("%"):
            return float(text.removesuffix("%")) / 100
        value = float(text)
    except ValueError:
        raise ValueError("must be a share such as 30%, or a number such as 20clients") from None
    if value == 1:
        raise ValueError("may mean one client or all of them; write 1client or 100%")
    return int(text) if text.isdecimal() else value


@dataclass(frozen=True)
class Settings(TrainingSettings):
    """Everything that shapes a run's numbers, apart from the cache and the target.

    Attributes:
        adapter: What is trained.
        strategy: What the server does with updates, and its clients for it.
        partition: How each domain is split among clients; None keeps one client a domain.
    """

    rounds: int = option(50, least=1, most=10**9, panel="Federation", help="Rounds of federation.")
    participation: int | float = option(
        1.0,
        above=0,
        panel="Federation",
        metavar="SHARE|NUMBER",
        shown="100%",
        parse=_participation,
        help="Clients that train in a round: a share such as 10% or 0.1, or a number such as "
        "20clients or 20.",
    )
    eval_every: int = option(
        1,
        least=1,
        panel="Federation",
        help="Rounds between two validations; the last round is always validated. Above 1, test "
        "parts are evaluated only when validation is better than before.",
    )
    weighting: Weighting = option(
        "samples",
        panel="Federation",
        help="Whether clients count by their training samples or equally.",
    )
    data_fraction: float = option(
        1.0, above=0, most=1, panel="Data", help="Share of its training part that a client uses."
    )
    feature_norm: float | None = option(
        None,
        least=1e-6,
        most=1e6,
        panel="Data",
        shown="raw",
        metavar="raw|NORM",
        parse=_norm,
        help="L2 norm that image features are rescaled to.",
    )
    prompts: tuple[str, ...] = option(
        (),
        flags=("--prompt",),
        panel="Data",
        shown="the first cached",
        help="Cached template of the class texts; several are averaged, 'all' averages all.",
    )
    class_vectors: str | None = option(
        None,
        choices=CLASS_VECTORS,
        panel="Data",
        shown="text; means for a cache without class texts",
        help="Vector of each class: its text, the mean of the clients' training features, for "
        "which they send sums and counts once, or a linear head that starts at these means and is "
        "trained with the adapter.",
    )
    logit_scale: float | None = option(
        None,
        above=0,
        most=1e6,
        panel="Data",
        shown="the encoder's; CLIP's 100 for one that has none",
        help="Factor on the similarities of samples and classes.",
    )
    adapter: Adapter = Attention()
    strategy: Strategy = FedAvg()
    partition: Partition | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.participation, float) and self.participation > 1:
            raise FedclipError(
                f"--participation {self.participation}: a share must be at most 1.0, or 100%; "
                "write a number of clients as 20clients"
            )
        self._check_methods()

    def _check_methods(self) -> None:
        """Refuse methods that do not fit each other."""
        strategy, adapter = (f"--{kind} {self.name_of(kind)}" for kind in ("strategy", "adapter"))
        if self.strategy.optimizer not in (None, self.optimizer):
            raise FedclipError(
                f"--optimizer {self.optimizer}: {strategy} works with {self.strategy.optimizer} "
                f"only; choose {self.strategy.optimizer}, or leave out --optimizer"
            )
        if self.strategy.shared and not self.adapter.sends:
            raise FedclipError(
                f"{adapter}: consists of a client's own samples and sends nothing, so {strategy} "
                "has no effect; choose --strategy local"
            )
        if self.strategy.splits and not self.model.local_parts:
            able = [name for name, kind in ADAPTERS.classes().items() if kind.local_parts]
            raise FedclipError(
                f"{adapter}: has no part that {strategy} could leave with the client; choose "
                f"--adapter {listed(able)}, or --class-vectors {HEAD}"
            )
        if self.strategy.splits and isinstance(self.adapter, NoAdapter):
            raise FedclipError(
                f"{adapter}: has nothing to share, as {strategy} leaves the head with the client; "
                "choose --strategy local"
            )
        if self.class_vectors == HEAD and self.adapter.replaces_texts:
            raise FedclipError(
                f"--class-vectors {HEAD}: {adapter} has class vectors of its own, so a head has no "
                f"effect; choose --class-vectors {MEANS}"
            )
        everyone = isinstance(self.participation, float) and self.participation == 1
        if self.strategy.pooled and not everyone:
            raise FedclipError(
                f"--participation {self.participation}: {strategy} trains on all participants' "
                "samples at once; leave out --participation"
            )

    @property
    def training(self) -> TrainingSettings:
        """The part of the settings that is sent to clients."""
        names = (each.name for each in fields(TrainingSettings))
        return TrainingSettings(**{name: getattr(self, name) for name in names})

    @property
    def outside(self) -> list[str]:
        """The methods from outside the package, such as ``--adapter my_module:MyAdapter``."""
        names = {kind: self.name_of(kind) for kind in REGISTRIES if getattr(self, kind) is not None}
        return [
            f"--{kind} {name}" for kind, name in names.items() if REGISTRIES[kind].is_outside(name)
        ]

    @property
    def model(self) -> Model:
        """What is trained: the adapter, with a linear head if that makes the class vectors."""
        return WithHead(self.adapter) if self.class_vectors == HEAD else self.adapter

    def name_of(self, kind: str) -> str:
        """Return the name of the adapter, strategy, loss or partition."""
        return REGISTRIES[kind].name_of(getattr(self, kind))

    @classmethod
    def preset(cls, name: str, values: Mapping[str, Any] | None = None, **more: Any) -> Self:
        """Take a preset's settings, and override those that are given.

        Args:
            name: A key of `PRESETS`. Its learning rate and weight decay are Adam's; SGD has
                its own.
            values: Settings, names of methods and their hyper-parameters by name.
            **more: As `values`, but those that are None are not given.

        Raises:
            FedclipError: an unknown preset or method, an invalid value, or an option that
                none of the methods has.
        """
        if name not in PRESETS:
            raise FedclipError(f"unknown preset {name!r}{suggest(name, PRESETS)}")
        given = {**(values or {}), **{key: v for key, v in more.items() if v is not None}}
        required = STRATEGIES.get(given.get("strategy", Methods.strategy)).optimizer
        if required is not None:
            given = {"optimizer": required, **given}
        own = _SGD if given.get("optimizer") == "sgd" else {}
        return cls._of({**PRESETS[name], **own, **given})

    @classmethod
    def _of(cls, values: Mapping[str, Any]) -> Self:
        """Make settings of plain values: a flat mapping of settings, methods and their options."""
        own = {each.name for each in fields(cls)} - REGISTRIES.keys()
        settings = {name: value for name, value in values.items() if name in own}
        options = {
            name: value
            for name, value in values.items()
            if name not in own and name not in REGISTRIES
        }
        unused = set(options)
        owners: dict[str, str] = {}
        for kind, registry in REGISTRIES.items():
            if kind == "partition" and "clients" not in values:
                if values.get(kind) is not None:
                    raise FedclipError(f"--partition {values[kind]}: needs --clients")
                continue
            chosen = str(values.get(kind, getattr(Methods, kind)))
            settings[kind] = registry.make(chosen, options)
            for name, each in options_of(type(settings[kind])).items():
                if name in owners or name in _RESERVED or name in own:
                    other = owners.get(name, "fedclip")
                    raise FedclipError(
                        f"--{kind} {chosen}: its option {each.flag} clashes with one of {other}; "
                        "rename it"
                    )
                owners[name] = f"--{kind} {chosen}"
                unused.discard(name)
        for name in sorted(unused):
            raise FedclipError(f"{flag(name)} {values[name]}: {_owners(name, values)}")
        return cls(**settings)

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON values: methods by name, their options beside them."""
        values: dict[str, Any] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name in REGISTRIES and value is not None:
                for name in options_of(type(value)):
                    own = getattr(value, name)
                    values[name] = str(own) if isinstance(own, Path) else own
                values[each.name] = self.name_of(each.name)
                source = REGISTRIES[each.name].source_hash(values[each.name])
                if source is not None:
                    values[f"{each.name}_source"] = source
            else:
                values[each.name] = list(value) if isinstance(value, tuple) else value
        return values

    def identity(self) -> dict[str, Any]:
        """Return the JSON values that name a run, the same ones that fedclip 0.1 hashed.

        Its settings had every option of every method, null where it had no effect.
        """
        values = {**_FIRST_OPTIONS, **self.to_json()}
        if values["partition"] in (None, Methods.partition):
            del values["partition"]
        return {
            name: value for name, value in values.items() if name not in _LATER or value is not None
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Take what `to_json` returned, of this version or an earlier one.

        Raises:
            FedclipError: a value is invalid, or the source of a method has changed.
            TypeError: a value has the wrong type.
        """
        if "partition" not in values:  # fedclip 0.1 recorded options without effect too
            effect = values if values.get("clients") else values.keys() - {"alpha"}
            values = {
                name: value
                for name, value in values.items()
                if name in effect and (value is not None or name == "feature_norm")
            }
        given = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
            if name not in SOURCES and (name, value) != ("partition", None)
        }
        for kind, registry in REGISTRIES.items():  # before a line of a method is run
            name = str(given.get(kind) or "")
            if name and registry.source_hash(name) != values.get(f"{kind}_source"):
                raise FedclipError(
                    f"--{kind} {name}: its source is not the one that this run was started with; "
                    "restore it, or start a new run"
                )
        return cls._of(given)


def _owners(name: str, values: Mapping[str, Any]) -> str:
    """Explain an option that no chosen method has: whose it is, or what it may be meant for."""
    if name in options_of(Partition) or any(
        name in options_of(kind) for kind in PARTITIONS.classes().values()
    ):
        return "needs --clients"
    for kind, registry in REGISTRIES.items():
        owners = [each for each, cls in registry.classes().items() if name in options_of(cls)]
        if owners:
            chosen = values.get(kind, getattr(Methods, kind))
            return f"has no effect with --{kind} {chosen}; it belongs to {listed(owners, 'and')}"
    return "unknown setting"


def settings_options() -> list[Option]:
    """List the settings and the choice of methods as options.

    The help shows what each preset sets, and the names of methods that may also come from
    outside the package.
    """
    sources: Mapping[str, Mapping[str, Any]] = {**PRESETS, "sgd": _SGD}
    options = []
    for each in [*options_of(Methods).values(), *options_of(Settings).values()]:
        values = {source: own[each.name] for source, own in sources.items() if each.name in own}
        if values:
            defaults = {PAPER: each.default, **values}
            shown = (
                f"{source}: {replace(each, default=value).shown_default}"
                for source, value in defaults.items()
            )
            each = replace(each, shown="; ".join(shown))
        if each.choices and not each.closed:
            names = listed([*each.names, "a class of your own"])
            each = replace(each, help=f"{each.help} One of {names}.")
        options.append(each)
    return sorted(options, key=lambda each: _PANELS.index(each.panel))


def method_options(outside: Mapping[str, Collection[str]] = MappingProxyType({})) -> list[Option]:
    """List the hyper-parameters of all methods, those of one name as one option.

    Args:
        outside: By kind, methods from outside the package that are to be included, as
            ``module:Class``.
    """
    owners: dict[str, type] = {}
    for kind, registry in REGISTRIES.items():
        chosen = list(outside.get(kind, ()))
        for name, cls in {**registry.classes(), **{n: registry.get(n) for n in chosen}}.items():
            problem = _clash(owners, name, cls) if registry.is_outside(name) else ""
            if problem and name in chosen:
                raise FedclipError(f"--{kind} {name}: {problem}")
            if problem:
                logger.warning("--%s %s: %s; it is left out", kind, name, problem)
            else:
                owners[name] = cls
    merged = [
        replace(each, panel=each.panel or "Options of methods") for each in merge_options(owners)
    ]
    # What a method requires, such as a number of clients, is required only if it is chosen.
    return [
        replace(each, default=None, optional=True) if each.required else each for each in merged
    ]


def _clash(owners: Mapping[str, type], name: str, cls: type) -> str:
    """Describe which option of a method from outside clashes with others; '' if none does."""
    taken = {flag for each in settings_options() for flag in (each.flag, *each.flags)}
    for each in options_of(cls).values():
        names = {*options_of(Settings), *options_of(Methods), *_RESERVED}
        if each.name in names or taken & {each.flag, *each.flags}:
            return f"its option {each.flag} clashes with one of fedclip; rename it"
    try:
        merge_options({**owners, name: cls})
    except TypeError as error:
        return f"{error}; rename the option"
    return ""

"""The settings of `fedclip baseline`: federate's, with less of a choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

import typer

from ...cache.common.fields import Option, listed, options_of
from ...cache.common.options import Also, Chosen
from ..data.partition import PARTITIONS
from ..settings import Methods, Settings
from ..strategies import STRATEGIES
from .options import PresetOptions, all_settings, settings_of

# What a full model can be federated with.
FULL_STRATEGIES = ("fedavg", "fedprox")

# Settings that have no effect on a full model, or that its command sets itself.
_NOT_OF_FULL_MODELS = frozenset({"adapter", "feature_norm", "prompts", "partition"})


def _full_settings(arguments: Sequence[str]) -> list[Option]:
    """List the settings that shape a full model's run."""
    known = {name for strategy in FULL_STRATEGIES for name in options_of(STRATEGIES.get(strategy))}
    for partition in PARTITIONS.classes().values():
        known |= options_of(partition).keys()
    kept = {*known, *options_of(Settings), *options_of(Methods)} - _NOT_OF_FULL_MODELS
    return [
        replace(each, choices=FULL_STRATEGIES, closed=True, parse=_full_strategy)
        if each.name == "strategy"
        else each
        for each in all_settings(arguments)
        if each.name in kept
    ]


def _full_strategy(name: str) -> str:
    if name in {*STRATEGIES} - {*FULL_STRATEGIES}:
        raise ValueError(f"works with adapters only; full models take {listed(FULL_STRATEGIES)}")
    return name


# The settings that the user gave for a full model.
GivenToFull = Annotated[Chosen[PresetOptions], Also(_full_settings)]


def full_settings(backbone: str, template: str, chosen: Mapping[str, Any]) -> Settings:
    """Make settings of a full model, which leaves no choice in some.

    Args:
        backbone: ``clip`` or ``alexnet``.
        template: Template of the class prompts.
        chosen: What the user gave.
    """
    fixed: dict[str, Any] = {"adapter": "none", "prompts": (template,)}
    if backbone == "alexnet":
        if chosen.get("loss") == "clip":
            raise typer.BadParameter("--loss clip: needs texts, and alexnet has no text side")
        fixed["loss"] = "class"
    return settings_of({**chosen, **fixed})

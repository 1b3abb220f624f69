"""What a run of a personalized strategy takes up on disk, estimated before it is started."""

from dataclasses import dataclass

import torch
from rich.filesize import decimal

from ..training.tasks import copy_parameters, size_of
from .experiment import KEEP_ALL, Experiment

# Less is not worth a line, in bytes.
WORTH_A_LINE = 50_000_000


@dataclass(frozen=True)
class Disk:
    """Bytes of participants' own parameters, if no client is dropped.

    Attributes:
        left: What is left of them when the run is over.
        state: What is saved of them while it is not.
    """

    left: int
    state: int

    def describe(self) -> str:
        """Describe it in a line; empty if it is little."""
        if self.left + self.state < WORTH_A_LINE:
            return ""
        left = f"{decimal(self.left)} of participants' own adapters, which --keep shared leaves out"
        state = f"{decimal(self.state)} of state until the run is over"
        parts = [text for size, text in ((self.left, left), (self.state, state)) if size]
        return f"disk       up to {', and '.join(parts)}"


def disk_of(experiment: Experiment) -> Disk:
    """Estimate what an experiment's participants' own parameters take up."""
    settings, strategy = experiment.settings, experiment.settings.strategy
    if not strategy.keeps_state and not strategy.personalized:
        return Disk(0, 0)
    first = experiment.clients[0]
    text = torch.zeros(len(first.class_names), first.embed_dim)  # sizes depend on its shape alone
    whole = copy_parameters(experiment.model.make(text, seed=0))
    local = experiment.model.local_parts
    kept = {n: t for n, t in whole.items() if not strategy.splits or n.startswith(local)}
    own = size_of(whole) if strategy.personalized and experiment.keep == KEEP_ALL else 0
    split = settings.partition.clients if settings.partition is not None else 1
    domains = len(experiment.clients)
    participants = [split * (domains - (target is not None)) for target in experiment.targets]
    state = size_of(kept) if strategy.keeps_state else 0
    return Disk(own * sum(participants), (state + own) * max(participants))

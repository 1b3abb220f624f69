"""FedAvg: the server's parameters become the mean of the clients'.

McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from
Decentralized Data" (arXiv:1602.05629); FedCLIP uses it on adapters (Lu et al. 2023,
arXiv:2302.13485, algorithm 1).

``w = sum_i n_i / sum_j n_j * w_i`` with n_i the training samples of client i, or all
n_i equal, as the public FedCLIP script has it.
"""

from collections.abc import Sequence

import torch

from ..local import ClientUpdate, Parameters
from ..settings import Settings, Weighting
from . import SERVER, State


def init(parameters: Parameters) -> State:
    """Begin with the server's `parameters`; nothing else is kept."""
    return {SERVER: parameters}


def apply(state: State, updates: Sequence[ClientUpdate], settings: Settings) -> State:
    """Put the mean of the clients' parameters in the server's place."""
    return {**state, SERVER: average(updates, settings.weighting)}


def client_weights(updates: Sequence[ClientUpdate], weighting: Weighting) -> list[float]:
    """Weigh the updates; the weights sum to 1."""
    sizes = [update.samples if weighting == "samples" else 1 for update in updates]
    return [size / sum(sizes) for size in sizes]


def average(updates: Sequence[ClientUpdate], weighting: Weighting) -> Parameters:
    """Average the clients' parameters, and what else is in their state (running statistics).

    Args:
        updates: At least one.
        weighting: Whether clients count by their training samples or equally.
    """
    weights = client_weights(updates, weighting)
    names = updates[0].parameters
    with torch.no_grad():
        return {
            name: sum(
                (
                    weight * update.parameters[name]
                    for weight, update in zip(weights, updates, strict=True)
                ),
                start=torch.zeros_like(names[name]),
            ).to(names[name].dtype)  # batch normalisation counts its batches
            for name in names
        }

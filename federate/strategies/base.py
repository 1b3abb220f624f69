"""What an algorithm is: pure functions over a state of named parameters."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..data.federation import Client, Federation
from ..settings import Settings, Weighting
from ..training.tasks import ClientUpdate, LocalTask, Parameters

# What a strategy keeps between rounds, part by part: `SERVER`, which the clients start from
# and which is evaluated, and whatever else it needs, such as moments or a part a client.
State = Mapping[str, Parameters]

SERVER = "server"
PERSONAL = "personal"


@dataclass(frozen=True, eq=False)
class Strategy(ABC):
    """One algorithm, for one federation.

    Its methods change nothing: all that there is to remember is in the state, which can be
    saved after any round as it is. A part for a client is there once that client has trained.

    Attributes:
        federation: Who takes part.
        settings: What else it is told.
        personalised: Whether it is for models of the clients' own (`personal`), and not for
            the server's.
        shared: Whether the server has a model that is trained.
        keeps_clients: Whether the state comes to hold a part for each client.
    """

    federation: Federation
    settings: Settings
    personalised: ClassVar[bool] = False
    shared: ClassVar[bool] = True
    keeps_clients: ClassVar[bool] = False

    def init(self, parameters: Parameters) -> State:
        """Make the state before the first round of the adapter's first parameters."""
        return {SERVER: parameters}

    def tasks(self, state: State, clients: Sequence[Client], number: int) -> list[LocalTask]:
        """Say what the clients drawn for a round are to do: first a task for each, in order.

        Args:
            state: After the round before.
            clients: Those drawn, in alphabetical order.
            number: The round's, counted from 1.
        """
        return [self.task(each, number, self.personal(state, each.name)) for each in clients]

    def task(self, client: Client, number: int, start: Parameters) -> LocalTask:
        """Let a client train from `start`."""
        return LocalTask(client, self.federation, self.settings, number, start)

    @abstractmethod
    def apply(self, state: State, updates: Sequence[ClientUpdate]) -> State:
        """Make the state after a round.

        Args:
            state: After the round before.
            updates: At least one, in the order of `tasks`.
        """

    def personal(self, state: State, client: str) -> Parameters:
        """Give the parameters of a client's model: its own, the server's where it has none."""
        return {**state[SERVER], **state.get(personal_part(client), {})}

    def bytes_per_client(self, parameters: Parameters) -> int:
        """Count what crosses the network for a client in a round, in each direction.

        Args:
            parameters: The adapter's.
        """
        return size_of(parameters.values())


def personal_part(client: str) -> str:
    """Name the part of the state that belongs to a client's model."""
    return f"{PERSONAL}/{client}"


def size_of(tensors: Iterable[Tensor]) -> int:
    """Count the tensors' bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


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
    return weighted_sum(weights, [update.parameters for update in updates])


def weighted_sum(weights: Sequence[float], several: Sequence[Parameters]) -> Parameters:
    """Add parameters up, name by name."""
    return {
        name: sum(
            (
                weight * parameters[name]
                for weight, parameters in zip(weights, several, strict=True)
            ),
            start=torch.zeros_like(tensor),
        ).to(tensor.dtype)  # batch normalisation counts its batches
        for name, tensor in several[0].items()
    }


def zeros_like(parameters: Parameters) -> Parameters:
    """Make zeros of the same names and shapes."""
    return {name: torch.zeros_like(tensor) for name, tensor in parameters.items()}

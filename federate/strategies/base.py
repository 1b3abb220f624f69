"""What an algorithm is: a server's half and a client's half, both pure functions.

A strategy is a frozen dataclass whose fields are its hyper-parameters. It holds no data and
changes nothing: what there is to remember is a server's `State` or a client's `ClientState`,
both nothing but named parameters, so that a run can be saved after any round (the manner of Ro
et al. 2021, "FedJAX", arXiv:2108.02117).

Importing this imports no torch: the command line lists strategies before it needs any.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

from ...cache.common.fields import check_options
from .aggregate import weighted_sum

if TYPE_CHECKING:
    from ..models.base import Model
    from ..training.tasks import ClientState, LocalTask, Parameters, Trained, Update

Weighting = Literal["samples", "uniform"]


# What the server keeps between rounds, part by part: `SERVER`, the parameters that clients start
# from and that are evaluated, and whatever else its strategy needs, such as moments.
State: TypeAlias = "Mapping[str, Parameters]"

SERVER = "server"

# The part of a client's state with its own parameters.
PERSONAL = "personal"

# The task whose model is shared, and the one whose model a client keeps.
SHARED = "shared"
OWN = "own"


@dataclass(frozen=True)
class Cohort:
    """What a server knows of its clients: names and sample counts.

    Attributes:
        samples: Training samples of every participant, also those not drawn for a round.
        weighting: Whether clients count by their training samples or equally.
    """

    samples: Mapping[str, int]
    weighting: Weighting

    def weights(self, updates: Sequence[Update]) -> list[float]:
        """Weight the updates of a round; the weights sum to 1."""
        sizes = [update.samples if self.weighting == "samples" else 1 for update in updates]
        return [size / sum(sizes) for size in sizes]

    def share(self, update: Update) -> float:
        """Return a client's weight among all participants, drawn or not."""
        if self.weighting == "uniform":
            return 1 / len(self.samples)
        return update.samples / sum(self.samples.values())

    def average(self, updates: Sequence[Update]) -> Parameters:
        """Average the clients' parameters, and whatever else is in their networks' state.

        Args:
            updates: At least one.
        """
        return weighted_sum(self.weights(updates), [update.parameters for update in updates])


@dataclass(frozen=True, eq=False)
class ClientRound:
    """A round as a client sees it.

    Attributes:
        task: A training that starts from the server's parameters.
        extra: What the server added.
        state: What the client has kept.
    """

    task: LocalTask
    extra: Mapping[str, Parameters]
    state: ClientState

    @property
    def personal(self) -> Parameters:
        """The client's own model: what it has kept put over the server's parameters."""
        return personal(self.task.start, self.state)


@dataclass(frozen=True)
class Strategy(ABC):
    """One algorithm.

    Attributes:
        personalized: Whether each client has its own model, which is what counts.
        shared: Whether the server has a model that is trained.
        pooled: Whether all training samples are brought to one place, which no network of sites
            can do.
        keeps_state: Whether each client comes to keep something from round to round.
        splits: Whether it needs an adapter with a part that stays with the client.
        optimizer: The only optimizer it works with; None for any.
    """

    personalized: ClassVar[bool] = False
    shared: ClassVar[bool] = True
    pooled: ClassVar[bool] = False
    keeps_state: ClassVar[bool] = False
    splits: ClassVar[bool] = False
    optimizer: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        check_options(self)

    # At the server.

    def init(self, parameters: Parameters) -> State:
        """Make the state before the first round from the model's initial parameters."""
        return {SERVER: parameters}

    def send(self, state: State, model: Model) -> tuple[Parameters, Mapping[str, Parameters]]:
        """Return what every client of a round is sent: parameters, and extras by name."""
        return state[SERVER], {}

    @abstractmethod
    def aggregate(self, state: State, updates: Sequence[Update], cohort: Cohort) -> State:
        """Make the state after a round.

        Args:
            state: After the round before.
            updates: At least one, in alphabetical order of the clients.
            cohort: Who takes part.
        """

    # At a client.

    def tasks(self, client: ClientRound) -> dict[str, LocalTask]:
        """Return what a client trains in a round, by name."""
        return {SHARED: client.task}

    def report(self, client: ClientRound, trained: Mapping[str, Trained]) -> Report:
        """Return what a client sends back and what it keeps.

        Args:
            client: As `tasks` got it.
            trained: The outcome of each task.
        """
        return Report(trained[SHARED].parameters, state=client.state)


def personal(parameters: Parameters, state: ClientState) -> Parameters:
    """Return a client's model: the server's parameters with the client's own put over them."""
    return {**parameters, **state.get(PERSONAL, {})}


@dataclass(frozen=True, eq=False)
class Report:
    """The client's half of a round.

    Attributes:
        parameters: Sent to the server.
        extra: Sent to the server too.
        state: Kept by the client, in place of what it had.
    """

    parameters: Parameters
    state: ClientState
    extra: Mapping[str, Parameters] = field(default_factory=dict)

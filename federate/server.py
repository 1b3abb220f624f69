"""A federation at the server: whom to instruct, what to make of updates, which round is best.

The server knows names, sample counts and what clients send. It is the same whether the clients
are simulated in this process (`simulation.py`) or sites on a network.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..cache import FedclipError
from .models.base import Model
from .seeding import generator
from .settings import Settings
from .strategies.base import SERVER, Cohort, State
from .training.metrics import mean
from .training.tasks import Instruction, Parameters, Update, all_finite, is_finite


@dataclass(frozen=True, eq=False)
class Round:
    """One round of federation.

    Attributes:
        number: Counted from 1.
        seconds: Wall-clock time of training, aggregation and evaluation; of training beside
            other runs, the share of this run's clients.
        train_loss: The clients' mean training losses, weighted as the server weights them.
        bytes_up: What all clients together sent to the server.
        bytes_down: What the server sent to all clients together.
        validation: Accuracy by participant of the models that the strategy is for, the
            server's or each participant's own; None if not evaluated.
        test: Accuracy of the server's model by client, the target among them; without a
            server's model, each participant's own is tested, and the target has the mean of
            their accuracies on it. None if not evaluated.
        personal: Test accuracy by participant of its own model; None if not evaluated, or
            if the strategy makes none.
        finite: Whether everything that was trained is finite.
    """

    number: int
    seconds: float
    train_loss: float
    bytes_up: int
    bytes_down: int
    validation: Mapping[str, float] | None = None
    test: Mapping[str, float] | None = None
    personal: Mapping[str, float] | None = None
    finite: bool = True

    @property
    def mean_validation(self) -> float:
        """What the best round is chosen by; NaN if not evaluated. The target never counts."""
        return mean(self.validation.values()) if self.validation else math.nan


@dataclass(frozen=True, eq=False)
class Best:
    """The round with the best mean validation accuracy, the earlier one of equals.

    Attributes:
        round: What was recorded of it.
        parameters: The server's, after it.
    """

    round: Round
    parameters: Parameters


@dataclass(frozen=True, eq=False)
class ServerState:
    """A server after some round: all that the next one depends on.

    It has no random generator, as every draw depends on the seed, the round and the client
    alone.

    Attributes:
        number: Rounds done.
        strategy: What the strategy keeps, the server's parameters among it.
        best: The best round so far.
        failed: Whether the last round diverged (NaN or Inf).
    """

    number: int
    strategy: State
    best: Best | None = None
    failed: bool = False


@dataclass(frozen=True, eq=False)
class Pending:
    """A round under way: aggregated, and validated or not.

    Attributes:
        round: What is known of it.
        state: The server's after it.
        better: Whether it is the best round so far.
    """

    round: Round
    state: ServerState
    better: bool = False

    @property
    def parameters(self) -> Parameters:
        """The server's model after it."""
        return self.state.strategy[SERVER]


@dataclass(frozen=True, eq=False)
class Server:
    """The server of a run. Its methods change nothing: states go in and come out.

    A round is `instruct`, `aggregate`, `validate` if the round `validates`, and `close`.

    Attributes:
        settings: What to do.
        model: What is trained.
        samples: Training samples of each participant, in the order in which their updates are
            added up.
    """

    settings: Settings
    model: Model
    samples: Mapping[str, int]

    @property
    def cohort(self) -> Cohort:
        """Who takes part, as strategies see it."""
        return Cohort(self.samples, self.settings.weighting)

    def begin(self, parameters: Parameters) -> ServerState:
        """Make the state before the first round from the model's initial parameters."""
        return ServerState(0, self.settings.strategy.init(parameters))

    def over(self, state: ServerState) -> bool:
        """Return whether no round is left to do."""
        return state.failed or state.number >= self.settings.rounds

    @property
    def clients_per_round(self) -> int:
        """Number of clients that are drawn for a round."""
        everyone, participation = len(self.samples), self.settings.participation
        if isinstance(participation, float):
            return max(1, round(participation * everyone))
        return min(participation, everyone)

    def bytes_per_client(self, state: ServerState) -> int:
        """Return what crosses the network per client and direction in a round."""
        return 0 if self.settings.strategy.pooled else self._instruction(state).bytes

    def instruct(self, state: ServerState) -> dict[str, Instruction]:
        """Draw the clients of the next round, and instruct each by name."""
        names = list(self.samples)
        random = generator("participation", self.settings.seed, state.number + 1)
        drawn = random.choice(len(names), size=self.clients_per_round, replace=False)
        instruction = self._instruction(state)
        return {names[index]: instruction for index in sorted(drawn)}

    def _instruction(self, state: ServerState) -> Instruction:
        parameters, extra = self.settings.strategy.send(state.strategy, self.model)
        return Instruction(state.number + 1, parameters, extra, self.settings.training)

    def aggregate(
        self,
        state: ServerState,
        instructed: Mapping[str, Instruction],
        updates: Mapping[str, Update],
    ) -> Pending:
        """Make a round of what clients sent back.

        Args:
            state: After the round before.
            instructed: What `instruct` returned.
            updates: By client, at least one.
        """
        ordered = [updates[name] for name in self.samples if name in updates]
        given = [*state.strategy.values(), *(update.parameters for update in ordered)]
        versions = [tensor._version for part in given for tensor in part.values()]
        strategy = self.settings.strategy.aggregate(state.strategy, ordered, self.cohort)
        if versions != [tensor._version for part in given for tensor in part.values()]:
            raise FedclipError(
                f"--strategy {self.settings.name_of('strategy')}: aggregate changes tensors in "
                "place, which earlier rounds share; return new ones"
            )
        changed = [part for name, part in strategy.items() if part is not state.strategy.get(name)]
        weights, sent = self.cohort.weights(ordered), not self.settings.strategy.pooled
        current = Round(
            number=state.number + 1,
            seconds=math.nan,
            train_loss=sum(w * each.loss for w, each in zip(weights, ordered, strict=True)),
            bytes_up=sum(each.bytes for each in ordered) if sent else 0,
            bytes_down=sum(each.bytes for each in instructed.values()) if sent else 0,
            finite=all(map(is_finite, ordered)) and all_finite(changed),
        )
        failed = not current.finite
        return Pending(
            current, replace(state, number=current.number, strategy=strategy, failed=failed)
        )

    def validates(self, pending: Pending) -> bool:
        """Return whether the round is to be validated."""
        number, settings = pending.round.number, self.settings
        return number % settings.eval_every == 0 or number == settings.rounds

    def validate(self, pending: Pending, validation: Mapping[str, float]) -> Pending:
        """Take each participant's validation accuracy."""
        current, best = replace(pending.round, validation=validation), pending.state.best
        better = current.finite and (
            best is None or current.mean_validation > best.round.mean_validation
        )
        return replace(pending, round=current, better=better)

    def close(
        self,
        pending: Pending,
        seconds: float,
        test: Mapping[str, float] | None = None,
        personal: Mapping[str, float] | None = None,
    ) -> tuple[Round, ServerState]:
        """End the round: return its record and the server's state after it."""
        current = replace(pending.round, seconds=seconds, test=test, personal=personal)
        if not pending.better:
            return current, pending.state
        return current, replace(pending.state, best=Best(current, pending.parameters))

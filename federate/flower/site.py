"""A site's half of a round: evaluate what came, train on the site's own samples, answer.

It uses `simulation.Run` with the site as the only client, so that a site computes what a simulated
client does. What a site keeps from round to round lies in a `Memory`.
"""

from __future__ import annotations

import json
import math
import threading
import time
from dataclasses import dataclass, field, replace

import torch

from ... import __version__
from ...cache import FeatureCache, FedclipError
from ...cache.common.fields import listed
from ...cache.common.text import counted
from ..data.federation import Client, FeaturePool, check_class_vectors, class_sums, class_vectors_of
from ..server import Pending, Round, ServerState
from ..settings import MEANS, REGISTRIES, TEXT, Settings
from ..simulation import Run
from ..strategies.base import SERVER
from ..training.engine import AUTO, train_clients
from ..training.tasks import (
    ClientState,
    Instruction,
    Parameters,
    Update,
    all_finite,
    is_finite,
)
from .messages import Answer, ClassSums, Evaluation, Named, Order, SiteFacts

# States that a site keeps: a server that is resumed may repeat the last two rounds.
STATES_KEPT = 3

# Held while a network is made, as torch's one generator is seeded for it.
_MAKING = threading.Lock()


@dataclass
class Memory:
    """What a site keeps of a run. It never leaves the site.

    Attributes:
        states: What the strategy keeps, by the round after which it is so.
        candidate: The site's own model as it was evaluated last, and the round that it is of.
        best: The site's own model of the best round, and that round.
        means: (C, D) class means that the server sent; None if classes have texts.
    """

    states: dict[int, ClientState] = field(default_factory=dict)
    candidate: tuple[int, Parameters] = (0, {})
    best: tuple[int, Parameters] = (0, {})
    means: torch.Tensor | None = None

    def before(self, number: int) -> ClientState:
        """Return the state before a round.

        Raises:
            FedclipError: the server went back further than the site remembers.
        """
        known = [each for each in self.states if each < number]
        if known:
            return self.states[max(known)]
        if self.states:
            raise FedclipError(
                f"the server repeats round {number}, but this site has trained up to round "
                f"{max(self.states)} and keeps only the last {STATES_KEPT} states"
            )
        return {}

    def keep(self, number: int, state: ClientState) -> None:
        """Keep the state after a round, and forget the oldest."""
        known = {each: kept for each, kept in self.states.items() if each < number} or {0: {}}
        known[number] = state
        self.states = dict(sorted(known.items())[-STATES_KEPT:])


class Site:
    """A client's file with the settings of a run.

    Args:
        cache: The client's features.
        settings: Those of the run.
        target: Whether the site takes no part in training and is only tested.
        device: Where to compute.
        engine: What trains.
        allow_class_means: Whether its training features may be summed for class means.

    Raises:
        FedclipError: settings and features do not fit each other, or class means are asked for
            and not allowed.
    """

    def __init__(
        self,
        cache: FeatureCache,
        settings: Settings,
        *,
        target: bool = False,
        device: torch.device | None = None,
        engine: str = AUTO,
        allow_class_means: bool = False,
    ) -> None:
        self.cache = cache
        self.settings = settings
        self.target = target
        self.engine = engine
        check_class_vectors(cache, settings)
        self.has_texts = class_vectors_of(cache, settings) == TEXT
        if not (self.has_texts or target or allow_class_means):
            raise FedclipError(
                f"--class-vectors {settings.class_vectors or MEANS}: needs the sum and the number "
                "of this site's training features of each class, which it sends only if it was "
                "started with --allow-class-means"
            )
        if settings.data_fraction < 1 and not (self.has_texts or target):
            raise FedclipError(
                f"--data-fraction {settings.data_fraction:g}: would make sums of few features for "
                "class means, which tell more about each; leave it out across sites"
            )
        device = device or torch.device("cpu")
        self._pool = FeaturePool([cache], settings.feature_norm, device, model=settings.model)
        self._means: torch.Tensor | None = None
        self.run = self._make()

    def _make(self) -> Run:
        federation = self._pool.site(self.settings, target=self.target, means=self._means)
        with _MAKING:
            return Run(federation, self.settings, engine=self.engine)

    @property
    def client(self) -> Client:
        """The site with its samples."""
        return self.run.federation.clients[0]

    @property
    def text(self) -> torch.Tensor:
        """(C, D) class vectors; zeros as long as they are means and have not come."""
        return self.run.federation.text

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.text.device

    @property
    def like(self) -> tuple[Parameters, Named]:
        """Parameters and extras as the server sends them, and as the site sends them back."""
        state = self.run.state.server.strategy
        return self.run.settings.strategy.send(state, self.run.model)

    def facts(self) -> SiteFacts:
        """Describe the site."""
        cache, client = self.cache, self.client
        return SiteFacts(
            fedclip=__version__,
            client=cache.client,
            dataset=cache.dataset,
            encoder=cache.encoder,
            embed_dim=cache.embed_dim,
            logit_scale=cache.logit_scale,
            normalized=cache.normalized,
            class_names=cache.class_names,
            templates=cache.templates,
            train=len(client.train),
            validation=len(client.validation),
            test=len(client.test),
            zero_shot=self.run.state.zero_shot[client.name],
            parameters=self.run.trainable_parameters,
            target=self.target,
        )

    def class_sums(self) -> ClassSums:
        """Sum up the site's training features by class, for class means.

        Raises:
            FedclipError: the run has no class means, or none of this site.
        """
        if self.has_texts or self.target:
            raise FedclipError("sends class sums only for class means that it has a part in")
        return ClassSums(*class_sums(self.client.train, len(self.cache.class_names)))

    def revealed(self, sent: ClassSums) -> str:
        """Describe what sums tell the server."""
        names = zip(self.cache.class_names, sent.counts.tolist(), strict=True)
        single = [repr(name) for name, number in names if number == 1]
        line = (
            f"{self.cache.client}: sends the sum and the number of its training features of "
            f"{counted(int((sent.counts > 0).sum()), 'class', 'classes')}"
        )
        if single:
            line += (
                f"; of {listed(single, 'and')} it has one sample, whose normalized feature is sent"
            )
        return line

    def take(self, means: torch.Tensor | None) -> None:
        """Take class means of all sites, unless classes have texts.

        Raises:
            FedclipError: they have not come.
        """
        if self.has_texts:
            return
        if means is None:
            raise FedclipError("has not received the class means yet")
        if self._means is None or not torch.equal(self._means, means):
            self._means = means
            self.run = self._make()

    def answer(self, order: Order, memory: Memory) -> Answer:
        """Do a round: evaluate, train, and keep in `memory` what stays here.

        Raises:
            FedclipError: what came has NaN or Inf, or the site cannot do the round.
        """
        start = time.perf_counter()
        if not all_finite([order.parameters, *order.extra.values()]):
            raise FedclipError("the server sent parameters with NaN or Inf")
        if order.means is not None:
            memory.means = order.means
        self.take(memory.means)
        if order.best and memory.candidate[0] == order.best:
            memory.best = memory.candidate
        state = memory.before(order.number)
        evaluation = self._evaluate(order, state, memory) if order.evaluate else None
        update = self._train(order, state, memory) if order.train and not self.target else None
        return Answer(
            number=order.number,
            samples=len(self.client.train),
            trained=update is not None,
            finite=update is None or is_finite(update),
            loss=update.loss if update else math.nan,
            seconds=time.perf_counter() - start,
            evaluation=evaluation,
            parameters=update.parameters if update else {},
            extra=update.extra if update else {},
        )

    def _train(self, order: Order, state: ClientState, memory: Memory) -> Update:
        run, name = self.run, self.client.name
        run.state = replace(run.state, clients={name: state} if state else {})
        instruction = Instruction(
            order.number, order.parameters, order.extra, run.settings.training
        )
        client = run.client_round(name, instruction)
        tasks = run.settings.strategy.tasks(client)
        trained = train_clients(run.network, list(tasks.values()), run.engine)
        update, kept = run.report(client, dict(zip(tasks, trained, strict=True)))
        if kept or state:
            memory.keep(order.number, kept)
        return update

    def _evaluate(self, order: Order, state: ClientState, memory: Memory) -> Evaluation:
        """Evaluate the model of the round before."""
        run, name = self.run, self.client.name
        parameters = {**run.initial, **order.parameters}
        pending = _pending(order.number - 1, parameters)
        clients = {name: state} if state else {}
        test, own = run.test(pending, clients)
        validation = {} if self.target else run.validation(pending, clients)
        for _, model in run.own_models(pending, clients):
            memory.candidate = order.number - 1, model
        return Evaluation(
            validation=validation.get(name, math.nan),
            test=test.get(name, math.nan),
            personal=(own or {}).get(name, math.nan),
        )


def check_deployable(settings: Settings) -> None:
    """Check that settings make sense where every client is a site on a network.

    Raises:
        FedclipError: they do not.
    """
    name = settings.name_of("strategy")
    if settings.strategy.pooled:
        raise FedclipError(
            f"--strategy {name}: trains on all samples in one place, which sites never share; "
            "choose another strategy"
        )
    if settings.partition is not None:
        raise FedclipError(
            "--clients: splits a domain into simulated clients, and here every site is a client; "
            "leave out --clients"
        )
    if settings.outside:
        raise FedclipError(
            f"{listed(settings.outside, 'and')}: comes from outside fedclip, and a site runs only "
            "what the fedclip installed there contains; choose another"
        )


def settings_of(text: str) -> Settings:
    """Read the settings that a server sent; nothing is imported for methods from outside.

    Raises:
        FedclipError: they are invalid, or name a method that is not part of fedclip.
    """
    try:
        values = json.loads(text)
        names = {kind: values.get(kind) for kind in REGISTRIES}
        for kind, name in names.items():
            if name is not None and REGISTRIES[kind].is_outside(name):
                raise FedclipError(
                    f"the server asks for --{kind} {name}, which comes from outside fedclip; this "
                    "site runs only what the fedclip installed here contains"
                )
        settings = Settings.from_json(values)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise FedclipError(f"the server sent invalid settings ({error})") from None
    check_deployable(settings)
    return settings


def _pending(number: int, parameters: Parameters) -> Pending:
    blank = Round(number, math.nan, math.nan, 0, 0)
    return Pending(blank, ServerState(number, {SERVER: parameters}))

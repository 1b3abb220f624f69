"""The server's half: the second driver of `server.py`, over a Flower grid.

A round is one message per site and its answer. The message carries the model; the site evaluates
it, trains it and answers with both. So the accuracies of a round's model arrive with the answers
of the next round, and one more message ends the run. `drive` is the loop.

Sites may come late, leave, hang, or answer nonsense: whoever has no valid update is left out of
the round, with a reason in the record, and is asked again in the next one.
"""

import hashlib
import logging
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from ...cache import FedclipError
from ...cache.common.errors import first_line
from ...cache.common.fields import listed
from ...cache.common.files import check_client
from ...cache.common.progress import Progress, no_progress
from ...cache.compatibility import client_differences
from ...cache.key import canonical_json, differing_facts
from ..data.federation import class_vectors_of
from ..runs.results import RunResult
from ..server import Pending, Server, ServerState
from ..settings import TEXT
from ..training.tasks import Instruction, Parameters, Update, is_finite
from .messages import (
    DESCRIBE,
    END,
    FORMAT,
    INITIAL,
    PARAMETERS,
    ROUND,
    SUMS,
    Answer,
    ClassSums,
    Evaluation,
    Order,
    SiteFacts,
    initial_of,
    pack,
    with_means,
)
from .record import Attendance, Member, Record, shown

logger = logging.getLogger(__name__)

# Seconds between two looks at what has arrived: these at first, then a twentieth of the time
# waited, as a look is a request on Flower's own SuperLink.
POLL = 0.02

# Seconds between two looks at who has come or come back, and the most between those above.
LOOK = 0.5

# Seconds that a site has to describe itself, and to take the adapter of a run that is over.
DESCRIBE_SECONDS = 60.0
END_SECONDS = 60.0

# Seconds after which it is said again whom a round waits for.
REPEAT = 60.0

# Characters of a text from a site that are shown.
_LONGEST = 1000

# What Flower says for a site that has gone.
_GONE = "is not connected"


@dataclass(frozen=True)
class _Node:
    """A site's connection."""

    node_id: int
    since: str
    key: str


class Driver:
    """A server, and the sites that it knows.

    Args:
        grid: Reaches the sites.
        record: Where the run is recorded; it holds the plan.
        authenticated: Whether a site's key tells who it is, so that nobody else may take its name.
        traffic: Returns the bytes sent to and received from sites so far, where they are known.
        progress: Called with the rounds done.
    """

    def __init__(
        self,
        grid: Grid,
        record: Record,
        *,
        authenticated: bool,
        traffic: Callable[[], tuple[int, int]] | None = None,
        progress: Progress = no_progress,
    ) -> None:
        self.grid = grid
        self.record = record
        self.plan = record.plan
        self.authenticated = authenticated
        self.traffic = traffic
        self.progress = progress
        self.nodes: dict[str, _Node] = {}  # by client, of those accepted
        self._seen: set[_Node] = set()
        # By message, who is to describe itself, or None for one that was turned away; until when.
        self._asked: dict[str, tuple[_Node | None, float]] = {}
        self._informed: set[_Node] = set()  # those that have the class means
        self._absent: dict[str, str] = {}  # by client that was left out last time, the reason
        self._settings = canonical_json(self.plan.settings.to_json())
        self._state: ServerState | None = None

    @property
    def server(self) -> Server:
        """The server of those who have been accepted so far."""
        samples = {
            name: member.facts.train
            for name, member in self.record.members.items()
            if not member.facts.target
        }
        return Server(self.plan.settings, self.plan.settings.model, samples)

    def drive(self) -> RunResult:
        """Wait for the sites, and do all rounds that are left.

        An interrupt (Ctrl-C) ends the run so that it can be resumed.

        Raises:
            FedclipError: what was saved is damaged, or there are no class means to train with.
        """
        try:
            self._gather()
            self._agree_on_means()
            state = self.record.state(self.server.begin(self._initial()))
            self._state = state
            self._rounds(state)
        except KeyboardInterrupt:
            return self._finish(interrupted=True)
        return self._finish(interrupted=False)

    def _rounds(self, state: ServerState) -> None:
        """Do rounds until all are done and the last one is evaluated."""
        pending: Pending | None = None
        attendance: Attendance | None = None
        seconds = 0.0
        self._show(state.number)
        while True:
            self._admit()
            server = self.server
            over = server.over(state)
            evaluate = pending is not None and pending.round.finite and server.validates(pending)
            start = time.perf_counter()
            answers = _Answers({}, {}, {}, 0.0, 0.0)
            instructed = {} if over else server.instruct(state)
            before = self.traffic() if self.traffic else (0, 0)
            if evaluate or not over:
                answers = self._ask(server, state, instructed, evaluate=evaluate)
            if pending is not None and attendance is not None:
                attendance = replace(attendance, evaluated=sorted(answers.evaluations))
                state = self._close(server, pending, answers.evaluations, seconds, attendance)
            if over:
                return
            attendance = Attendance(
                sorted(answers.updates),
                answers.left_out,
                (),
                answers.waiting,
                answers.computing,
                *self._traffic_since(before),
            )
            pending = server.aggregate(state, instructed, answers.updates)
            state = pending.state
            seconds = time.perf_counter() - start

    def _close(
        self,
        server: Server,
        pending: Pending,
        evaluations: Mapping[str, Evaluation],
        seconds: float,
        attendance: Attendance,
    ) -> ServerState:
        """End a round with what the sites measured, as `simulation.Run` does."""
        strategy, target = server.settings.strategy, self.plan.target
        took_part = {name: each for name, each in evaluations.items() if name != target}
        if took_part:
            pending = server.validate(
                pending, {name: each.validation for name, each in sorted(took_part.items())}
            )
        test: dict[str, float] | None = None
        own: dict[str, float] | None = None
        if evaluations and (pending.better or server.settings.eval_every == 1):
            ordered = sorted(evaluations, key=lambda name: (name == target, name))
            test = {name: evaluations[name].test for name in ordered}
            if strategy.personalized:
                own = {name: each.personal for name, each in sorted(took_part.items())}
        current, state = server.close(pending, seconds, test, own)
        self.record.put(current, attendance, state)
        self._state = state
        detail = f"validation {current.mean_validation:.2%}" if current.validation else ""
        self._show(current.number, detail)
        return state

    def _show(self, number: int, detail: str = "") -> None:
        self.progress("federation", number, self.plan.settings.rounds, "rounds", detail)

    def _show_awaited(self, names: Collection[str]) -> None:
        self._show(self._state.number if self._state else 0, f"waiting for {shown(names)}")

    def _traffic_since(self, before: tuple[int, int]) -> tuple[int | None, int | None]:
        if self.traffic is None:
            return None, None
        sent, received = self.traffic()
        return sent - before[0], received - before[1]

    # Who takes part.

    def _gather(self) -> None:
        """Wait until as many sites as expected have been accepted.

        The sites of a run that is resumed may take as long to come back as a round waits; after
        that it goes on without those that are missing.
        """
        before, patience = "", time.monotonic() + self.plan.timeout
        while True:
            self._admit()
            awaited = self.record.members.keys() - self.nodes.keys()
            lacking = self.plan.expected - len(self.record.members)
            patient = time.monotonic() < patience
            if lacking <= 0 and (
                not awaited or (not patient and len(self.nodes) >= self.plan.minimum)
            ):
                return
            line = f"{len(self.nodes)} of {max(self.plan.expected, len(self.record.members))} sites"
            if awaited:
                line += f", waiting for {shown(awaited)}"
            if line != before:
                logger.info("%s", line)
                before = line
            time.sleep(LOOK)

    def _admit(self) -> None:
        """Accept or turn away those who have come and described themselves since the last look."""
        nodes = [
            _Node(
                int(node.node_id), str(node.last_activated_at), fingerprint(bytes(node.public_key))
            )
            for node in self.grid.get_nodes()
        ]
        for node in nodes:
            if node not in self._seen:
                message_id = self._send(DESCRIBE, node.node_id, self._question(), DESCRIBE_SECONDS)
                self._asked[message_id] = node, time.monotonic() + DESCRIBE_SECONDS
        self._seen = {*nodes}
        self._asked.pop("", None)  # those that have gone
        for message_id, reply in self._arrived([*self._asked]).items():
            newcomer, _ = self._asked.pop(message_id)
            if newcomer and (reason := self._accept(newcomer, reply)) is not None:
                self._turn_away(newcomer, reason)
        late = [each for each, (_, until) in self._asked.items() if time.monotonic() > until]
        for message_id in late:
            newcomer, _ = self._asked.pop(message_id)
            if newcomer:
                self._turn_away(newcomer, "cannot take part: did not describe itself")
        self._forget(late)

    def _accept(self, node: _Node, reply: RecordDict | str) -> str | None:
        """Accept a site that has described itself, or return why it cannot take part."""
        if isinstance(reply, str):
            return f"cannot take part: {reply}"
        try:
            facts = SiteFacts.of_record(reply)
            check_client(facts.client)
        except FedclipError as error:
            return str(error)
        if (reason := self._objection(facts, node)) is not None:
            return f"{facts.client}: {reason}"
        known = self.record.members.get(facts.client)
        self.nodes[facts.client] = node
        if known is None:
            self.record.admit(Member(facts, node.key if self.authenticated else ""))
        logger.info(
            "%s %s: %d training samples%s",
            facts.client,
            "joined" if known is None else "is back",
            facts.train,
            ", the target" if facts.target else "",
        )
        return None

    def _turn_away(self, node: _Node, reason: str) -> None:
        if reason.endswith(_GONE):
            return
        reason = _printable(reason)
        logger.warning("turned a site away: %s", reason)
        ending = self._ending(f"the server turned this site away: {reason}")
        message_id = self._send(END, node.node_id, ending, END_SECONDS)
        self._asked[message_id] = None, time.monotonic() + END_SECONDS

    def _objection(self, facts: SiteFacts, node: _Node) -> str | None:
        """Return why a site cannot take part; None if it can."""
        if facts.train < 1 and not facts.target:
            return "has no training samples"
        if facts.target != (facts.client == self.plan.target):
            return "is not the target, but says so" if facts.target else "is the target, but trains"
        first, known = self.record.reference, self.record.members.get(facts.client)
        if self.authenticated:
            names = [name for name, each in self.record.members.items() if each.key == node.key]
            if names and facts.client not in names:
                return f"its key is that of {names[0]}; each site needs a key of its own"
            if known is not None and not names:
                return (
                    "another site has this name, with another key; use that key, or extract with "
                    "another --client"
                )
        if known is not None and facts.rows != known.facts.rows:
            return (
                f"came back with {facts.rows} training, validation and test samples, but had "
                f"{known.facts.rows}"
            )
        if first is None:
            return None
        if facts.key != first.key:
            differing = differing_facts(first.encoder, facts.encoder)
            return (
                f"has features of another encoder than {first.client} (the facts that differ: "
                f"{listed(differing, 'and')})"
            )
        if differences := client_differences(first, facts):
            return (
                f"differs in {' and '.join(differences)}; extract again with the same --name, "
                "--class-names and --template"
            )
        if facts.parameters != first.parameters:
            return f"trains {facts.parameters:,} numbers, the others {first.parameters:,}"
        if facts.fedclip != first.fedclip:
            return (
                f"has fedclip {facts.fedclip}, {first.client} has {first.fedclip}; install the "
                "same version everywhere"
            )
        return None

    def _question(self) -> RecordDict:
        """Make a message that asks for something before training."""
        config = {"format": FORMAT, "settings": self._settings, "target": self.plan.target}
        return RecordDict({"config": ConfigRecord(config)})

    def _agree_on_means(self) -> None:
        """Make class means of what all sites send, unless classes have texts or means already.

        A site that sends nothing valid for as long as a round waits has no part in them. Those
        that training began with stay, whoever joins later.

        Raises:
            FedclipError: no site has a training sample of a class; the sites are told.
        """
        first, settings = self.record.reference, self.plan.settings
        assert first is not None  # it was waited for
        if class_vectors_of(first, settings) == TEXT or self.record.means is not None:
            return
        sums: dict[str, ClassSums] = {}
        patience = time.monotonic() + self.plan.timeout
        while True:
            awaited = self.server.samples.keys() - sums.keys()
            contents = {
                name: (self.nodes[name].node_id, self._question())
                for name in sorted(awaited)
                if name in self.nodes
            }
            for name, reply in self._exchange(SUMS, contents, self.plan.timeout):
                try:
                    if isinstance(reply, str):
                        raise FedclipError(reply)
                    sums[name] = ClassSums.of_record(reply, self.record.members[name].facts)
                except FedclipError as error:
                    logger.warning("class means: nothing from %s: %s", name, _printable(str(error)))
            awaited = self.server.samples.keys() - sums.keys()
            enough = time.monotonic() >= patience and len(sums) >= self.plan.minimum
            if not awaited or enough:
                break
            logger.info("class means: waiting for %s", shown(awaited))
            self._wait_for(awaited)
        try:
            self.record.agree_on_means(sums)
        except FedclipError as error:
            self._end([each.node_id for each in self.nodes.values()], f"no training: {error}")
            raise
        logger.info("class means of %s", shown(sums))

    def _initial(self) -> Parameters:
        """Ask a site for the initial parameters, which it draws from the run's seed."""
        while True:
            for client, node in sorted(self.nodes.items()):
                question = self._question()
                question.update(with_means(self.record.means))
                contents = {client: (node.node_id, question)}
                for _, reply in self._exchange(INITIAL, contents, DESCRIBE_SECONDS):
                    try:
                        if isinstance(reply, str):
                            raise FedclipError(reply)
                        return initial_of(reply, self.record.members[client].facts.parameters)
                    except FedclipError as error:
                        logger.warning("%s: %s", client, _printable(str(error)))
            time.sleep(LOOK)
            self._admit()

    # Rounds.

    def _ask(
        self,
        server: Server,
        state: ServerState,
        instructed: Mapping[str, Instruction],
        *,
        evaluate: bool,
    ) -> "_Answers":
        """Send a round's orders and take the answers, until there are enough."""
        answers = _Answers({}, {}, {}, 0.0, 0.0)
        diverged: dict[str, Update] = {}
        parameters, extra = server.settings.strategy.send(state.strategy, server.model)
        everyone = set(self.record.members) if evaluate else set(instructed)
        needed = min(self.plan.minimum, len(instructed) or len(server.samples))
        start = time.perf_counter()
        said, repeat = "", 0.0
        while True:
            missing = {
                name
                for name in everyone
                if name in self.nodes
                and (
                    (name in instructed and name not in answers.updates)
                    or (evaluate and name not in answers.evaluations)
                )
            }
            orders = {
                name: Order(
                    run=self.plan.run,
                    number=state.number + 1,
                    settings=self._settings,
                    target=self.plan.target,
                    train=name in instructed and name not in answers.updates,
                    evaluate=evaluate and name not in answers.evaluations,
                    best=state.best.round.number if state.best else 0,
                    parameters=parameters,
                    extra=extra,
                    means=None if self.nodes[name] in self._informed else self.record.means,
                )
                for name in sorted(missing)
            }
            for name, answer in self._answered(orders, (parameters, extra)):
                if isinstance(answer, str):
                    answers.left_out[name] = _printable(answer)
                    self._informed.discard(self.nodes[name])
                    continue
                self._informed.add(self.nodes[name])
                answers.computing = max(answers.computing, answer.seconds)
                if answer.evaluation is not None:
                    answers.evaluations[name] = answer.evaluation
                if not answer.trained:
                    continue
                update = Update(
                    name,
                    answer.parameters,
                    answer.samples,
                    answer.loss,
                    answer.extra,
                    finite=answer.finite,
                )
                if is_finite(update):
                    answers.updates[name] = update
                    answers.left_out.pop(name, None)
                else:
                    diverged[name] = update
                    answers.left_out[name] = "diverged (NaN or Inf)"
            if diverged and not answers.updates and diverged.keys() == instructed.keys():
                answers.updates |= diverged  # all diverged, so the run has failed
            enough = answers.updates if instructed else answers.evaluations
            if len(enough) >= needed:
                break
            awaited = (set(instructed) or everyone) - enough.keys()
            line = (
                f"round {state.number + 1}: {len(enough)} of {needed} needed answers, waiting for "
                + shown(f"{name} ({answers.left_out.get(name, _GONE)})" for name in awaited)
            )
            now = time.monotonic()
            if line != said or now >= repeat:
                logger.warning("%s", line)
                said, repeat = line, now + REPEAT
            self._wait_for(awaited)
        for name in instructed:
            if name not in answers.updates:
                answers.left_out.setdefault(name, _GONE)
        self._report(state.number + 1, answers)
        answers.waiting = time.perf_counter() - start
        return answers

    def _report(self, number: int, answers: "_Answers") -> None:
        """Say who is left out of a round, and who is back in, unless it was so before."""
        for name, why in answers.left_out.items():
            if self._absent.get(name) != why:
                logger.warning("round %d: left out %s: %s", number, name, why)
        for name in sorted(self._absent.keys() & answers.updates.keys() - answers.left_out.keys()):
            logger.info("round %d: %s takes part again", number, name)
            del self._absent[name]
        self._absent |= answers.left_out

    def _wait_for(self, awaited: set[str]) -> None:
        """Wait until one of those awaited is new here, or long enough to ask them again."""
        until = time.monotonic() + 10 * LOOK
        known = {name: self.nodes.get(name) for name in awaited}
        while time.monotonic() < until:
            time.sleep(LOOK)
            self._admit()
            if {name: self.nodes.get(name) for name in awaited} != known:
                return

    def _answered(
        self, orders: Mapping[str, Order], like: tuple[Parameters, Mapping[str, Parameters]]
    ) -> Iterator[tuple[str, Answer | str]]:
        """Yield each site's answer as it comes, or why it is not valid."""
        contents = {
            name: (self.nodes[name].node_id, order.to_record()) for name, order in orders.items()
        }
        for name, reply in self._exchange(ROUND, contents, self.plan.timeout, self._show_awaited):
            if isinstance(reply, str):
                yield name, reply
                continue
            try:
                yield name, self._checked(name, Answer.of_record(reply, like), orders[name])
            except FedclipError as error:
                yield name, f"answered wrongly: {error}"

    def _checked(self, name: str, answer: Answer, order: Order) -> Answer:
        if answer.number != order.number:
            raise FedclipError(f"round {answer.number} in place of round {order.number}")
        if answer.trained != order.train or (answer.evaluation is None) == order.evaluate:
            raise FedclipError("did not do what it was asked to do")
        if answer.samples != self.record.members[name].facts.train:
            raise FedclipError(f"reports {answer.samples} training samples")
        if answer.evaluation is not None:
            facts = self.record.members[name].facts
            for part in ("validation", "test"):
                if math.isnan(getattr(answer.evaluation, part)) and getattr(facts, part):
                    raise FedclipError(f"its {part} accuracy is NaN")
        return answer

    def _exchange(
        self,
        kind: str,
        contents: Mapping[str, tuple[int, RecordDict]],
        seconds: float,
        show: Callable[[Collection[str]], None] = lambda names: None,
    ) -> Iterator[tuple[str, RecordDict | str]]:
        """Send a message to each, and yield its answer, or why there is none.

        `show` gets the names of those that are awaited after 2 s, and whenever the time waited has
        doubled.
        """
        waiting: dict[str, str] = {}
        for name, (node_id, content) in contents.items():
            if message_id := self._send(kind, node_id, content, seconds):
                waiting[message_id] = name
            else:
                yield name, _GONE
        start, due = time.monotonic(), 4 * LOOK
        while waiting:
            for message_id, reply in self._arrived([*waiting]).items():
                yield waiting.pop(message_id), reply
            waited = time.monotonic() - start
            if waiting and waited > seconds:
                for name in waiting.values():
                    yield name, f"did not answer within {seconds:g} s"
                self._forget(waiting)
                return
            if waiting and waited > due:
                show(waiting.values())
                due = 2 * waited
            if waiting:
                time.sleep(min(LOOK, max(POLL, waited / 20)))

    def _send(self, kind: str, node_id: int, content: RecordDict, seconds: float) -> str:
        """Send a message; return its ID, or '' if the site is gone."""
        number = content["config"].get("number", "")
        message = Message(content, node_id, kind, ttl=seconds + 60.0, group_id=str(number))
        return next(iter(self.grid.push_messages([message])), "")

    def _arrived(self, message_ids: Sequence[str]) -> dict[str, RecordDict | str]:
        """Return the answers that are here, or why there is none, in the order of the messages."""
        here = {
            reply.metadata.reply_to_message_id: reply
            for reply in (self.grid.pull_messages(message_ids) if message_ids else ())
        }
        return {
            each: _why(here[each]) if here[each].has_error() else here[each].content
            for each in message_ids
            if each in here
        }

    def _forget(self, message_ids: Collection[str]) -> None:
        """Let no late answer to these messages come in."""
        forget = getattr(self.grid, "forget", None)
        if forget is not None:
            forget(list(message_ids))

    # The end.

    def _finish(self, *, interrupted: bool) -> RunResult:
        state = self._state
        if state is None:
            raise KeyboardInterrupt
        result = self.record.finish(
            state, self.server.bytes_per_client(state), interrupted=interrupted
        )
        if not interrupted:
            with suppress(KeyboardInterrupt):  # the run is over
                self._end([node.node_id for node in self.nodes.values()], "")
        return result

    def _end(self, node_ids: Sequence[int], reason: str) -> None:
        """Send sites the adapter of a run that is over, or say why there is none, and wait."""
        contents = {str(node_id): (node_id, self._ending(reason)) for node_id in node_ids}
        names = {node.node_id: name for name, node in self.nodes.items()}
        for node_id, reply in self._exchange(END, contents, END_SECONDS):
            if isinstance(reply, str) and not reason:
                name = names[int(node_id)]
                logger.warning("%s: did not take the adapter: %s", name, _printable(reply))

    def _ending(self, reason: str) -> RecordDict:
        """Make a message that ends a site's part: with the best adapter, or with a reason."""
        best = self._state.best if self._state else None
        config: dict[str, Any] = {
            "format": FORMAT,
            "run": self.plan.run,
            "settings": self._settings,
            "target": self.plan.target,
            "best": best.round.number if best else 0,
            "reason": reason,
        }
        content = RecordDict({"config": ConfigRecord(config)})
        if best is not None and not reason and self.plan.settings.strategy.shared:
            content[PARAMETERS] = pack(best.parameters, {})
        return content


@dataclass
class _Answers:
    """What a round came to."""

    updates: dict[str, Update]
    evaluations: dict[str, Evaluation]
    left_out: dict[str, str]
    waiting: float
    computing: float


def _why(reply: Message) -> str:
    """Return the reason in an error message."""
    from flwr.common.constant import ErrorCode

    if reply.error.code in (ErrorCode.NODE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE):
        return _GONE
    return first_line(RuntimeError(reply.error.reason or "failed"))


def _printable(text: str) -> str:
    """Return a text from a site without anything that a terminal would obey, cut if it is long."""
    shown = "".join(each if each.isprintable() else " " for each in text[:_LONGEST])
    return shown if len(text) <= _LONGEST else f"{shown}..."


def fingerprint(public_key: bytes) -> str:
    """Return the first 16 hex digits of a public key's SHA-256."""
    return hashlib.sha256(public_key.strip()).hexdigest()[:16]

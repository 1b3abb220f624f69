"""What a server records of a federation across sites: an ordinary run, and who took part."""

import hashlib
import json
import math
import platform
import secrets
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ... import __version__
from ...cache import EncoderFacts, FedclipError
from ...cache.common.errors import first_line
from ...cache.common.files import check_name, replacing, write_json
from ...cache.key import canonical_json
from ..data.federation import class_means
from ..models.classifier import CLASS_TEXTS
from ..runs.checkpoint import write_tensors
from ..runs.experiment import facts_of
from ..runs.find import CONFIG, NONE
from ..runs.folder import RunFolder
from ..runs.predictions import SITES
from ..runs.results import Facts, RunResult, Status, finite_or_null, result_of
from ..server import Round, ServerState
from ..settings import Settings
from ..simulation import RunState
from ..training.tasks import Parameters
from .messages import ClassSums, SiteFacts

# Class means of a run that is not over, with the sites that they are of.
MEANS_FILE = "class_means.safetensors"

# Version of the facts of saved parameters: the server does not have the class texts.
WITHOUT_TEXTS = 2


@dataclass(frozen=True)
class Plan:
    """What a server is to do.

    Attributes:
        settings: What shapes the numbers.
        preset: The preset that the settings are based on.
        expected: Number of sites that training waits for.
        minimum: Number of updates that a round needs.
        timeout: Seconds that a round waits for an answer.
        target: The client that takes no part in training and is only tested; '' for none.
        run: Identifies the run to the sites.
    """

    settings: Settings
    preset: str
    expected: int
    minimum: int
    timeout: float
    target: str = ""
    run: str = field(default_factory=lambda: secrets.token_hex(8))

    def __post_init__(self) -> None:
        if not 1 <= self.minimum <= self.expected:
            raise FedclipError(
                f"--min-clients {self.minimum}: must be from 1 to --clients-expected "
                f"{self.expected}"
            )
        if self.target and not self.settings.strategy.shared:
            raise FedclipError(
                f"--target {self.target}: --strategy {self.settings.name_of('strategy')} has no "
                "model at the server that a target could be tested with; leave out --target"
            )

    @property
    def name(self) -> str:
        """The run's default name."""
        settings = self.settings.identity()
        seed = settings.pop("seed")
        facts = {"settings": settings, "target": self.target, "expected": self.expected}
        digest = hashlib.sha256(canonical_json(facts).encode()).hexdigest()
        return f"sites-{digest[:8]}-seed{seed}"


@dataclass(frozen=True)
class Member:
    """A site that was accepted.

    Attributes:
        facts: What it said of itself.
        key: Fingerprint of its key; '' without authentication.
    """

    facts: SiteFacts
    key: str

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        facts = dict(finite_or_null(asdict(self.facts)))
        return {**facts, "encoder": self.facts.encoder.groups, "key": self.key}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Member":
        """Take what `to_json` returned."""
        facts = {name: value for name, value in values.items() if name != "key"}
        if facts["zero_shot"] is None:
            facts["zero_shot"] = math.nan
        facts["encoder"] = EncoderFacts.from_groups(facts["encoder"])
        facts |= {name: tuple(facts[name]) for name in ("class_names", "templates")}
        return cls(SiteFacts(**facts), str(values["key"]))


@dataclass(frozen=True)
class Attendance:
    """Who took part in a round.

    Attributes:
        took_part: Sites whose update was used.
        left_out: Sites that were to train and whose update was not used, with the reason.
        evaluated: Sites that evaluated the model of the round before.
        waiting: Seconds that the server waited for answers.
        computing: Seconds of the site that computed longest.
        bytes_sent: What the server sent to all sites, as Flower counts it; None where it does not.
        bytes_received: What it received.
    """

    took_part: Sequence[str]
    left_out: Mapping[str, str]
    evaluated: Sequence[str]
    waiting: float
    computing: float
    bytes_sent: int | None
    bytes_received: int | None


class Record:
    """The folder of a run across sites.

    Args:
        path: The folder.
        plan: What the run does.

    Attributes:
        members: The sites that were accepted, by client.
        means: (C, D) class means, if class vectors are means and these are known.
    """

    def __init__(self, path: Path, plan: Plan) -> None:
        self.folder = RunFolder(path)
        self.plan = plan
        self.members: dict[str, Member] = {}
        self.means: Tensor | None = None
        self._seconds: list[float] = []
        self._claim = ExitStack()

    @property
    def path(self) -> Path:
        """The folder."""
        return self.folder.path

    def begin(self, *, overwrite: bool) -> None:
        """Make the folder.

        Raises:
            FedclipError: it exists, or another process is working on it.
        """
        self.folder.begin(self._config(), overwrite=overwrite)
        self._claim.enter_context(self.folder.claimed())

    @classmethod
    def resume(cls, path: Path) -> "Record":
        """Continue a run from what was saved last.

        Raises:
            FedclipError: it is over, or was not federated across sites, or is damaged.
        """
        config = RunFolder(path).read_config()
        if "sites" not in config:
            raise FedclipError(
                f"{path}: was not federated across sites; resume it with fedclip federate --resume"
            )
        if RunFolder(path).result_if_over() is not None:
            raise FedclipError(
                f"{path}: is finished; a site that missed the end can use the adapter that any "
                "other site has in its --state-dir"
            )
        try:
            deployment = config["deployment"]
            plan = Plan(
                Settings.from_json(config["settings"]),
                str(config["preset"]),
                int(deployment["expected"]),
                int(deployment["minimum"]),
                float(deployment["timeout"]),
                "" if config["target"] == NONE else str(config["target"]),
                check_name(str(deployment["run"]), "run"),
            )
            members = {name: Member.from_json(each) for name, each in config["sites"].items()}
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise FedclipError(f"{path / CONFIG}: is damaged ({error!r})") from None
        record = cls(path, plan)
        record.members = members
        record._claim.enter_context(record.folder.claimed())
        record._read_means()
        return record

    def admit(self, member: Member) -> None:
        """Take note of a site that was accepted."""
        self.members = dict(sorted({**self.members, member.facts.client: member}.items()))
        self.write_config()

    def write_config(self) -> None:
        """Write every setting of the run, and its sites."""
        write_json(self.path / CONFIG, self._config())

    def agree_on_means(self, sums: Mapping[str, ClassSums]) -> None:
        """Make class means of what sites sent, and keep them for the whole run.

        Raises:
            FedclipError: none of them has a training sample of a class.
        """
        assert self.reference is not None  # there are no sums without a site
        sent = [(each.sums, each.counts) for _, each in sorted(sums.items())]
        self.means = class_means(sent, self.reference.class_names)
        write_tensors(self.path / MEANS_FILE, {"means": self.means}, canonical_json(sorted(sums)))

    def _read_means(self) -> None:
        """Read the means that training began with, if it did."""
        path, first = self.path / MEANS_FILE, self.reference
        if not path.is_file() or first is None:
            return
        try:
            means = load_file(path)["means"]
            if means.shape != (len(first.class_names), first.embed_dim):
                raise ValueError(f"its shape is {tuple(means.shape)}")
        except (SafetensorError, KeyError, ValueError) as error:
            raise FedclipError(
                f"{path}: is damaged ({first_line(error)}); restore it, or start a new run"
            ) from None
        self.means = means

    def state(self, begun: ServerState) -> ServerState:
        """Return the state that was saved last, or `begun` if none was."""
        saved = self.folder.read_state(RunState(begun, {}))
        state = saved.server if saved else begun
        self._seconds = self.folder.keep_rounds(state.number)
        self._keep_attendance(state.number)
        return state

    def put(self, current: Round, attendance: Attendance, state: ServerState) -> None:
        """Record a round and save the state after it."""
        self.folder.append_round(current)
        self._seconds.append(current.seconds)
        line = finite_or_null({"round": current.number, **asdict(attendance)})
        with (self.path / SITES).open("a", encoding="utf-8") as file:
            file.write(canonical_json(line) + "\n")
        self.folder.save_state(RunState(state, {}))  # sites may join until it is read

    def finish(self, state: ServerState, bytes_per_client: int, *, interrupted: bool) -> RunResult:
        """Write the result and the best parameters.

        The result is about the sites that evaluated the best round's model.
        """
        status: Status = "failed" if state.failed else "finished"
        if interrupted:
            status = "interrupted"
        settings, best = self.plan.settings, state.best
        measured = self.members.keys() if best is None else (best.round.test or {}).keys()
        members = sorted(
            (each.facts for name, each in self.members.items() if name in measured),
            key=lambda each: (each.target, each.client),
        )
        facts = Facts(
            rounds=state.number,
            best=best.round if best else None,
            zero_shot={name: each for name, each in self._zero_shot.items() if name in measured},
            target=next((each.client for each in members if each.target), None),
            domains={each.client: each.client for each in members},
            samples={each.client: each.test for each in members},
            trainable_parameters=members[0].parameters,
            bytes_per_client=bytes_per_client,
            model=settings.model.facts,
        )
        if best is not None and settings.strategy.shared:
            self.write_parameters(best.parameters)
        result = result_of(facts, status, self._seconds)
        self.folder.write_result(result)
        if not interrupted:
            self.folder.clear()
            (self.path / MEANS_FILE).unlink(missing_ok=True)
        return result

    def write_parameters(self, parameters: Parameters) -> None:
        """Write the best parameters, and the class vectors if the server has these."""
        settings, first = self.plan.settings, self.reference
        assert first is not None  # there is no round without a site
        rows = {
            name: each.facts.train + each.facts.validation + each.facts.test
            for name, each in self.members.items()
        }
        target = self.plan.target or None
        facts = facts_of(first, settings, settings.model, target=target, rows=rows, contents={})
        vectors = {}
        if self.means is None:
            facts["version"] = WITHOUT_TEXTS
        else:
            vectors[CLASS_TEXTS] = self.means
        name = f"{settings.model.kind}.safetensors"
        self.folder.write_parameters(name, {**parameters, **vectors}, facts)

    def close(self) -> None:
        """Allow other processes to use the folder."""
        self._claim.close()

    @property
    def reference(self) -> SiteFacts | None:
        """What every site must agree with: what the first one said."""
        return next((member.facts for member in self.members.values()), None)

    @property
    def _zero_shot(self) -> dict[str, float]:
        """Zero-shot accuracy by client, the target last, as a simulation has it."""
        ordered = sorted(self.members.values(), key=lambda each: each.facts.target)
        return {each.facts.client: each.facts.zero_shot for each in ordered}

    def _config(self) -> dict[str, Any]:
        """List every setting of the run, and its sites."""
        plan, first = self.plan, self.reference
        return {
            "fedclip": __version__,
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "cache": {
                "name": first and first.dataset,
                "key": first and first.key,
                "clients": [*self.members],
                "normalized": first and first.normalized,
            },
            "preset": plan.preset,
            "settings": plan.settings.to_json(),
            "strategy": plan.settings.name_of("strategy"),
            "adapter": plan.settings.name_of("adapter"),
            "model": None,
            "target": plan.target or NONE,
            "engine": "flower",
            "seed": plan.settings.seed,
            "deployment": {
                "run": plan.run,
                "expected": plan.expected,
                "minimum": plan.minimum,
                "timeout": plan.timeout,
            },
            "sites": {name: member.to_json() for name, member in self.members.items()},
        }

    def _keep_attendance(self, number: int) -> None:
        """Drop the lines after round `number`."""
        path = self.path / SITES
        lines = path.read_text("utf-8", "replace").splitlines() if path.is_file() else []
        kept = [line for line in lines if _round_of(line) in range(1, number + 1)]
        if kept != lines:
            with replacing(path) as temporary:
                temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def _round_of(line: str) -> int:
    try:
        return int(json.loads(line)["round"])
    except (ValueError, LookupError, TypeError, ArithmeticError, RecursionError):
        return 0


def shown(names: Iterable[str]) -> str:
    """List names for people."""
    return ", ".join(sorted(names)) or "nobody"

"""What a server records of a federation across sites: an ordinary run, and who took part."""

import hashlib
import json
import platform
import secrets
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ... import __version__
from ...cache import EncoderFacts, FedclipError
from ...cache.common.fields import options_of
from ...cache.common.files import check_name, replacing, write_json
from ...cache.compatibility import Described
from ...cache.key import canonical_json, image_key
from ..runs.find import CONFIG, NONE
from ..runs.folder import RunFolder
from ..runs.results import Facts, RunResult, Status, finite_or_null, result_of
from ..server import Round, ServerState
from ..settings import ALL_PROMPTS, Settings
from ..simulation import RunState
from .messages import SiteFacts

SITES = "sites.jsonl"

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
        return {**asdict(self.facts), "encoder": self.facts.encoder.groups, "key": self.key}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Member":
        """Take what `to_json` returned."""
        facts = {name: value for name, value in values.items() if name != "key"}
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
        bytes_sent: What the server sent to all sites, as Flower counts it.
        bytes_received: What it received.
    """

    took_part: Sequence[str]
    left_out: Mapping[str, str]
    evaluated: Sequence[str]
    waiting: float
    computing: float
    bytes_sent: int
    bytes_received: int


class Record:
    """The folder of a run across sites.

    Args:
        path: The folder.
        plan: What the run does.
    """

    def __init__(self, path: Path, plan: Plan) -> None:
        self.folder = RunFolder(path)
        self.plan = plan
        self.members: dict[str, Member] = {}
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
            raise FedclipError(f"{path}: is finished")
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
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FedclipError(f"{path / CONFIG}: is damaged ({error!r})") from None
        record = cls(path, plan)
        record.members = members
        record._claim.enter_context(record.folder.claimed())
        return record

    def admit(self, member: Member) -> None:
        """Take note of a site that was accepted."""
        self.members = dict(sorted({**self.members, member.facts.client: member}.items()))
        write_json(self.folder.path / CONFIG, self._config())

    def state(self, begun: ServerState) -> ServerState:
        """Return the state that was saved last, or `begun` if none was."""
        saved = self.folder.read_state(RunState(begun, self._zero_shot))
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
        self.folder.save_state(RunState(state, self._zero_shot))

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
            model=settings.adapter.facts,
        )
        if best is not None and settings.strategy.shared:
            name = f"{settings.adapter.kind}.safetensors"
            assert self.reference is not None  # there is no round without a site
            parameters = parameter_facts(settings, self.reference)
            self.folder.write_parameters(name, best.parameters, parameters)
        result = result_of(facts, status, self._seconds)
        self.folder.write_result(result)
        if not interrupted:
            self.folder.clear()
        return result

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
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        kept = [line for line in lines if _round_of(line) in range(1, number + 1)]
        if kept != lines:
            with replacing(path) as temporary:
                temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def parameter_facts(settings: Settings, client: Described) -> dict[str, Any]:
    """Return what saved parameters belong to, as `Experiment.facts` does.

    Args:
        settings: Those of the run.
        client: What all sites agree on.
    """
    prompts = list(settings.prompts) or list(client.templates[:1])
    return {
        "version": WITHOUT_TEXTS,
        "kind": settings.adapter.kind,
        "adapter": settings.name_of("adapter"),
        "options": {
            name: getattr(settings.adapter, name) for name in options_of(type(settings.adapter))
        },
        "model": None,
        "embed_dim": client.embed_dim,
        "encoder": dict(client.encoder),
        "key": image_key(client.encoder),
        "dataset": client.dataset,
        "class_names": list(client.class_names),
        "prompts": list(client.templates) if prompts == [ALL_PROMPTS] else prompts,
        "feature_norm": settings.feature_norm,
        "normalized": client.normalized,
        "logit_scale": client.logit_scale,
    }


def _round_of(line: str) -> int:
    try:
        return int(json.loads(line)["round"])
    except (ValueError, KeyError, TypeError):
        return 0


def shown(names: Iterable[str]) -> str:
    """List names for people."""
    return ", ".join(sorted(names)) or "nobody"

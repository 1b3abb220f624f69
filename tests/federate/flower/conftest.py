"""Real servers and sites on loopback: a process each, with TLS and keys."""

import functools
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fedclip.cache import FeatureCache, write_cache
from fedclip.federate.data.federation import build_federation
from fedclip.federate.settings import Settings
from fedclip.federate.simulation import Callback, Run, simulate
from fedclip.federate.training.tasks import Parameters

# A guard against hanging, not a measure.
HANG = 600.0

ENVIRONMENT = {
    **{key: value for key, value in os.environ.items() if not key.startswith("FEDCLIP_")},
    "OMP_NUM_THREADS": "1",
}


# What `python -m fedclip` does.
COMMAND = "from fedclip.cli import main\nmain()\n"


def obey_interrupts() -> None:
    """Undo what a shell does to its background jobs."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Launcher:
    """A process that forks into commands: launcher.py."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("launcher.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            preexec_fn=obey_interrupts,
            # What fedclip sets before it imports Flower.
            env={
                **ENVIRONMENT,
                "FLWR_TELEMETRY_ENABLED": "0",
                "FLWR_DISABLE_UPDATE_CHECK": "1",
            },
        )

    def ask(self, **request: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


class Process:
    """A command in a process of its own, whose output is in a file."""

    def __init__(
        self,
        folder: Path,
        name: str,
        arguments: Sequence[object],
        launcher: Launcher | None,
        code: str,
        **env: str,
    ) -> None:
        self.log = folder / f"{name}.log"
        self.log.write_bytes(b"")
        self.status: Callable[[], int | None]
        words, environment = [*map(str, arguments)], {**ENVIRONMENT, **env}
        if launcher is None:
            with self.log.open("wb") as log:
                process = subprocess.Popen(
                    [sys.executable, "-c", code, *words],
                    cwd=folder,
                    env=environment,
                    preexec_fn=obey_interrupts,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            self.number, self.status = process.pid, process.poll
        else:
            self.number = launcher.ask(
                start=code,
                arguments=words,
                environment=environment,
                folder=str(folder),
                log=str(self.log),
            )
            self.status = functools.partial(launcher.ask, poll=self.number)

    @property
    def output(self) -> str:
        return self.log.read_text()

    @property
    def over(self) -> bool:
        return self.status() is not None

    def wait(self) -> int:
        until(lambda: self.over)
        status = self.status()
        assert status is not None
        return status

    @property
    def memory(self) -> int:
        """Bytes in memory."""
        pages = int(Path(f"/proc/{self.number}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGESIZE")

    def shows(self, text: str) -> None:
        """Wait until the output has a text."""
        until(lambda: text in self.output or self.over)
        assert text in self.output, self.output

    def stop(self, number: int = signal.SIGKILL) -> int:
        """Send a signal, and wait for the end."""
        os.kill(self.number, number)
        return self.wait()


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition."""
    end = time.monotonic() + HANG
    while not condition():
        assert time.monotonic() < end, "nothing happens"
        time.sleep(0.02)


class Loopback:
    """A folder with files of clients and keys, and the processes that work in it."""

    def __init__(
        self, folder: Path, caches: Sequence[FeatureCache], launcher: Launcher | None
    ) -> None:
        self.folder = folder
        self.launcher = launcher
        self.caches = list(caches)
        self.processes: list[Process] = []
        self.port = 0
        for cache in caches:
            write_cache(cache, folder / f"{cache.client}.h5")

    @property
    def run_folder(self) -> Path:
        return self.folder / "runs" / "run"

    @property
    def server_address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self, name: str, *arguments: object, code: str = COMMAND, **env: str) -> Process:
        """Start a command, with other code than `fedclip` has if some is given."""
        process = Process(self.folder, name, arguments, self.launcher, code, **env)
        self.processes.append(process)
        return process

    def keys(self, *sites: str, hosts: Sequence[str] = ("127.0.0.1", "localhost")) -> None:
        hosts_of = [word for host in hosts for word in ("--host", host)]
        sites_of = [word for site in sites for word in ("--site", site)]
        made = self.start("keys", "keys", *hosts_of, *sites_of)
        assert made.wait() == 0, made.output

    def serve(self, *arguments: object, name: str = "server", code: str = COMMAND) -> Process:
        """Start a server on a free port, or on the port of the one before."""
        where = ["--host", "127.0.0.1", "--port", self.port]
        if "--insecure" not in arguments:
            where += ["--tls-dir", "keys/server"]
        server = self.start(name, "serve", *where, *arguments, code=code)
        server.shows("listening")
        line = next(each for each in server.output.splitlines() if each.startswith("listening"))
        self.port = int(line.split(",")[0].rpartition(":")[2])
        return server

    def join(
        self,
        client: str,
        *arguments: object,
        name: str = "",
        keys: str = "",
        code: str = COMMAND,
        **env: str,
    ) -> Process:
        """Start a site."""
        secured = [] if "--insecure" in arguments else ["--keys", f"keys/{keys or client}"]
        return self.start(
            name or client,
            *("join", self.server_address, "--cache", f"{client}.h5", *secured, *arguments),
            code=code,
            **env,
        )

    def until(self, condition: Callable[[], bool]) -> None:
        until(condition)

    def rounds(self) -> list[dict[str, Any]]:
        return _lines(self.run_folder / "rounds.jsonl")

    def sites(self) -> list[dict[str, Any]]:
        return _lines(self.run_folder / "sites.jsonl")

    def adapter(self) -> Parameters:
        return load_file(self.run_folder / "adapter.safetensors")

    def result(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.run_folder / "result.json").read_text())
        return content

    def close(self) -> None:
        for each in self.processes:
            if not each.over:
                each.stop()


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    whole = path.read_text().rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines()]


@pytest.fixture
def simulated() -> Callable[..., Run]:
    """Give a function that does the same run in this process."""

    def run(
        caches: Sequence[FeatureCache],
        settings: Settings,
        *callbacks: Callback,
        target: str | None = None,
    ) -> Run:
        federation = build_federation(caches, settings, target, torch.device("cpu"))
        made = Run(federation, settings, callbacks=callbacks)
        simulate([made])
        return made

    return run


@pytest.fixture
def ray() -> None:
    """Skip where Flower's simulation cannot run."""
    pytest.importorskip("ray", reason="ray is not installed: CONTRIBUTING.md")
    if shlex.quote(sys.executable) != sys.executable:
        pytest.skip(f"Ray cannot start {sys.executable}")


@pytest.fixture
def distance() -> Callable[[Parameters, Parameters], float]:
    """Give a function: the distance of two models, as a share of the second's norm."""

    def between(one: Parameters, other: Parameters) -> float:
        assert one.keys() == other.keys()
        far = sum(float((one[name] - tensor).square().sum()) for name, tensor in other.items())
        norm = sum(float(tensor.square().sum()) for tensor in other.values())
        return float((far / norm) ** 0.5)

    return between


@pytest.fixture(scope="session")
def launcher() -> Iterator[Launcher]:
    """Give what starts commands at once."""
    made = Launcher()
    yield made
    made.close()


@pytest.fixture
def loopback(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Loopback]]:
    """Give a function that makes a folder for processes; they are killed in the end.

    The processes are forked from one that has imported torch and Flower already; with `fresh=True`
    each starts as from a shell.
    """
    made: list[Loopback] = []

    def make(caches: Sequence[FeatureCache], *, fresh: bool = False) -> Loopback:
        launcher = None if fresh else request.getfixturevalue("launcher")
        made.append(Loopback(tmp_path, caches, launcher))
        return made[-1]

    yield make
    for each in made:
        each.close()


class Nodes:
    """A grid whose sites are in this process, and may be made to answer wrongly.

    Attributes:
        tamper: By client, a function of the round and the answer's record that returns what is
            sent in its place, or None for no answer at all.
        initial: By client, a function that returns what is sent in place of its initial parameters.
        facts: By client, a function that returns what is sent in place of its description.
        wire: Every message and answer, as kind, client and record.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        from flwr.app import Context, RecordDict
        from flwr.supercore.task_identity import TaskIdentity

        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
        self.contexts = {
            number: Context(1, number, {"cache": str(path)}, RecordDict(), {})
            for number, path in enumerate(files, 100)
        }
        self.names = {number: path.stem for number, path in enumerate(files, 100)}
        self.online = set(self.contexts)
        self.tamper: dict[str, Callable[[int, Any], Any]] = {}
        self.initial: dict[str, Callable[[Any], Any]] = {}
        self.facts: dict[str, Callable[[Any], Any]] = {}
        self.activated: dict[int, str] = {}  # by node, if it has come back
        self.keys = {number: path.stem for number, path in enumerate(files, 100)}
        self.wire: list[tuple[str, str, Any]] = []
        self._replies: dict[str, Any] = {}
        self._sent = 0

    def get_nodes(self) -> list[Any]:
        from types import SimpleNamespace

        return [
            SimpleNamespace(
                node_id=number,
                last_activated_at=self.activated.get(number, ""),
                public_key=self.keys[number].encode(),
            )
            for number in sorted(self.online)
        ]

    def push_messages(self, messages: Any) -> list[str]:
        from flwr.app import Error, Message

        from fedclip.cache import FedclipError
        from fedclip.federate.flower.client_app import app

        ids = []
        for message in messages:
            self._sent += 1
            message.metadata.__dict__["_message_id"] = str(self._sent)
            node = message.metadata.dst_node_id
            client, kind = self.names[node], message.metadata.message_type
            self.wire.append((kind, client, message.content))
            if node not in self.online:
                ids.append("")
                continue
            try:
                reply = app(message, self.contexts[node])
            except FedclipError as error:
                reply = Message(Error(0, str(error)), reply_to=message)
            if kind == "train" and client in self.tamper and reply.has_content():
                number = message.content["config"]["number"]
                content = self.tamper[client](number, reply.content)
                reply = content and Message(content, reply_to=message)
            for asked, changes in (("initial", self.initial), ("describe", self.facts)):
                if kind == f"query.{asked}" and client in changes:
                    reply = Message(changes[client](reply.content), reply_to=message)
            if reply is not None and reply.has_content():
                self.wire.append((f"{kind} answer", client, reply.content))
            if reply is not None:
                self._replies[str(self._sent)] = reply
            ids.append(str(self._sent))
        return ids

    def pull_messages(self, message_ids: Any) -> list[Any]:
        found = [(each, self._replies.pop(each, None)) for each in message_ids]
        for each, reply in found:
            if reply is not None:
                reply.metadata.__dict__["_reply_to_message_id"] = each
        return [reply for _, reply in found if reply is not None]


@pytest.fixture
def nodes() -> type[Nodes]:
    """Give the class of the grid in this process."""
    return Nodes


class InProcess:
    """A server in this process with its sites.

    Args:
        folder: For files and runs.
        caches: The sites' files.
        options: More of each site's configuration.
    """

    def __init__(self, folder: Path, caches: Sequence[FeatureCache], **options: Any) -> None:
        self.folder = folder
        files = [folder / f"{cache.client}.h5" for cache in caches]
        for cache, path in zip(caches, files, strict=True):
            write_cache(cache, path)
        self.grid = Nodes(files)
        for context in self.grid.contexts.values():
            context.node_config.update(options)

    def plan(
        self,
        expected: int = 3,
        timeout: float = 30.0,
        target: str = "",
        minimum: int = 1,
        **changes: Any,
    ) -> Any:
        from fedclip.federate.flower.record import Plan

        values = {"rounds": 3, "lr": 0.01, "weight_decay": 0.0, **changes}
        settings = Settings.preset("paper", values)
        return Plan(settings, "paper", expected, minimum, timeout, target)

    def record(self, plan: Any) -> Any:
        from fedclip.federate.flower.record import Record

        record = Record(self.folder / "runs" / "run", plan)
        record.begin(overwrite=False)
        return record

    def drive(self, plan: Any, progress: Any = lambda *_: None) -> tuple[Any, Any]:
        from fedclip.federate.flower.server_app import Driver

        record = self.record(plan)
        try:
            driver = Driver(self.grid, record, authenticated=True, progress=progress)
            return record, driver.drive()
        finally:
            record.close()

    def sent(self, kind: str) -> list[tuple[str, Any]]:
        """Return what was sent of a kind of message, with the client."""
        return [(client, record) for each, client, record in self.grid.wire if each == kind]


@pytest.fixture
def server_in_process() -> type[InProcess]:
    """Give the class of a server in this process with its sites."""
    return InProcess

"""Several processes at one extraction: who they are, and how all end where one fails."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import pytest

from fedclip.cache import FedclipError
from fedclip.extract.encoding import distributed as ranks
from fedclip.extract.encoding.distributed import Ranks

MakeImages = Callable[..., Path]
Begin = Callable[..., "subprocess.Popen[str]"]

LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def begin(tmp_path: Path) -> Begin:
    """Give a function that begins a Python process as a launcher begins a rank."""
    port = free_port()

    def process(
        rank: int, size: int, arguments: Sequence[object], **environment: str
    ) -> "subprocess.Popen[str]":
        inherited = {name: value for name, value in os.environ.items() if name not in LAUNCHED}
        told = {"RANK": str(rank), "WORLD_SIZE": str(size), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            cwd=tmp_path,
            env={
                **inherited,
                **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "HF_HUB_OFFLINE": "1"},
                **told,
                **environment,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return process


def ended(processes: Sequence["subprocess.Popen[str]"]) -> list[tuple[int, str]]:
    """Wait for them all: each one's code and what it said of errors."""
    said = [process.communicate(timeout=120)[1] for process in processes]
    return [(process.returncode, errors) for process, errors in zip(processes, said, strict=True)]


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Callable[[Mapping[str, str]], Ranks]:
    """Give a function that reads what a launcher left in the environment."""

    def read(environment: Mapping[str, str]) -> Ranks:
        for name in LAUNCHED:
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return Ranks.launched()

    return read


Launched = Callable[[Mapping[str, str]], Ranks]


@pytest.mark.parametrize("failing", [0, 1])
def test_where_one_rank_fails_all_end_with_the_reason(
    make_images: MakeImages, tiny_clip: Path, begin: Begin, failing: int, tmp_path: Path
) -> None:
    make_images("pets")
    (tmp_path / "data").mkdir()
    extract = ["-m", "fedclip", "extract", "--model", f"local-dir:{tiny_clip}", "--device", "cpu"]
    processes = [
        begin(rank, 2, [*extract, "--dataset", "lost" if rank == failing else "pets"])
        for rank in range(2)
    ]
    results = ended(processes)
    assert [code for code, _ in results] == [2, 2]
    reason = "unknown dataset or folder 'lost'"
    (own,) = (line for line in results[failing][1].splitlines() if line.startswith("error"))
    assert own.startswith(f"error: {reason}")
    (other,) = (line for line in results[1 - failing][1].splitlines() if line.startswith("error"))
    assert other.startswith(f"error: rank {failing} failed: {reason}")
    assert not list(tmp_path.glob("caches/*/*/.lock"))


MEETING = """
import os, socket, sys, time
from fedclip.cache import FedclipError
from fedclip.extract.encoding.distributed import Ranks

if len(sys.argv) > 2:
    socket.gethostname = lambda: sys.argv[2]
ranks = Ranks.launched()
try:
    with ranks.together():
        print(ranks.local_rank, ranks.local_size, flush=True)
        if sys.argv[1] == "wait":
            ranks.ask("nothing")
except FedclipError as error:
    print(error, file=sys.stderr)
"""


def test_ranks_without_a_number_on_their_host_are_counted(begin: Begin) -> None:
    hosts = ("a", "b", "a")
    processes = [
        begin(rank, len(hosts), ["-c", MEETING, "go", host]) for rank, host in enumerate(hosts)
    ]
    told = [process.communicate(timeout=120) for process in processes]
    assert [output.split() for output, _ in told] == [
        ["0", "2"],
        ["0", "1"],
        ["1", "2"],
    ]


def test_ranks_that_are_told_their_number_on_their_host_keep_it(begin: Begin) -> None:
    told = {"LOCAL_RANK": "5", "LOCAL_WORLD_SIZE": "8"}
    processes = [begin(rank, 2, ["-c", MEETING, "go"], **told) for rank in range(2)]
    assert [process.communicate(timeout=120)[0].split() for process in processes] == [
        ["5", "8"],
        ["5", "8"],
    ]


def test_where_the_leader_is_killed_the_others_end_with_a_line(begin: Begin) -> None:
    leader, other = (begin(rank, 2, ["-c", MEETING, "wait"]) for rank in range(2))
    for process in (leader, other):  # they have met
        assert process.stdout is not None
        assert process.stdout.readline()
    leader.send_signal(signal.SIGKILL)
    (_, _), (code, said) = ended([leader, other])
    assert code == 0
    (line,) = said.splitlines()
    assert line.startswith("rank 1 lost the others (")


def test_a_rank_whose_fellows_do_not_come_ends_with_a_line(
    launched: Launched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "ARRIVAL", timedelta(seconds=1))
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    for rank in ("0", "1"):
        alone = launched({"RANK": rank, "WORLD_SIZE": "2", **place})
        with (
            pytest.raises(FedclipError, match=rf"^rank {rank} cannot meet the others \(.*\); "),
            alone.together(),
        ):
            pass


def test_without_a_place_to_meet_the_line_names_what_is_missing(launched: Launched) -> None:
    alone = launched({"RANK": "1", "WORLD_SIZE": "2"})
    with pytest.raises(FedclipError, match="MASTER_ADDR expected"), alone.together():
        pass


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "2"}, "^RANK=: a whole number from 0 on belongs there"),
        ({"WORLD_SIZE": "two"}, "^WORLD_SIZE=two: a whole number from 1 on"),
        ({"WORLD_SIZE": "0"}, "^WORLD_SIZE=0: a whole number from 1 on"),
        ({"WORLD_SIZE": "2", "RANK": "-1"}, "^RANK=-1: a whole number"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "^RANK=2: ranks are numbered from 0"),
        ({"LOCAL_RANK": "x"}, "^LOCAL_RANK=x: "),
        ({"LOCAL_WORLD_SIZE": "0"}, "^LOCAL_WORLD_SIZE=0: "),
    ],
)
def test_what_no_launcher_sets_is_refused(
    launched: Launched, environment: Mapping[str, str], message: str
) -> None:
    with pytest.raises(FedclipError, match=message):
        launched(environment)


@pytest.mark.parametrize("environment", [{}, dict.fromkeys(LAUNCHED, "")])
def test_what_is_empty_is_not_set(launched: Launched, environment: Mapping[str, str]) -> None:
    alone = launched(environment)
    assert (alone.rank, alone.size, alone.local_rank, alone.local_size) == (0, 1, 0, 1)

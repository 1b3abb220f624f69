"""Several processes at one extraction: who they are, and how all end where one fails."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import pytest

from fedclip.cache import FedclipError
from fedclip.extract.encoding import distributed as ranks
from fedclip.extract.encoding.distributed import Ranks

MakeImages = Callable[..., Path]
Begin = Callable[..., "subprocess.Popen[str]"]
Ended = Callable[[Sequence["subprocess.Popen[str]"]], list[tuple[int, str]]]
WaitUntil = Callable[[Callable[[], bool]], None]

LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def begin(tmp_path: Path) -> Begin:
    """Give a function that begins a Python process as a launcher begins a rank."""

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
                "HF_HUB_OFFLINE": "1",
                **told,
                **environment,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return process


@pytest.fixture
def ended(hangs: int) -> Ended:
    """Give a function that waits for processes: each one's code and what it said of errors."""

    def wait(processes: Sequence["subprocess.Popen[str]"]) -> list[tuple[int, str]]:
        said = [process.communicate(timeout=hangs)[1] for process in processes]
        return [
            (process.returncode, errors) for process, errors in zip(processes, said, strict=True)
        ]

    return wait


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


@pytest.mark.slow
@pytest.mark.parametrize("failing", [0, 1])
def test_where_one_rank_fails_all_end_with_the_reason(
    make_images: MakeImages,
    tiny_clip: Path,
    begin: Begin,
    ended: Ended,
    failing: int,
    tmp_path: Path,
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
import socket, sys
from pathlib import Path
from fedclip.cache import FedclipError
from fedclip.extract.encoding.distributed import Ranks

if len(sys.argv) > 2:
    socket.gethostname = lambda: sys.argv[2]
ranks = Ranks.launched()
with ranks.together(Path("caches")):
    print(ranks.local_rank, ranks.local_size, flush=True)
    if sys.argv[1] == "wait":
        ranks.ask("nothing")
"""


def test_ranks_without_a_number_on_their_host_are_counted(
    begin: Begin, tmp_path: Path, hangs: int
) -> None:
    hosts = ("a", "b", "a")
    processes = [
        begin(rank, len(hosts), ["-c", MEETING, "go", host]) for rank, host in enumerate(hosts)
    ]
    told = [process.communicate(timeout=hangs)[0] for process in processes]
    assert [output.split() for output in told] == [["0", "2"], ["0", "1"], ["1", "2"]]
    assert list((tmp_path / "caches").iterdir()) == []


def test_ranks_that_are_given_their_number_on_their_host_keep_it(begin: Begin, hangs: int) -> None:
    given = {"LOCAL_RANK": "5", "LOCAL_WORLD_SIZE": "8"}
    processes = [begin(rank, 2, ["-c", MEETING, "go"], **given) for rank in range(2)]
    assert [process.communicate(timeout=hangs)[0].split() for process in processes] == [
        ["5", "8"],
        ["5", "8"],
    ]


def test_what_killed_ranks_left_does_not_confuse_the_next_ones(
    begin: Begin, ended: Ended, wait_until: WaitUntil, tmp_path: Path
) -> None:
    killed = [begin(rank, 2, ["-c", MEETING, "wait"]) for rank in range(2)]
    for process in killed:
        assert process.stdout is not None
        assert process.stdout.readline()  # they have met
        process.send_signal(signal.SIGKILL)
    ended(killed)
    (place,) = (tmp_path / "caches").iterdir()
    (attempt,) = (path for path in place.iterdir() if path.is_dir())
    (attempt / "failed.json").write_text('[1, "long ago"]')
    (place / "ask-of-a-killed-rank").touch()
    stale = {*place.iterdir()}
    last = begin(1, 2, ["-c", MEETING, "go"])  # before the first, which it must wait for
    wait_until(lambda: not stale >= {*place.iterdir()} or last.poll() is not None)
    assert last.poll() is None  # it has asked, and waits
    first = begin(0, 2, ["-c", MEETING, "go"])
    assert ended([first, last]) == [(0, ""), (0, "")]
    assert list((tmp_path / "caches").iterdir()) == []


def test_launches_at_the_same_time_do_not_meet(begin: Begin, ended: Ended, tmp_path: Path) -> None:
    ports = ("1", "2")
    processes = [
        begin(rank, 2, ["-c", MEETING, "go", port], MASTER_PORT=port)
        for port in ports
        for rank in range(2)
    ]
    assert ended(processes) == [(0, "")] * 4
    assert list((tmp_path / "caches").iterdir()) == []


def test_a_rank_whose_fellows_do_not_come_ends_with_a_line(
    launched: Launched, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ranks, "ARRIVAL", timedelta(seconds=1))
    monkeypatch.setattr(ranks, "FAREWELL", timedelta(seconds=1))
    for rank in ("0", "1"):
        alone = launched({"RANK": rank, "WORLD_SIZE": "2"})
        with (
            pytest.raises(
                FedclipError, match=rf"^rank {rank}: the other .* did not start; start all 2"
            ),
            alone.together(tmp_path),
        ):
            pass


def test_what_was_left_long_ago_is_removed(begin: Begin, ended: Ended, tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / "caches" / f".ranks-{name}" / "attempt").mkdir(parents=True)
    eight_days_ago = time.time() - 8 * 24 * 3600
    os.utime(tmp_path / "caches" / ".ranks-old", (eight_days_ago, eight_days_ago))
    processes = [begin(rank, 2, ["-c", MEETING, "go"]) for rank in range(2)]
    assert ended(processes) == [(0, ""), (0, "")]
    assert [path.name for path in (tmp_path / "caches").iterdir()] == [".ranks-new"]


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "2"}, "^RANK=: must be a whole number of at least 0; let the launcher"),
        ({"WORLD_SIZE": "two"}, "^WORLD_SIZE=two: must be a whole number of at least 1;"),
        ({"WORLD_SIZE": "0"}, "^WORLD_SIZE=0: must be a whole number of at least 1;"),
        ({"WORLD_SIZE": "2", "RANK": "-1"}, "^RANK=-1: must be a whole number"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "^RANK=2: must be below WORLD_SIZE"),
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

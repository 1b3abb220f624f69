"""One extraction by several processes, started by `torchrun` or a cluster's launcher.

The processes share a file system and exchange files below the folder of caches. For each attempt,
the first rank makes a folder with a random name. The others ask for this name by creating new
request files, which only a running first rank answers. So files left by a killed attempt are
never mistaken for those of this one, even if both use the same place. A rank that fails leaves
its reason in a file, at which the others stop.
"""

import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from ...cache import FedclipError
from ...cache.common.files import replacing

# How long the ranks wait for each other to start.
ARRIVAL = timedelta(minutes=10)
# How long the first rank waits for the others to leave, so that all can read why one failed.
FAREWELL = timedelta(minutes=1)
# Age at which files of a killed launch are removed.
ABANDONED = timedelta(days=7)
# Seconds between two checks for files of other ranks.
PAUSE = 0.2

# Variables that launchers set to equal values for the ranks of one launch, and to different ones
# for launches that run at the same time.
_LAUNCH = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT", "SLURM_JOB_ID", "SLURM_STEP_ID")

_PLACE, _ASK, _FAILED = ".ranks-", "ask-", "failed.json"


class RankFailedError(FedclipError):
    """Another rank failed."""


@dataclass
class Ranks:
    """This process among all processes of its launch; by default the only one.

    Attributes:
        rank: Number of this process; 0 leads.
        size: Number of processes.
        local_rank: Number of this process on its host.
        local_size: Number of processes on its host.
        counted: Whether the launcher set these two; otherwise `together` determines them.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    counted: bool = True
    _folder: Path = field(default=Path(), init=False, repr=False)

    @classmethod
    def launched(cls) -> Self:
        """Read the variables that a launcher may have set in the environment.

        Raises:
            FedclipError: a variable is not a valid number, or this process has no rank.
        """
        size = _number("WORLD_SIZE", default=1, least=1)
        rank = _number("RANK", default=None if size > 1 else 0)
        if rank >= size:
            raise FedclipError(f"RANK={rank}: must be below WORLD_SIZE, which is {size}")
        return cls(
            rank=rank,
            size=size,
            local_rank=_number("LOCAL_RANK", default=0),
            local_size=_number("LOCAL_WORLD_SIZE", default=size, least=1),
            counted=all(map(os.environ.get, ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))),
        )

    @property
    def leads(self) -> bool:
        """Whether this is the rank that prepares, assembles and shows progress."""
        return self.rank == 0

    @contextmanager
    def together(self, cache_dir: Path) -> Iterator[None]:
        """Wait for the other ranks to start, and at the end until the first is done.

        Args:
            cache_dir: The folder of caches, below which the ranks exchange files.

        Raises:
            FedclipError: a rank does not start in time, or one fails.
        """
        if self.size == 1:
            yield
            return
        place = cache_dir / f"{_PLACE}{_launch()}"
        place.mkdir(parents=True, exist_ok=True)
        end = time.monotonic() + ARRIVAL.total_seconds()
        self._folder = place / uuid4().hex if self.leads else self._join(place, end)
        self._folder.mkdir(exist_ok=True)
        try:
            self._meet(place, end)
            yield
            if self.leads:
                self.tell("finished", True)
            else:
                self.ask("finished")
        except BaseException as error:
            self._fail(error)
            raise
        finally:
            self._leave()

    def tell(self, subject: str, value: Any) -> None:
        """Send a JSON value to the other ranks."""
        if self.size > 1:
            _write(self._file(subject, self.rank), value)

    def ask(self, subject: str, rank: int = 0) -> Any:
        """Wait for a value that another rank, by default the first, sends, and return it.

        Raises:
            RankFailedError: a rank failed.
        """
        path = self._file(subject, rank)
        while not path.exists():
            self.check()
            time.sleep(PAUSE)
        return json.loads(path.read_bytes())

    def check(self) -> None:
        """Check that no other rank has failed.

        Raises:
            RankFailedError: one has failed.
        """
        failed = self._folder / _FAILED
        if self.size > 1 and failed.exists():
            rank, reason = json.loads(failed.read_bytes())
            raise RankFailedError(f"rank {rank} failed: {reason}")

    def _join(self, place: Path, end: float) -> Path:
        request = place / f"{_ASK}{uuid4().hex}"
        request.touch()
        try:
            while not (name := request.read_text()):
                self._wait(end)
        finally:
            request.unlink()
        return place / name

    def _meet(self, place: Path, end: float) -> None:
        """Wait until all ranks have started, and determine which of them are on this host."""
        host = socket.gethostname()
        self.tell("host", host)
        files = [self._file("host", rank) for rank in range(self.size)]
        while self.leads and not all(path.exists() for path in files):
            for request in place.glob(f"{_ASK}*"):
                with suppress(FileNotFoundError):
                    if not request.stat().st_size:
                        request.write_text(self._folder.name)
            self._wait(end)
        hosts = [self.ask("host", rank) for rank in range(self.size)]
        if not self.counted:
            here = [rank for rank, other in enumerate(hosts) if other == host]
            self.local_rank, self.local_size = here.index(self.rank), len(here)

    def _wait(self, end: float) -> None:
        if time.monotonic() > end:
            raise FedclipError(
                f"rank {self.rank}: the other ranks did not start; start all {self.size} ranks "
                f"within {ARRIVAL.total_seconds() / 60:g} minutes, with the same shared --cache-dir"
            )
        time.sleep(PAUSE)

    def _file(self, subject: str, rank: int) -> Path:
        return self._folder / f"{subject}-{rank}.json"

    def _fail(self, error: BaseException) -> None:
        failed = self._folder / _FAILED
        if not failed.exists():  # keep the first reason
            reason = " ".join(str(error).split()) or type(error).__name__
            with suppress(OSError):
                _write(failed, [self.rank, reason])

    def _leave(self) -> None:
        """Leave; the first rank leaves last and removes the files of this and of old launches."""
        with suppress(OSError):
            self.tell("left", True)
        end = time.monotonic() + FAREWELL.total_seconds()
        place, files = self._folder.parent, [self._file("left", r) for r in range(self.size)]
        while self.leads and not all(path.exists() for path in files):
            if time.monotonic() > end:
                return  # keep the files, so that late ranks can read the reason
            time.sleep(PAUSE)
        if self.leads:
            shutil.rmtree(place, ignore_errors=True)
            for other in place.parent.glob(f"{_PLACE}*"):
                with suppress(OSError):
                    if time.time() - other.stat().st_mtime > ABANDONED.total_seconds():
                        shutil.rmtree(other)


def _write(path: Path, value: Any) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value))


def _launch() -> str:
    values = [os.environ.get(variable, "") for variable in _LAUNCH]
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:8]


def _number(variable: str, default: int | None, least: int = 0) -> int:
    """Read a number that a launcher sets; an empty variable counts as unset."""
    text = os.environ.get(variable, "")
    if not text and default is not None:
        return default
    try:
        number = int(text)
    except ValueError:
        number = -1
    if number < least:
        raise FedclipError(
            f"{variable}={text}: must be a whole number of at least {least}; let the launcher set "
            "RANK and WORLD_SIZE, or unset WORLD_SIZE"
        )
    return number

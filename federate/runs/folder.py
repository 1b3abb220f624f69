"""A run on disk: config, a line per round, the state, the result, the best parameters."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ...cache import FedclipError
from ...cache.common.files import TEMPORARY_PREFIX, replacing, sync, write_json
from ...cache.key import canonical_json
from ..server import Round
from ..simulation import RunState
from ..training.metrics import Scores
from ..training.tasks import Parameters
from .catalog import RESULT, ROUNDS, check_removable, claimed, read_json
from .checkpoint import read_state, round_line, write_state, write_tensors
from .find import CONFIG, is_run
from .results import OVER, Result, finite_or_null, read_result

ADAPTER, PERSONAL = "adapter.safetensors", "personal.safetensors"
STATE = "state.safetensors"

# The option that chooses where runs are kept.
RUNS_DIR = "--runs-dir"


class RunFolder:
    """The folder of one run, or of one target of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def begun(self) -> bool:
        """Whether there is a run in it."""
        return is_run(self.path)

    def begin(self, config: Mapping[str, Any], *, overwrite: bool = False) -> None:
        """Make the folder, with every setting of the run and nothing else in it.

        Raises:
            FedclipError: it exists and is not to be overwritten, or is not a run.
        """
        if self._occupied():
            if not overwrite:
                over = self.result_if_over() is not None
                rest = "" if over or not self.begun else f"resume it with --resume {self.path}, or "
                raise FedclipError(
                    f"{self.path}: this run exists; {rest}pass --overwrite or another --name"
                )
            if not self.begun:
                raise FedclipError(
                    f"{self.path}: is not a run (it has no {CONFIG}), so it is not overwritten; "
                    "choose another --name"
                )
            check_removable(self.path)
            with self.claimed():
                shutil.rmtree(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / CONFIG, config)

    def _occupied(self) -> bool:
        """Return whether it has more than what a process killed while starting leaves."""
        if self.path.is_dir() and not self.path.is_symlink():
            return any(not item.name.startswith(TEMPORARY_PREFIX) for item in self.path.iterdir())
        return self.path.exists() or self.path.is_symlink()

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Lock out other processes; the system releases the lock when this one ends.

        Raises:
            FedclipError: another process is working on it.
        """
        with claimed(self.path):
            yield

    def read_config(self) -> dict[str, Any]:
        """Read every setting of the run.

        Raises:
            FedclipError: it is not a run, or the file is damaged.
        """
        if not self.begun:
            raise FedclipError(f"{self.path}: is not a run (it has no {CONFIG})")
        config = read_json(self.path / CONFIG)
        if config is None:
            raise FedclipError(f"{self.path / CONFIG}: is damaged; run it again with --overwrite")
        return config

    def append_round(
        self, current: Round, scores: Mapping[str, Scores] = MappingProxyType({})
    ) -> None:
        """Append a line to the rounds.

        Args:
            current: The round.
            scores: By client, what its test part came to if it was evaluated.
        """
        line = round_line(current)
        more = ("balanced_accuracy", "macro_f1")
        for name in more:
            by_client = {client: getattr(each, name) for client, each in scores.items()}
            line[name] = by_client or None
        if not current.finite:  # accuracies of parameters with NaN mean nothing
            for part in ("validation", "test", "personal", *more):
                line[part] = line[part] and dict.fromkeys(line[part])
        with (self.path / ROUNDS).open("a", encoding="utf-8") as file:
            file.write(canonical_json(finite_or_null(line)) + "\n")

    def keep_rounds(self, number: int) -> list[float]:
        """Drop the lines after round `number`, complete or torn; return the others' seconds.

        Raises:
            FedclipError: some are missing.
        """
        path = self.path / ROUNDS
        content = path.read_bytes() if path.is_file() else b""
        kept = b"".join(content.splitlines(keepends=True)[:number])
        try:
            lines = [json.loads(line) for line in kept.splitlines()]
            if [line["round"] for line in lines] != list(range(1, number + 1)):
                raise ValueError
            seconds = [float(line["seconds"]) for line in lines]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise FedclipError(
                f"{path}: some of its {number} rounds are missing; remove "
                f"{self.path / STATE} to start the run from the beginning"
            ) from None
        if kept != content:
            with replacing(path) as temporary:
                temporary.write_bytes(kept)
        return seconds

    def save_state(self, state: RunState) -> None:
        """Save a state, once the rounds that led to it are safe."""
        with (self.path / ROUNDS).open("a", encoding="utf-8") as file:
            sync(file.fileno())
        write_state(self.path / STATE, state)

    def read_state(self, like: RunState) -> RunState | None:
        """Read the state that was saved last, if one was.

        Raises:
            FedclipError: it is damaged, or belongs to another adapter than `like`.
        """
        path = self.path / STATE
        return read_state(path, like) if path.is_file() else None

    def clear(self) -> None:
        """Delete what a run that is over does not need, and what a killed process left."""
        (self.path / STATE).unlink(missing_ok=True)
        for leftover in self.path.glob(f"{TEMPORARY_PREFIX}*"):
            leftover.unlink()

    def read_result(self) -> Result | None:
        """Read the result, if there is one."""
        content = read_json(self.path / RESULT)
        return None if content is None else read_result(content)

    def result_if_over(self) -> Result | None:
        """Read the result of a run that has no rounds left to do; None of any other."""
        result = self.read_result()
        return result if result is not None and result.status in OVER else None

    def write_result(self, result: Result) -> None:
        """Write the result, whole or not at all."""
        write_json(self.path / RESULT, result.to_json())

    def write_parameters(self, name: str, parameters: Parameters, facts: Mapping[str, Any]) -> None:
        """Write parameters as safetensors, with `facts` as JSON in the one metadata entry."""
        write_tensors(self.path / name, parameters, canonical_json(dict(facts)))

"""A run on disk: config, a line a round, the state, the result, the best adapters."""

import fcntl
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from ...cache import FedclipError
from ...cache.common.files import TEMPORARY_PREFIX, replacing, write_json
from ...cache.key import canonical_json
from ..server import Round, Run, RunState
from ..strategies import Strategy
from ..training.engine import Parameters
from ..training.evaluate import mean, pooled
from .checkpoint import read_state, round_line, write_state

Status = Literal["finished", "interrupted", "failed"]

# With one of these there are no rounds left to do.
OVER: tuple[Status, ...] = ("finished", "failed")

CONFIG = "config.json"
ROUNDS = "rounds.jsonl"
RESULT = "result.json"
ADAPTER = "adapter.safetensors"
MODEL = "model.safetensors"
PERSONAL = "personal.safetensors"
STATE = "state.safetensors"

# Averaged over the targets in a summary.
_AVERAGED = (
    "generalization",
    "zero_shot_generalization",
    "personalization",
    "zero_shot_personalization",
    "personal_mean",
    "zero_shot_personal_mean",
    "mean",
    "zero_shot_mean",
    "pooled",
    "zero_shot_pooled",
    "seconds_per_round",
)


class RunFolder:
    """The folder of one run, or of one target of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def begun(self) -> bool:
        """Whether there is a run in it."""
        return (self.path / CONFIG).is_file()

    def begin(self, config: Mapping[str, Any], *, overwrite: bool = False) -> None:
        """Make the folder, with every setting of the run and nothing else in it.

        Raises:
            FedclipError: it exists and is not to be overwritten, or is no run.
        """
        if self._occupied():
            if not overwrite:
                over = (self.read_result() or {}).get("status") in OVER
                rest = "" if over or not self.begun else f"go on with --resume {self.path}, or "
                raise FedclipError(
                    f"{self.path}: this run exists; {rest}give --overwrite, or another --name"
                )
            if self.path.is_symlink() or not self.begun:
                raise FedclipError(
                    f"{self.path}: is no run (it has no {CONFIG}), so it is not overwritten; "
                    "give another --name"
                )
            with self.claimed():
                shutil.rmtree(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / CONFIG, config)

    def _occupied(self) -> bool:
        """Tell whether there is more than what a process killed while beginning leaves."""
        if self.path.is_dir() and not self.path.is_symlink():
            return any(not item.name.startswith(TEMPORARY_PREFIX) for item in self.path.iterdir())
        return self.path.exists() or self.path.is_symlink()

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep other processes from this run; the system lets go when this one ends.

        Raises:
            FedclipError: another process is at it.
        """
        handle = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise FedclipError(
                f"{self.path}: another process is at this run; wait until it is done"
            ) from None
        try:
            yield
        finally:
            os.close(handle)

    def read_config(self) -> dict[str, Any]:
        """Read every setting of the run.

        Raises:
            FedclipError: there is no run, or the file is damaged.
        """
        if not self.begun:
            raise FedclipError(f"{self.path}: there is no run here (no {CONFIG})")
        config = _read_json(self.path / CONFIG)
        if config is None:
            raise FedclipError(f"{self.path / CONFIG}: is damaged; run it again with --overwrite")
        return config

    def append_round(self, current: Round) -> None:
        """Append a line to the rounds, and hand it to the operating system."""
        line = round_line(current)
        if not current.finite:  # accuracies of parameters that are no numbers mean nothing
            for part in ("validation", "test", "personal"):
                line[part] = line[part] and dict.fromkeys(line[part])
        with (self.path / ROUNDS).open("a", encoding="utf-8") as file:
            file.write(canonical_json(finite_or_null(line)) + "\n")

    def keep_rounds(self, number: int) -> list[float]:
        """Drop the lines after round `number`, whole or torn; return the others' seconds.

        Raises:
            FedclipError: there are not so many.
        """
        path = self.path / ROUNDS
        content = path.read_bytes() if path.is_file() else b""
        kept = b"".join(content.splitlines(keepends=True)[:number])
        try:
            lines = [json.loads(line) for line in kept.splitlines()]
            if [line["round"] for line in lines] != list(range(1, number + 1)):
                raise ValueError
            seconds = [float(line["seconds"]) for line in lines]
        except (ValueError, TypeError, KeyError):
            raise FedclipError(
                f"{path}: lacks some of the {number} rounds that are done; remove "
                f"{self.path / STATE}, and the run begins anew"
            ) from None
        if kept != content:
            with replacing(path) as temporary:
                temporary.write_bytes(kept)
        return seconds

    def save_state(self, state: RunState) -> None:
        """Save a state, once the rounds that led to it are safe."""
        with (self.path / ROUNDS).open("a", encoding="utf-8") as file:
            os.fsync(file.fileno())
        write_state(self.path / STATE, state)

    def read_state(self, like: Parameters) -> RunState | None:
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

    def read_result(self) -> dict[str, Any] | None:
        """Read the result, if there is one."""
        return _read_json(self.path / RESULT)

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write the result, whole or not at all."""
        write_json(self.path / RESULT, result)

    def write_parameters(
        self, name: str, best: Round, strategy: Strategy, facts: Mapping[str, Any]
    ) -> None:
        """Write the best round's parameters: the server's, and those of the clients' own models.

        Args:
            name: What the server's go to: `ADAPTER`, or `MODEL` for a whole model.
            best: The round.
            strategy: Says which of them there are.
            facts: Become the files' one metadata entry, as JSON.
        """
        if strategy.shared:
            self._write_tensors(name, best.parameters, facts)
        if strategy.personalised:
            own = {
                f"{client}/{name}": tensor
                for client, parameters in best.own.items()
                for name, tensor in parameters.items()
            }
            self._write_tensors(PERSONAL, own, facts)

    def _write_tensors(
        self, name: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]
    ) -> None:
        # Copied, as clients may share tensors, which safetensors refuses.
        copies = {
            name: tensor.to("cpu", copy=True, memory_format=torch.contiguous_format)
            for name, tensor in tensors.items()
        }
        with replacing(self.path / name) as temporary:
            # Several entries of metadata would be written in random order.
            save_file(copies, temporary, metadata={"fedclip": canonical_json(dict(facts))})


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def finite_or_null(value: Any) -> Any:
    """Replace every float that is not finite by None, at any depth."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite_or_null(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_null(item) for item in value]
    return value


def result_of(run: Run, status: Status, seconds: Sequence[float]) -> dict[str, Any]:
    """Sum up a run; accuracies are fractions, those of the best round, null if not finite.

    Args:
        run: As its last round left it.
        status: How it ended.
        seconds: Of each round; the result has their median, as the first one warms up.
    """
    federation, best, zero_shot = run.federation, run.state.best, run.state.zero_shot
    clients = federation.clients
    accuracy = best.test if best and best.test else dict.fromkeys(zero_shot, math.nan)
    target = federation.target.name if federation.target else None
    participants = [client.name for client in federation.participants]
    validation = best.validation if best else None
    personal = best.personal if best else None
    result = {
        "status": status,
        "rounds": run.state.number,
        "target": target,
        "best_round": best.number if best else None,
        "validation": validation or dict.fromkeys(participants, math.nan),
        "zero_shot": zero_shot,
        "accuracy": accuracy,
        "generalization": accuracy[target] if target else None,
        "zero_shot_generalization": zero_shot[target] if target else None,
        "personalization": mean(accuracy[name] for name in participants),
        "zero_shot_personalization": mean(zero_shot[name] for name in participants),
        "personal": personal,
        "personal_mean": mean(personal.values()) if personal else None,
        "zero_shot_personal_mean": mean(zero_shot[name] for name in personal) if personal else None,
        "mean": mean(accuracy.values()),
        "zero_shot_mean": mean(zero_shot.values()),
        "pooled": pooled(accuracy, clients),
        "zero_shot_pooled": pooled(zero_shot, clients),
        "domains": {client.name: client.domain for client in clients},
        "test_samples": {client.name: len(client.test) for client in clients},
        "dropped": dict(federation.dropped),
        "trainable_parameters": run.trainable_parameters,
        "bytes_per_round": run.bytes_per_client,
        "model": run.federation.whole and run.federation.whole.facts,
        "seconds_per_round": median(seconds) if seconds else math.nan,
    }
    return dict(finite_or_null(result))


def summary_of(results: Sequence[Mapping[str, Any]], *, complete: bool = True) -> dict[str, Any]:
    """Sum up the runs over several targets: each target's own accuracy, and the means.

    Args:
        results: One or more, as `result_of` gives them.
        complete: Whether there are no more to come.
    """
    statuses = {result["status"] for result in results} | (set() if complete else {"interrupted"})
    # What can go on is not over, whatever else failed.
    status = next((s for s in ("interrupted", "failed") if s in statuses), "finished")
    averaged = {name: mean(_number(result[name]) for result in results) for name in _AVERAGED}
    summary = {
        "status": status,
        "target": "all",
        "targets": [result["target"] for result in results],
        "best_round": {result["target"]: result["best_round"] for result in results},
        "zero_shot": {result["target"]: result["zero_shot_generalization"] for result in results},
        "accuracy": {result["target"]: result["generalization"] for result in results},
        **averaged,
        "trainable_parameters": results[0]["trainable_parameters"],
        "bytes_per_round": results[0]["bytes_per_round"],
        "model": results[0].get("model"),
    }
    return dict(finite_or_null(summary))


def _number(value: float | None) -> float:
    return math.nan if value is None else value

"""What a run leaves on disk: config, a line a round, the result, the best adapter."""

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Literal

from safetensors.torch import save

from ..cache import FedclipError
from ..cache.files import replacing, write_json
from ..cache.key import canonical_json
from .evaluate import mean, pooled
from .server import Round, Run

Status = Literal["finished", "interrupted", "failed"]

CONFIG = "config.json"
ROUNDS = "rounds.jsonl"
RESULT = "result.json"
ADAPTER = "adapter.safetensors"

# Averaged over the targets in a summary.
_AVERAGED = (
    "generalization",
    "zero_shot_generalization",
    "personalization",
    "zero_shot_personalization",
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

    @classmethod
    def create(cls, path: Path, *, overwrite: bool) -> "RunFolder":
        """Make the folder, empty.

        Raises:
            FedclipError: it exists and is not to be overwritten, or is no run.
        """
        if path.exists() or path.is_symlink():
            if not overwrite:
                raise FedclipError(f"{path}: this run exists; give --overwrite, or another --name")
            if path.is_symlink() or not (path / CONFIG).is_file():
                raise FedclipError(
                    f"{path}: is no run (it has no {CONFIG}), so it is not overwritten; "
                    "give another --name"
                )
            shutil.rmtree(path)
        path.mkdir(parents=True)
        return cls(path)

    def below(self, name: str) -> "RunFolder":
        """Make a folder inside this one."""
        return self.create(self.path / name, overwrite=False)

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write every setting of the run."""
        write_json(self.path / CONFIG, config)

    def append_round(self, current: Round) -> None:
        """Append a line to the rounds, and hand it to the operating system."""
        line: dict[str, Any] = {
            "round": current.number,
            "seconds": current.seconds,
            "train_loss": current.train_loss,
            "validation": current.validation,
            "test": current.test,
            "bytes_up": current.bytes_up,
            "bytes_down": current.bytes_down,
        }
        if not current.finite:  # accuracies of parameters that are no numbers mean nothing
            for part in ("validation", "test"):
                line[part] = line[part] and dict.fromkeys(line[part])
        with (self.path / ROUNDS).open("a", encoding="utf-8") as file:
            file.write(canonical_json(finite_or_null(line)) + "\n")

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write the result, whole or not at all."""
        write_json(self.path / RESULT, result)

    def write_adapter(self, best: Round, facts: Mapping[str, Any]) -> None:
        """Write the best round's adapter; `facts` become its one metadata entry, as JSON."""
        tensors = {name: tensor.cpu().contiguous() for name, tensor in best.parameters.items()}
        # Several entries would be written in random order.
        content = save(tensors, metadata={"fedclip": canonical_json(dict(facts))})
        with replacing(self.path / ADAPTER) as temporary:
            temporary.write_bytes(content)


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
        "mean": mean(accuracy.values()),
        "zero_shot_mean": mean(zero_shot.values()),
        "pooled": pooled(accuracy, clients),
        "zero_shot_pooled": pooled(zero_shot, clients),
        "domains": {client.name: client.domain for client in clients},
        "test_samples": {client.name: len(client.test) for client in clients},
        "dropped": dict(federation.dropped),
        "trainable_parameters": run.trainable_parameters,
        "bytes_per_round": run.parameter_bytes,
        "seconds_per_round": median(seconds) if seconds else math.nan,
    }
    return dict(finite_or_null(result))


def summary_of(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sum up the runs over several targets: each target's own accuracy, and the means."""
    statuses = {result["status"] for result in results}
    status = next((s for s in ("failed", "interrupted") if s in statuses), "finished")
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
    }
    return dict(finite_or_null(summary))


def _number(value: float | None) -> float:
    return math.nan if value is None else value

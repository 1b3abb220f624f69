"""A run's state as a file: safetensors, with what is not a tensor as JSON in its header."""

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...cache import FedclipError
from ...cache.common.files import replacing
from ..server import Best, Round, ServerState
from ..simulation import RunState
from ..strategies.base import SERVER
from ..training.tasks import Parameters

_OS_ERROR = re.compile(r"\(os error (\d+)\)")

STRATEGY = "strategy"
BEST = "best"
BEST_OWN = "best-own"


def round_line(current: Round) -> dict[str, Any]:
    """Return what is recorded of a round."""
    return {
        "round": current.number,
        "seconds": current.seconds,
        "train_loss": current.train_loss,
        "validation": current.validation,
        "test": current.test,
        "personal": current.personal,
        "bytes_up": current.bytes_up,
        "bytes_down": current.bytes_down,
    }


def write_state(path: Path, state: RunState) -> None:
    """Write a state in place of `path`: whole and fsynced, or not at all."""
    best = state.server.best
    parts = {
        **state.server.strategy,
        **{
            f"{part}/{client}": parameters
            for client, own in state.clients.items()
            for part, parameters in own.items()
        },
    }
    tensors = {
        f"{STRATEGY}/{part}/{name}": tensor
        for part, parameters in parts.items()
        for name, tensor in parameters.items()
    }
    if best is not None:
        tensors |= {f"{BEST}/{name}": tensor for name, tensor in best.parameters.items()}
        tensors |= {
            f"{BEST_OWN}/{client}/{name}": tensor
            for client, parameters in state.best_own.items()
            for name, tensor in parameters.items()
        }
    # In JSON clients keep their order, as the last bit of a mean depends on it.
    facts = {
        "round": state.server.number,
        "zero_shot": {
            client: None if math.isnan(value) else value
            for client, value in state.zero_shot.items()
        },
        "parts": sorted(parts),
        "best": round_line(best.round) if best else None,
    }
    write_tensors(path, tensors, json.dumps(facts, allow_nan=False))


def write_tensors(path: Path, tensors: Mapping[str, Tensor], facts: str) -> None:
    """Write tensors as safetensors, with `facts` as the one metadata entry.

    Several entries would be written in random order.

    Raises:
        OSError: the file cannot be written.
    """
    # Copied, as some may share memory, which safetensors refuses.
    copies = {
        name: tensor.to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    with replacing(path) as temporary:
        try:
            save_file(copies, temporary, metadata={"fedclip": facts})
        except SafetensorError as error:
            # Its message ends like "File too large (os error 27)".
            number = _OS_ERROR.search(str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from None


def read_state(path: Path, like: RunState) -> RunState:
    """Read the state of a run that is not over.

    Args:
        path: Its file.
        like: The run's initial state, whose parts, names, shapes, clients and device it must have.

    Raises:
        FedclipError: the file is damaged, or belongs to another adapter.
    """
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["fedclip"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        device = next(
            (each.device for part in like.server.strategy.values() for each in part.values()), None
        )
        state = _state(facts, tensors, device)
        if state.zero_shot.keys() != like.zero_shot.keys() or state.server.number < 0:
            raise ValueError("its clients or rounds are not those of the run")
    except (
        *(SafetensorError, AttributeError, KeyError, TypeError, ValueError),
        *(OverflowError, RecursionError, IndexError),
    ) as error:
        reason = " ".join(str(error).split())
        raise FedclipError(
            f"{path}: is damaged ({reason}); remove it to start the run from the beginning"
        ) from None
    own = [part for client in state.clients.values() for part in client.values()]
    best = [state.server.best.parameters] if state.server.best else []
    wanted = {name: _shapes(part) for name, part in like.server.strategy.items()}
    server = wanted[SERVER]
    found = {name: _shapes(part) for name, part in state.server.strategy.items()}
    if (
        not wanted.items() <= found.items()
        or any(_shapes(part) != server for part in best)
        or any(
            server.get(name, shape) != shape
            for part in own
            for name, shape in _shapes(part).items()
        )
    ):
        raise FedclipError(
            f"{path}: belongs to another adapter or strategy; remove it to start the run from the "
            "beginning"
        )
    return state


def _state(
    facts: Mapping[str, Any], tensors: Mapping[str, Tensor], device: torch.device | None
) -> RunState:
    # A part without a tensor leaves no trace among the tensors.
    parts: dict[str, dict[str, Tensor]] = {f"{STRATEGY}/{part}": {} for part in facts["parts"]}
    for path, tensor in tensors.items():
        part, _, name = path.rpartition("/")
        parts.setdefault(part, {})[name] = tensor.to(device)
    kept, own = (
        {
            part.removeprefix(f"{kind}/"): parameters
            for part, parameters in parts.items()
            if part.startswith(f"{kind}/")
        }
        for kind in (STRATEGY, BEST_OWN)
    )
    # A client's part is called `<part>/<client>`, the server's just `<part>`.
    strategy = {part: parameters for part, parameters in kept.items() if "/" not in part}
    clients: dict[str, dict[str, Parameters]] = {}
    for path, parameters in kept.items():
        part, slash, client = path.partition("/")
        if slash:
            clients.setdefault(client, {})[part] = parameters
    line, best = facts["best"], None
    if line is not None:
        described = {name: value for name, value in line.items() if name != "round"}
        best = Best(Round(number=line["round"], **described), parts.get(BEST, {}))
    zero_shot = {
        client: math.nan if value is None else float(value)
        for client, value in facts["zero_shot"].items()
    }
    return RunState(ServerState(int(facts["round"]), strategy, best), zero_shot, clients, own)


def _shapes(parameters: Parameters) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in parameters.items()}

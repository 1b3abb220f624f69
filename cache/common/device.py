"""Devices that both stages compute on."""

from contextlib import AbstractContextManager

import torch

from .errors import FedclipError
from .fields import listed


def resolve_device(device: str, local_rank: int = 0) -> torch.device:
    """Resolve ``auto`` or the name of a torch device to an available device.

    With ``auto`` and ``cuda``, several processes on a machine take its GPUs in turn.

    Raises:
        FedclipError: the device is not available here.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and local_rank:
        device = f"cuda:{local_rank % max(1, torch.cuda.device_count())}"
    problem = "unknown device"
    try:
        resolved = torch.device(device)
        problem = "cannot be used here"
        torch.zeros(1, device=resolved).item()
    except (RuntimeError, AssertionError, NotImplementedError):
        raise FedclipError(f"--device {device}: {problem}; choose {listed(usable())}") from None
    return resolved


def usable() -> list[str]:
    """List the devices of this machine, as `resolve_device` takes them."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    several = [f"cuda:{index}" for index in range(gpus)] if gpus > 1 else []
    apple = ["mps"] if torch.backends.mps.is_available() else []
    return ["auto", "cpu", *(["cuda"] if gpus else []), *several, *apple]


def repeatable_cudnn() -> AbstractContextManager[None]:
    """Make cuDNN, if it is enabled, deterministic and use full single precision."""
    # By default, `flags` would disable cuDNN.
    return torch.backends.cudnn.flags(
        enabled=torch.backends.cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=False
    )

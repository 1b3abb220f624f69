"""Devices that both stages compute on."""

from contextlib import AbstractContextManager

import torch

from .errors import FedclipError


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
    try:
        resolved = torch.device(device)
        torch.zeros(1, device=resolved).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split("\n")[0].rstrip(".")
        raise FedclipError(
            f"--device {device}: cannot be used here ({reason}); use auto, cpu or cuda"
        ) from None
    return resolved


def repeatable_cudnn() -> AbstractContextManager[None]:
    """Make cuDNN, if it is enabled, deterministic and use full single precision."""
    # By default, `flags` would disable cuDNN.
    return torch.backends.cudnn.flags(
        enabled=torch.backends.cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=False
    )

"""Where both stages compute."""

from contextlib import AbstractContextManager

import torch

from .errors import FedclipError


def resolve_device(device: str, local_rank: int = 0) -> torch.device:
    """Turn ``auto`` or a torch device's name into a device that is there.

    Of several processes on a machine each gets a GPU in turn with ``auto`` and ``cuda``.

    Raises:
        FedclipError: there is no such device here.
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
    """Have cuDNN, where it is on, compute alike each time and in full single precision."""
    # Without a word, `flags` would turn it off.
    return torch.backends.cudnn.flags(
        enabled=torch.backends.cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=False
    )

"""What this machine has: versions of libraries, devices, extras."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

from .extras import EXTRAS, missing_modules

# The libraries that results depend on.
LIBRARIES = ("torch", "open_clip_torch", "numpy", "h5py", "huggingface_hub", "safetensors")


def library_versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that results depend on."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def devices() -> list[str]:
    """Describe the devices that can compute."""
    import torch
    from rich.filesize import decimal

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = [f"cpu, {cores} cores, {torch.get_num_threads()} threads"]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(index)
            found.append(f"cuda:{index}, {facts.name}, {decimal(facts.total_memory)}")
    return found


def missing_extras() -> dict[str, str]:
    """Return, for each extra that is not installed, what it is for and how it is installed."""
    return {
        extra: f"{purpose}: pip install 'fedclip[{extra}]'"
        for extra, (purpose, _) in EXTRAS.items()
        if missing_modules(extra)
    }

"""What a user names: a run, and the domains to leave out. Importing this imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...cache import FedclipError
from ...cache.common.fields import suggest
from ...cache.common.files import client_name
from ...cache.common.text import match_names, nfc

if TYPE_CHECKING:
    from ...cache import FeatureCache

CONFIG = "config.json"

# Prefix of a run on the Hugging Face hub, and what downloads it to a folder.
HUB = "hf:"
Fetch = Callable[[str], Path]

ALL = "all"
NONE = "none"

# Prefix of `--target` for a domain whose name is one of the words above.
DOMAIN = "domain:"


def is_run(path: Path) -> bool:
    """Return whether a folder has a run in it."""
    return (path / CONFIG).is_file()


def find_run(runs_dir: Path, name: str) -> Path:
    """Find the run's folder that `name` means: a path, or a name below `runs_dir`.

    Raises:
        FedclipError: it does not exist, or is one target's part of a run.
    """
    path = Path(name) if is_run(Path(name)) else runs_dir / nfc(name)
    if not is_run(path):
        known = [each.parent.name for each in sorted(runs_dir.glob(f"*/{CONFIG}"))]
        raise FedclipError(
            f"run {name!r} is neither a run's folder nor the name of one in {runs_dir}"
            f"{suggest(name, known) or f'; pass the folder with its {CONFIG}'}"
        )
    if is_run(path.resolve().parent):
        raise FedclipError(f"{path}: is one target's part of a run; resume {path.resolve().parent}")
    return path


def choose_targets(clients: Sequence[FeatureCache], target: str | None) -> tuple[str | None, ...]:
    """Turn the value of `--target` into the domains to leave out, one run each.

    By default every domain in turn if there are two or more, else none. A domain is named as in
    the cache or as its folder, such as `Real World` for real_world; `domain:all` is the domain
    called all.

    Raises:
        FedclipError: the domain is unknown.
    """
    domains = [cache.client for cache in clients]
    if target is None:
        target = ALL if len(domains) > 1 else NONE
    if target == NONE:
        return (None,)
    if target == ALL:
        return tuple(domains)
    for spelled in (target, target.removeprefix(DOMAIN)):
        found = _find_domain(spelled, domains)
        if found is not None:
            return (found,)
    choices = [*map(show_target, domains), ALL, NONE]
    raise FedclipError(f"--target {target}: unknown domain{suggest(target, choices)}")


def show_target(target: str | None) -> str:
    """Spell a target as `--target` takes it."""
    if target is None:
        return NONE
    return f"{DOMAIN}{target}" if target in (ALL, NONE) else target


def _find_domain(name: str, domains: Sequence[str]) -> str | None:
    """Find a domain by its name, the name of its folder, or another spelling of these."""
    if nfc(name) in domains:
        return nfc(name)
    try:
        if client_name(name) in domains:
            return client_name(name)
    except FedclipError:
        return None
    return match_names([name], domains).get(name)

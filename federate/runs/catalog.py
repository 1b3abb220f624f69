"""The runs in a folder: found, described and removed, without loading what trains them.

Importing this imports neither torch nor numpy.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...cache import FedclipError
from ...cache.common.fields import listed, show_value, suggest
from ...cache.common.files import entries_of, entry_size, lock, path_for
from ..settings import PAPER, REGISTRIES, Settings
from .find import CONFIG, HUB, Fetch
from .results import Result, RunResult, read_result

if TYPE_CHECKING:
    from .predictions import Predictions

ROUNDS = "rounds.jsonl"
RESULT = "result.json"

# How a run is called that has no result, and one whose config or result cannot be read.
NO_RESULT, DAMAGED = "started", "damaged"

# What a repository on the hub has in place of `config.json`, by which runs of this machine are
# known: nothing of it is trusted as theirs is.
HUB_CONFIG = "run.json"

# What is published of a config, and of what it has of its cache.
_PUBLIC = frozenset(
    {
        *("fedclip", "versions", "preset", "settings", "strategy", "adapter", "model", "target"),
        *("device", "engine", "keep", "seed"),
    }
)
_PUBLIC_OF_CACHE = frozenset({"name", "key", "content", "clients", "normalized"})

# What an ablation's table is called.
TABLES = "*-ablation.csv"

_SEED = re.compile(r"-seed\d+$")

# No run's config or result is larger, and hardly any run's rounds: files that are would fill the
# memory of a command that lists all runs.
_LARGEST, _LARGEST_ROUNDS = 1 << 26, 1 << 30

# Whether permissions can be tried as those of the user that a process acts for.
_EFFECTIVE = os.access in os.supports_effective_ids

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RecordedRun:
    """A run on disk: one, or one for each target in folders below it.

    What is damaged or cannot be read is as if it were missing, and `status` says so.

    Attributes:
        path: Its folder.
        hub: Where it was downloaded from, ``hf:OWNER/NAME``; empty for a run of this machine.
    """

    path: Path
    hub: str = ""

    @cached_property
    def entries(self) -> Mapping[str, os.DirEntry[str]]:
        """What is in the folder, by name."""
        return {entry.name: entry for entry in entries_of(self.path)}

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """What `config.json` has, or on the hub `run.json`."""
        return self._read(HUB_CONFIG if self.hub else CONFIG)

    @property
    def name(self) -> str:
        """The folder's name, or the repository's."""
        return self.hub or self.path.name

    @property
    def predictions(self) -> Predictions:
        """What it predicts, image by image.

        Raises:
            FedclipError: the predictions are missing or damaged.
        """
        from .predictions import read_predictions

        if self.hub:
            raise FedclipError(
                f"{self.hub}: the predictions by image are not on the hub; name the run itself, "
                "on the machine where it is"
            )
        return read_predictions(self.path)

    @cached_property
    def result(self) -> Result | None:
        """What it came to; None if there is no result yet, or none that can be read."""
        try:
            return read_result(self._content) if self._content else None
        except FedclipError:  # of a later version
            return None

    @cached_property
    def _content(self) -> Mapping[str, Any]:
        return self._read(RESULT)

    def _read(self, name: str) -> Mapping[str, Any]:
        entry = self.entries.get(name)
        return (read_json(entry.path) or {}) if entry is not None and _is_file(entry) else {}

    @property
    def status(self) -> str:
        """How it ended; of one without a result, that it was started."""
        if not self.config or (RESULT in self.entries and not self._content):
            return DAMAGED
        return str(self._content.get("status", NO_RESULT))

    @property
    def problem(self) -> str:
        """Why it has no result that can be read, and what to do; '' if it has one."""
        if self.status == NO_RESULT:
            return f"{self.path}: has no result yet; resume it"
        try:
            whole = self.config and read_result(self._content)
        except FedclipError as error:  # of a later version
            return f"{self.hub or self.path}: {error}"
        name = RESULT if self.config else CONFIG
        if whole:
            return ""
        return f"{self.path / name}: is damaged or not readable; run it again with --overwrite"

    def figure(self, name: str) -> tuple[float | None, float | None]:
        """Return zero-shot and adapted accuracy of one of `FIGURES`, faster than `result` does."""
        before, after = (self._content.get(each) for each in (f"zero_shot_{name}", name))
        return _number(before), _number(after)

    @property
    def started(self) -> float:
        """When it was started, in seconds since the epoch; 0 if that is unknown."""
        try:
            return self.entries[CONFIG].stat().st_mtime
        except (KeyError, OSError):  # it was removed meanwhile, or is a broken link
            return 0.0

    @property
    def cache_facts(self) -> Mapping[str, Any]:
        """What the config has of the cache."""
        return self._part("cache")

    @property
    def cache(self) -> str:
        """Name of the cache: dataset and encoder."""
        return str(self.cache_facts.get("name", ""))

    @property
    def dataset(self) -> str:
        """Name of the dataset."""
        return self.cache.partition("/")[0]

    @property
    def encoder(self) -> str:
        """The encoder and its weights; what stands for the key is left out."""
        return re.sub(r"-[0-9a-f]{8}$", "", self.cache.partition("/")[2])

    @property
    def settings(self) -> Mapping[str, Any]:
        """Its settings as JSON values, methods by name."""
        return self._part("settings")

    @property
    def seed(self) -> int:
        """Its seed."""
        seed = self.settings.get("seed")
        return seed if isinstance(seed, int) else 0

    @property
    def target(self) -> str:
        """The domain left out, `all` or `none`."""
        return str(self.config.get("target", ""))

    @property
    def method(self) -> str:
        """What is trained: an adapter, or a full model."""
        facts = self._part("model").get("facts")
        if isinstance(facts, dict):
            return f"all of {facts.get('backbone')}"
        return str(self.settings.get("adapter", ""))

    @property
    def changed(self) -> dict[str, Any]:
        """The settings that are not those of its preset, methods and seed aside."""
        values = self.settings
        preset = _preset(
            str(self.config.get("preset", PAPER)),
            tuple((kind, str(values[kind])) for kind in REGISTRIES if values.get(kind)),
        )
        return {
            name: value
            for name, value in values.items()
            if name not in {"seed", "adapter", "strategy"}
            and not name.endswith("_source")
            and (preset is None or name in preset)
            and value != (preset or {}).get(name)
        }

    @property
    def facts(self) -> dict[str, Any]:
        """Everything that it can be chosen by."""
        return {
            **self.settings,
            "name": self.name,
            "dataset": self.dataset,
            "encoder": self.encoder,
            "cache": self.cache,
            "preset": self.config.get("preset"),
            "target": self.target,
            "status": self.status,
        }

    @property
    def bytes(self) -> int:
        """Size of all its files."""
        return sum(map(entry_size, self.entries.values()))

    @property
    def parts(self) -> list[RecordedRun]:
        """Itself, or the runs over its targets."""
        targets = getattr(self.result, "targets", None)
        if targets is None:
            return [self]
        names = [str(target) for target in targets]
        found = (read_run(path_for(self.path, name)) for name in names)
        return [each for each in found if each is not None]

    @property
    def results(self) -> list[RunResult]:
        """The results of its parts that have one."""
        return [each.result for each in self.parts if isinstance(each.result, RunResult)]

    def _part(self, name: str) -> Mapping[str, Any]:
        part = self.config.get(name)
        return part if isinstance(part, dict) else {}


@lru_cache
def _preset(name: str, methods: tuple[tuple[str, str], ...]) -> dict[str, Any] | None:
    """Return a preset's settings with some methods; None if one is unknown or not ours.

    A method from outside the package is not imported to list runs.
    """
    if any(REGISTRIES[kind].is_outside(method) for kind, method in methods):
        return None
    chosen: dict[str, Any] = dict(methods)
    if "partition" in chosen:
        chosen["clients"] = 1
    try:
        values = Settings.preset(name, chosen).to_json()
    except FedclipError:
        return None
    return {**values, "clients": None, "alpha": None} if "partition" in chosen else values


def read_json(path: Path | str) -> dict[str, Any] | None:
    """Read a JSON object; None if the file is missing, damaged or larger than any of ours."""
    try:
        with FileIO(path) as file:  # faster than a Path, of which thousands are read
            if os.fstat(file.fileno()).st_size > _LARGEST:
                return None
            value = json.loads(file.readall())
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def read_rounds(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a run's rounds; a damaged one, such as a torn one, ends them."""
    path = folder / ROUNDS
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST_ROUNDS:
            return  # such as a pipe, which has no end
        with path.open(encoding="utf-8") as file:
            for text in file:
                line = json.loads(text)
                if not isinstance(line, dict):
                    return
                yield line
    except (OSError, ValueError, RecursionError):
        return


def find_runs(runs_dir: Path) -> list[RecordedRun]:
    """Find all runs in a folder, sorted by name; those of targets are parts of their run.

    Raises:
        FedclipError: the folder cannot be read.
    """
    try:
        paths = sorted(runs_dir.iterdir(), key=lambda path: path.name)
    except FileNotFoundError:
        return []
    except OSError as error:
        reason = error.strerror or error
        raise FedclipError(
            f"--runs-dir {runs_dir}: cannot be read ({reason}); name another folder"
        ) from None
    found = []
    for path in paths:
        run = read_run(path)
        if run is not None:
            found.append(run)
        elif path.is_dir() and not os.access(path, os.R_OK | os.X_OK, effective_ids=_EFFECTIVE):
            logger.warning("%s: its permissions do not let it be read; it is left out", path)
    return found


def read_run(path: Path) -> RecordedRun | None:
    """Return the run in a folder; None if there is none."""
    run = RecordedRun(path)
    return run if CONFIG in run.entries else None


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Return whether it is a file or a link to one, and no device or pipe, which has no end."""
    try:
        return entry.is_file()
    except OSError:  # a link to itself
        return False


def find_recorded(runs_dir: Path, name: str, fetch: Fetch | None = None) -> list[RecordedRun]:
    """Find the runs that `name` means: one, or those of a setting with several seeds.

    Args:
        runs_dir: Where runs are kept.
        name: A run's folder, its name below `runs_dir`, that name without `-seed0`, or
            ``hf:OWNER/NAME``.
        fetch: Downloads a run from the hub; None to take runs of this machine only.

    Raises:
        FedclipError: no run has that name, it means several settings, or it cannot be downloaded.
    """
    if fetch is not None and name.startswith(HUB):
        return [recorded_on_hub(name, fetch)]
    for path in (Path(name), runs_dir / name):
        run = read_run(path) if name else None
        if run is not None:
            return [run]
    every = find_runs(runs_dir)
    found = [run for run in every if _SEED.sub("", run.name) == name]
    found = found or [run for run in every if name and run.name.startswith(name)]
    settings = {_SEED.sub("", run.name) for run in found}
    if len(settings) == 1:
        return sorted(found, key=lambda run: run.seed)
    if not found:
        hint = suggest(name, [run.name for run in every]) or "; 'fedclip ls' lists them"
        raise FedclipError(f"unknown run {name!r} in {runs_dir}{hint}")
    raise FedclipError(f"run {name!r} is ambiguous; choose {listed(sorted(settings))}")


def recorded_on_hub(name: str, fetch: Fetch) -> RecordedRun:
    """Download the record of a run from the hub.

    Args:
        name: ``hf:OWNER/NAME``.
        fetch: Downloads it.

    Raises:
        FedclipError: the repository has no such record, or cannot be downloaded.
    """
    run = RecordedRun(fetch(name), name)
    if not run.config:
        raise FedclipError(
            f"{name}: has an adapter, but no {HUB_CONFIG} about its run, which an earlier fedclip "
            "did not push; push it again"
        )
    return run


def config_for_hub(folder: Path) -> dict[str, Any] | None:
    """Return what may be published of a run's config, which names no folder of this machine.

    Args:
        folder: The run's, or one that was downloaded from the hub.

    Returns:
        None if there is no config.
    """
    config = read_json(folder / CONFIG) or read_json(folder / HUB_CONFIG)
    if config is None:
        return None
    facts = config.get("cache")
    cache = facts if isinstance(facts, dict) else {}
    cache = {name: value for name, value in cache.items() if name in _PUBLIC_OF_CACHE}
    return {name: value for name, value in config.items() if name in _PUBLIC} | {"cache": cache}


def filtered(runs: Sequence[RecordedRun], conditions: Sequence[str]) -> list[RecordedRun]:
    """Return those of one or more runs that fulfil all conditions.

    Args:
        runs: To choose from.
        conditions: Each as ``NAME=VALUE``, where the name is one of `facts`.

    Raises:
        FedclipError: a condition has no ``=``, or none of the runs has such a fact.
    """
    known = {name: None for run in runs for name in run.facts} if conditions else {}
    for condition in conditions:
        written, equals, value = condition.partition("=")
        name = written.strip().replace("-", "_")
        if not equals:
            raise FedclipError(f"--filter {condition!r}: must be NAME=VALUE such as adapter=linear")
        if name not in known:
            raise FedclipError(f"--filter {condition}: unknown setting{suggest(name, known)}")
        runs = [run for run in runs if _is(run.facts.get(name), value.strip())]
    return [*runs]


def _is(fact: Any, value: str) -> bool:
    """Return whether a fact is what was typed; numbers may be typed in any way."""
    if isinstance(fact, int | float) and not isinstance(fact, bool):
        try:
            return fact == float(value)
        except ValueError:
            return False
    return value in (str(fact), show_value(fact))


def check_removable(path: Path) -> None:
    """Refuse to delete a folder that is a link, or that another program's `config.json` is in.

    Raises:
        FedclipError: it is one of these.
    """
    if path.is_symlink():
        raise FedclipError(f"{path}: is a link; remove the link itself")
    config = RecordedRun(path).config
    if config and not isinstance(config.get("settings"), dict):
        raise FedclipError(
            f"{path}: is not a run of fedclip (its {CONFIG} has no settings); it is left alone"
        )


def remove_run(run: RecordedRun, runs_dir: Path) -> None:
    """Delete a run's folder.

    Raises:
        FedclipError: it is a link, outside the folder of runs that its path begins with, a part
            of a run, or not a run of ours; another process is working on it; or the system
            forbids it.
    """
    check_removable(run.path)
    path = run.path.resolve()
    if run.path.is_relative_to(runs_dir) and not path.is_relative_to(runs_dir.resolve()):
        raise FedclipError(f"{run.path}: is outside {runs_dir}; name {path} itself to delete it")
    if read_run(path.parent) is not None:
        raise FedclipError(f"{run.path}: is one target's part of a run; delete {path.parent}")
    with claimed(path):
        try:
            shutil.rmtree(path)
        except OSError as error:
            reason = f"{error.filename}: {error.strerror}"
            raise FedclipError(f"{run.path}: cannot be deleted ({reason})") from None


@contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Lock out other processes; the system releases the lock when this one ends.

    Raises:
        FedclipError: another process is working on it.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        if not lock(handle, path):
            raise FedclipError(
                f"{path}: another process is working on this run; wait until it is done"
            )
        yield
    finally:
        os.close(handle)


def _number(value: Any) -> float | None:
    return value if isinstance(value, float) and math.isfinite(value) else None

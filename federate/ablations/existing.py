"""Which runs exist that differ from those of an ablation in one option that holds for all."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...cache import FedclipError
from ...cache.key import canonical_json
from ..runs.find import CONFIG
from ..runs.folder import RunFolder
from ..settings import SOURCES
from .grid import show
from .runner import Entry


class _Facts(NamedTuple):
    """What makes a run, in a form that is compared quickly.

    Attributes:
        place: The content of its cache, and its target.
        items: Its settings, each with its value as JSON.
        settings: Its settings.
    """

    place: tuple[object, object]
    items: frozenset[tuple[str, str]]
    settings: Mapping[str, Any]

    @classmethod
    def of(cls, content: object, target: object, settings: Mapping[str, Any]) -> "_Facts":
        items = frozenset((name, canonical_json(value)) for name, value in settings.items())
        return cls((content, target), items, settings)


def describe_existing(entries: Sequence[Entry], varied: Collection[str], runs_dir: Path) -> str:
    """Describe runs that may be the ones that were meant; empty if there are none.

    Args:
        entries: The runs of the ablation.
        varied: Settings that vary in it.
        runs_dir: Where other runs are looked for.
    """
    new = [entry for entry in entries if not RunFolder(entry.experiment.folder).begun]
    recorded = _recorded(runs_dir) if new else []
    found: Counter[tuple[str, str, str]] = Counter()
    for entry in new:
        facts = _facts_of(entry)
        differences = {_difference(facts, each, varied) for each in recorded}
        found.update(each for each in differences if each is not None)
    if not found:
        return ""
    (name, before, now), count = min(found.items(), key=lambda item: (-item[1], item[0]))
    if name in SOURCES:
        what = f"another source of the {name.removesuffix('_source')}"
    else:
        what = f"{name} {before} in place of {now}"
    exist = "exists" if count == 1 else "exist"
    return f"existing   {count} of these {len(entries)} runs {exist} with {what}; new ones are made"


def _facts_of(entry: Entry) -> _Facts:
    experiment = entry.experiment
    return _Facts.of(experiment.content, experiment.target, experiment.settings.to_json())


def _recorded(runs_dir: Path) -> list[_Facts]:
    """Read what makes each run in a folder; those that are damaged are left out."""
    found = []
    for path in sorted(runs_dir.glob(f"*/{CONFIG}")):
        try:
            config = RunFolder(path.parent).read_config()
        except FedclipError:
            continue
        cache, settings = config.get("cache"), config.get("settings")
        if isinstance(cache, dict) and isinstance(settings, dict):
            found.append(_Facts.of(str(cache.get("content")), config.get("target"), settings))
    return found


def _difference(ours: _Facts, old: _Facts, varied: Collection[str]) -> tuple[str, str, str] | None:
    """Return the one setting in which a recorded run differs: name, value there, value here."""
    if ours.place != old.place:
        return None
    names = {name for name, _ in ours.items ^ old.items}
    # A method whose source has changed may have other defaults too.
    name, *others = sorted(names, key=lambda each: each not in SOURCES) or [""]
    if not name or len(others) > (name in SOURCES) or names & {*varied}:
        return None
    return name, show(old.settings.get(name)), show(ours.settings.get(name))

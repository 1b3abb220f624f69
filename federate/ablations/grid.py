"""What an ablation varies: lists of values for options, their product, and zipped groups."""

import math
import tomllib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from ...cache import FedclipError
from ...cache.common.fields import suggest
from ...cache.common.files import regular
from ...cache.common.text import short_exponent
from .grids import NAMES as GRIDS

SEED = "seed"
BEST, ZERO_SHOT = "best", "zero-shot"
SEEDS = "seeds"
ZIP = "zip"

# More is a typo.
MOST_SEEDS = 1_000_000

Axis = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Grid:
    """Combinations of values of options: the product of the axes.

    Attributes:
        axes: Each a list of values of one option, or lists of one length of several, which are
            zipped. The last axis varies fastest.
        fixed: Options with one value.
    """

    axes: tuple[Axis, ...]
    fixed: Mapping[str, Any]

    @property
    def names(self) -> list[str]:
        """The options that vary."""
        return [name for axis in self.axes for name in axis]

    @property
    def values(self) -> dict[str, Sequence[Any]]:
        """The values of the options that vary, except the seed."""
        return {name: axis[name] for axis in self.axes for name in axis if name != SEED}

    @property
    def lengths(self) -> list[int]:
        """Number of values on each axis."""
        return [len(next(iter(axis.values()))) for axis in self.axes]

    def describe(self) -> str:
        """Describe what varies, and what is fixed."""
        axes = [
            " with ".join(f"{name} {', '.join(map(show, axis[name]))}" for name in axis)
            for axis in self.axes
        ]
        fixed = [f"{name} {show(value)}" for name, value in self.fixed.items()]
        return "; ".join(part for part in (" x ".join(axes), ", ".join(fixed)) if part)

    @property
    def count(self) -> int:
        """Number of combinations."""
        return math.prod(self.lengths)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield each combination: a value for every one of `names`."""
        steps = [
            [dict(zip(axis, values, strict=True)) for values in zip(*axis.values(), strict=True)]
            for axis in self.axes
        ]
        for chosen in product(*steps):
            yield {name: value for step in chosen for name, value in step.items()}


def show(value: Any) -> str:
    """Format an option's value; None is typed as `raw`."""
    if value is None:
        return "raw"
    if isinstance(value, list | tuple):
        return " + ".join(map(show, value))
    return short_exponent(str(value)) if isinstance(value, float) else str(value)


def make_grid(
    file: Mapping[str, Any],
    sets: Sequence[tuple[str, Sequence[Any]]],
    given: Mapping[str, Any],
    options: Collection[str],
    parse: Callable[[str, Any], Any],
) -> Grid:
    """Combine a file, `--set` and ordinary options; the last two override the file.

    `seeds` stands for a list of that many seeds, starting at `seed`. It varies fastest, so that
    the runs of one setting follow each other.

    Args:
        file: What `read_toml` returned.
        sets: Lists of values from `--set`.
        given: Values of ordinary options, parsed.
        options: Names of the options that may vary.
        parse: Parses a value of an option.

    Raises:
        FedclipError: an option is unknown or given twice, a list is empty, or zipped lists
            have different lengths.
    """
    groups = [_named(group.items(), options) for group in _groups(file)]
    plain = _named([each for each in file.items() if each[0] != ZIP], options)
    varied = _named(sets, options)
    for name in [*varied, *given]:
        plain.pop(name, None)
    lists = {name: value for name, value in plain.items() if isinstance(value, list)}
    fixed = {name: value for name, value in plain.items() if name not in lists}
    lists |= {name: list(values) for name, values in varied.items()}
    if SEEDS in lists:
        fixed[SEEDS] = lists.pop(SEEDS)
    axes = [*groups, *({name: values} for name, values in lists.items())]
    if SEEDS in fixed:
        axes.append({SEED: _seeds(fixed.pop(SEEDS), given.get(SEED, fixed.pop(SEED, 0)))})
        given = {name: value for name, value in given.items() if name != SEED}
    _check(axes, [*fixed, *given])
    return Grid(
        axes=tuple(
            {name: [parse(name, value) for value in values] for name, values in axis.items()}
            for axis in axes
        ),
        fixed={**{name: parse(name, value) for name, value in fixed.items()}, **given},
    )


def read_toml(path: Path) -> dict[str, Any]:
    """Read a grid's file.

    Raises:
        FedclipError: the file is missing or not TOML.
    """
    try:
        return tomllib.loads(regular(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FedclipError(
            f"{path}: is neither a file nor a grid of the package{suggest(str(path), GRIDS)}"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FedclipError(f"{path}: is not valid TOML ({error})") from None


def methods_in(file: Mapping[str, Any]) -> list[str]:
    """List the text values of a grid's file as ``name=value``, as `--set` has them."""
    tables = [file, *_groups(file)]
    return [
        f"{name}={value}"
        for table in tables
        for name, values in table.items()
        if name != ZIP
        for value in (values if isinstance(values, list) else [values])
        if isinstance(value, str)
    ]


def split_set(text: str) -> tuple[str, list[str]]:
    """Split a value of `--set`, ``NAME=VALUE,VALUE``.

    Raises:
        FedclipError: it has no ``=``.
    """
    name, equals, values = text.partition("=")
    if not equals:
        raise FedclipError(f"--set {text!r}: must be NAME=VALUE,VALUE such as lr=1e-5,5e-5")
    return name.strip(), [value.strip() for value in values.split(",") if value.strip()]


@dataclass(frozen=True)
class Baseline:
    """What each setting of an ablation is compared with; by default the best one.

    Attributes:
        values: Values of options: each setting is compared with the one that has these values
            and is otherwise the same.
        zero_shot: Whether each setting is compared with its own zero-shot predictions.
    """

    values: Mapping[str, str] = field(default_factory=dict)
    zero_shot: bool = False

    @property
    def name(self) -> str:
        """How `--baseline` spells it."""
        if self.zero_shot:
            return ZERO_SHOT
        return ",".join(f"{name}={value}" for name, value in self.values.items()) or BEST


def read_baseline(
    text: str, values: Mapping[str, Sequence[Any]], parse: Callable[[str, Any], Any]
) -> Baseline:
    """Read the value of `--baseline`.

    Args:
        text: `best`, `zero-shot`, or ``NAME=VALUE,NAME=VALUE``.
        values: Of each option that varies.
        parse: Parses a value of an option.

    Raises:
        FedclipError: an option or its value is not part of the ablation.
    """
    if text in (BEST, ZERO_SHOT):
        return Baseline(zero_shot=text == ZERO_SHOT)
    chosen = {}
    for part in text.split(","):
        written, equals, value = part.partition("=")
        name = written.strip().replace("-", "_")
        if not equals or name not in values:
            raise FedclipError(
                f"--baseline {text}: must be {BEST}, {ZERO_SHOT}, or NAME=VALUE with an option "
                f"that varies{suggest(name, [*values])}"
            )
        known = [show(each) for each in values[name]]
        own = show(parse(name, value.strip()))
        if own not in known:
            raise FedclipError(
                f"--baseline {part.strip()}: is not in this ablation{suggest(own, known)}"
            )
        chosen[name] = own
    return Baseline(chosen)


def _groups(file: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the tables whose lists are zipped."""
    groups = file.get(ZIP, [])
    groups = groups if isinstance(groups, list) else [groups]
    for group in groups:
        lists = isinstance(group, dict) and all(isinstance(each, list) for each in group.values())
        if not lists or not group or len({len(each) for each in group.values()}) > 1:
            raise FedclipError(
                f"[{ZIP}] is {group!r}; it must be a table of lists of one length, such as "
                "lr = [5e-5, 3e-4] and weight_decay = [0.2, 0.0]"
            )
    return groups


def _named(values: Iterable[tuple[str, Any]], options: Collection[str]) -> dict[str, Any]:
    """Spell names as options are spelled here."""
    named: dict[str, Any] = {}
    known = [*options, SEEDS]
    for written, value in values:
        name = written.replace("-", "_")
        if name not in known:
            raise FedclipError(f"{written}: is not an option that varies{suggest(name, known)}")
        if name in named:
            raise _given_twice(name)
        named[name] = value
    return named


def _seeds(count: Any, first: Any) -> list[int]:
    try:
        (count,) = count if isinstance(count, list) else [count]
        count, first = int(str(count)), int(str(first))
    except ValueError:
        count = 0
    if not 1 <= count <= MOST_SEEDS:
        raise FedclipError(
            f"{SEEDS} must be a number of seeds from 1 to {MOST_SEEDS:,}, such as {SEEDS}=5"
        )
    return list(range(first, first + count))


def _check(axes: Sequence[Axis], single: Sequence[str]) -> None:
    names = [name for axis in axes for name in axis]
    for axis in axes:
        for name, values in axis.items():
            if not values:
                raise FedclipError(f"{name} has an empty list; add a value, or leave it out")
            if [*names, *single].count(name) > 1:
                raise _given_twice(name)


def _given_twice(name: str) -> FedclipError:
    return FedclipError(f"{name} is set twice; set it once, to a list or a value")

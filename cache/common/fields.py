"""Settings declared once: a dataclass field that carries its help text, bounds and choices.

A field made by `option` is the only place that names a setting's default, bounds, choices, help
text and source. The command line (`options.py`) and the checks are made from it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import shlex
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from .errors import FedclipError
from .text import short_exponent

# The key of an option's facts in a field's metadata.
_FACTS = "option"

# An error suggests up to this many similar names.
_SIMILAR = 3

# Lists of names up to this length are printed in full when a name is unknown.
_SHORT_LIST = 12

_TRUE, _FALSE = ("true", "yes", "1"), ("false", "no", "0")


def option(
    default: Any = MISSING,
    *,
    help: str,  # noqa: A002 - as everywhere on command lines
    source: str = "",
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: Sequence[str] | Callable[[], Sequence[str]] = (),
    closed: bool = True,
    flags: tuple[str, ...] = (),
    panel: str = "",
    metavar: str = "",
    envvar: str = "",
    parse: Callable[[str], Any] | None = None,
    shown: str = "",
    complete: Callable[[Any, str], list[str]] | None = None,
) -> Any:
    """Declare a dataclass field as a setting. Floats must be finite.

    Args:
        default: Value if the user passes none; without one, the option is required.
        help: A noun phrase or an imperative, without the default.
        source: Where the setting comes from, such as a paper and equation.
        least: Inclusive lower bound.
        most: Inclusive upper bound.
        above: Exclusive lower bound.
        below: Exclusive upper bound.
        choices: Valid values, or a function that lists them (called when they are needed);
            a field of type `Literal` has its own.
        closed: Whether only `choices` are valid; if not, they only serve shell completion.
        flags: Names on the command line; by default ``--`` and the field's name.
        panel: Panel of the help; by default the class attribute `PANEL`.
        metavar: Placeholder for the value in the help.
        envvar: Environment variable that sets the option.
        parse: Reads the value from text in place of the field's type; raises a ValueError whose
            message states what is expected.
        shown: Text to show as the default in the help.
        complete: Completes a word in the shell, from the command's context and the word's
            beginning; by default from the choices.
    """
    facts = {
        "help": help,
        "source": source,
        "least": least,
        "most": most,
        "above": above,
        "below": below,
        "choices": choices,
        "closed": closed,
        "flags": flags,
        "panel": panel,
        "metavar": metavar,
        "envvar": envvar,
        "parse": parse,
        "shown": shown,
        "complete": complete,
    }
    field: Any = dataclasses.field  # its overloads do not take MISSING
    return field(default=default, metadata={_FACTS: facts})


@dataclass(frozen=True, kw_only=True)
class Option:
    """A setting: a field's name and type, and what `option` declares about it.

    Attributes:
        kinds: Types of the value, without None: int, float, str, bool or Path; several are tried
            from left to right.
        optional: Whether None is valid too.
        multiple: Whether the value is a tuple, for which the option may be repeated.
        default: The default, or `dataclasses.MISSING`.
    """

    name: str
    kinds: tuple[type, ...]
    optional: bool
    multiple: bool
    default: Any
    help: str
    source: str = ""
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    choices: Sequence[str] | Callable[[], Sequence[str]] = ()
    closed: bool = True
    flags: tuple[str, ...] = ()
    panel: str = ""
    metavar: str = ""
    envvar: str = ""
    parse: Callable[[str], Any] | None = None
    shown: str = ""
    complete: Callable[[Any, str], list[str]] | None = None

    @property
    def flag(self) -> str:
        """The option's name on the command line."""
        return self.flags[0] if self.flags else flag(self.name)

    @property
    def required(self) -> bool:
        """Whether the user must pass a value."""
        return self.default is MISSING

    @property
    def names(self) -> tuple[str, ...]:
        """The choices."""
        return tuple(self.choices() if callable(self.choices) else self.choices)

    @property
    def bounds(self) -> str:
        """The bounds in words, such as `at least 0 and below 1`; empty without bounds."""
        limits = {
            "at least": self.least,
            "above": self.above,
            "at most": self.most,
            "below": self.below,
        }
        return " and ".join(
            f"{word} {limit}" for word, limit in limits.items() if limit is not None
        )

    @property
    def shown_default(self) -> str:
        """The default as the help shows it; empty to show none."""
        if self.shown or self.default in (None, MISSING) or self.default is False:
            return self.shown
        values = self.default if self.multiple else (self.default,)
        return ", ".join(short_exponent(str(value)) for value in values)

    def read(self, text: str | Sequence[str]) -> Any:
        """Parse and check what a user typed; for a tuple, one text or several.

        Raises:
            FedclipError: the value is invalid.
        """
        texts = [text] if isinstance(text, str) else text
        values = tuple(self._read(each) for each in texts)
        for value, typed in zip(values, texts, strict=True):
            self._check(value, typed)
        return values if self.multiple else values[-1]

    def check(self, value: Any) -> None:
        """Check the type, the bounds and the choice.

        Raises:
            FedclipError: the value is invalid.
        """
        if self.multiple and not isinstance(value, tuple):
            raise self.error(value, "must be a tuple")
        for each in value if self.multiple else (value,):
            self._check(each, each)

    def error(self, value: object, problem: str) -> FedclipError:
        """Return the error for an invalid value."""
        return FedclipError(f"{self.flag} {shlex.quote(str(value))}: {problem}")

    def _read(self, text: str) -> Any:
        if not text:
            raise self.error(text, f"is empty; pass a value or leave out {self.flag}")
        if self.parse is not None:
            try:
                return self.parse(text)
            except ValueError as error:
                raise self.error(text, str(error)) from None
        for kind in self.kinds:
            try:
                return _boolean(text) if kind is bool else kind(text)
            except ValueError:
                continue
        raise self.error(text, f"must be {self._kinds_in_words()}")

    def _check(self, value: Any, typed: object) -> None:
        """Check one value; an error repeats it as the user typed it."""
        if value is None and self.optional:
            return
        if not any(_is(value, kind) for kind in self.kinds):
            raise self.error(typed, f"must be {self._kinds_in_words()}")
        if isinstance(value, float) and not math.isfinite(value):
            raise self.error(typed, "must be a finite number")
        if (
            (self.least is not None and value < self.least)
            or (self.most is not None and value > self.most)
            or (self.above is not None and value <= self.above)
            or (self.below is not None and value >= self.below)
        ):
            raise self.error(typed, f"must be {self.bounds}")
        if self.closed and self.choices and value not in (names := self.names):
            noun = self.name.replace("_", " ")
            raise self.error(typed, f"unknown {noun}{suggest(value, names)}")

    def _kinds_in_words(self) -> str:
        words = {
            int: "a whole number",
            float: "a number",
            bool: "true or false",
            Path: "a path",
            str: "text",
        }
        return listed([words[kind] for kind in self.kinds])


def options_of(cls: Any) -> dict[str, Option]:
    """List a dataclass's settings by name, in the order of its fields."""
    return dict(_options_of(cls))


@functools.cache
def _options_of(cls: Any) -> dict[str, Option]:
    hints = get_type_hints(cls)
    options = {}
    for field in dataclasses.fields(cls):
        if _FACTS in field.metadata:
            facts = dict(field.metadata[_FACTS])
            facts["panel"] = facts["panel"] or getattr(cls, "PANEL", "")
            resolved = _resolve(hints[field.name], f"{cls.__name__}.{field.name}")
            options[field.name] = Option(
                name=field.name, default=field.default, **{**facts, **resolved}
            )
    return options


def _resolve(hint: Any, where: str) -> dict[str, Any]:
    """Derive an option's kinds, and whether it is optional or multiple, from a field's type."""
    union = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    members = [each for each in union if each is not types.NoneType]
    facts: dict[str, Any] = {"optional": len(members) < len(union), "multiple": False}
    if len(members) == 1 and get_origin(members[0]) is tuple:
        element, *rest = get_args(members[0])
        if rest == [...]:
            members, facts["multiple"] = [element], True
    if len(members) == 1 and get_origin(members[0]) is Literal:
        facts["choices"] = get_args(members[0])
        members = [str]
    if not members or not set(members) <= {int, float, bool, Path, str}:
        raise TypeError(f"{where}: a setting cannot be of the type {hint}")
    return {**facts, "kinds": tuple(members)}


def _boolean(text: str) -> bool:
    if text.lower() not in (*_TRUE, *_FALSE):
        raise ValueError
    return text.lower() in _TRUE


def _is(value: Any, kind: type) -> bool:
    if isinstance(value, bool):  # an int to Python
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def check_options(instance: Any) -> None:
    """Check every setting of a dataclass instance; call this from `__post_init__`.

    Raises:
        FedclipError: a value is invalid.
    """
    for name, each in options_of(type(instance)).items():
        value = getattr(instance, name)
        each.check(value)
        if each.kinds == (float,) and not each.multiple and value is not None:
            # One way to write a number: 1 is 1.0, and -0.0 is 0.0.
            object.__setattr__(instance, name, float(value) + 0.0)


def merge_options(owners: Mapping[str, type]) -> list[Option]:
    """List the settings of several classes, with settings of the same name as one option.

    The help shows each owner's default. Bounds that differ between owners are left to the classes'
    own checks.

    Args:
        owners: The classes by name.

    Raises:
        TypeError: two classes have a setting of the same name with different types.
    """
    found: dict[str, dict[str, Option]] = {}
    for owner, cls in owners.items():
        for name, each in options_of(cls).items():
            found.setdefault(name, {})[owner] = each
    return [_merged(by_owner) for by_owner in found.values()]


def _merged(by_owner: Mapping[str, Option]) -> Option:
    first, *others = by_owner.values()
    kinds = (first.kinds, first.multiple)
    differing: dict[str, Any] = {}
    for other in others:
        if (other.kinds, other.multiple) != kinds:
            raise TypeError(f"{first.flag} has several types: of {', '.join(by_owner)}")
        for bound in ("least", "most", "above", "below"):
            if getattr(other, bound) != getattr(first, bound):
                differing[bound] = None
    helps = _by_value({owner: each.help for owner, each in by_owner.items()})
    text = first.help
    if len(helps) > 1:
        text = " ".join(f"{', '.join(owners)}: {each}" for each, owners in helps.items())
    defaults = _by_value({owner: each.shown_default for owner, each in by_owner.items()})
    shown = "; ".join(f"{', '.join(names)}: {value}" for value, names in defaults.items() if value)
    sources = {each.source for each in by_owner.values()}
    source = first.source if len(sources) == 1 else ""
    return dataclasses.replace(first, help=text, source=source, shown=shown, **differing)


def _by_value(values: Mapping[str, str]) -> dict[str, list[str]]:
    """Group owners by what they have."""
    grouped: dict[str, list[str]] = {}
    for owner, value in values.items():
        grouped.setdefault(value, []).append(owner)
    return grouped


def show_value(value: object) -> str:
    """Format a setting's value for people."""
    return short_exponent(f"{value:g}") if isinstance(value, float) else str(value)


def flag(name: str) -> str:
    """Return a parameter's name as an option, such as ``--batch-size``."""
    return f"--{name.replace('_', '-')}"


def listed(words: Sequence[str], last: str = "or") -> str:
    """Join words into an English list: `A, B or C`."""
    *others, end = words or [""]
    return f"{', '.join(others)} {last} {end}" if others else end


def suggest(word: str, words: Iterable[str]) -> str:
    """Return the end of an error about an unknown name: similar names, or all if they are few."""
    known = {each.lower(): each for each in words}
    lower = word.lower()
    similar = [name for name in known if len(lower) > 2 and lower in name][:_SIMILAR]
    similar = similar or get_close_matches(lower, known, n=_SIMILAR, cutoff=0.7)
    if similar:
        return f"; did you mean {listed([known[name] for name in known if name in similar])}?"
    if 0 < len(known) <= _SHORT_LIST:
        return f"; choose {listed([*known.values()])}"
    return ""

"""Methods by name: those of the package, of entry points, and `module:Class`.

A method is a frozen dataclass: a strategy, an adapter, a loss or a partition. Its fields,
declared with `option`, are its hyper-parameters; options of the command line, checks, settings
as JSON and the tables of the docs are made from them.
"""

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import Field
from functools import cached_property, reduce
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.metadata import entry_points
from inspect import isabstract
from pathlib import Path
from typing import Any, Generic, TypeVar

from ..cache import FedclipError
from ..cache.common.errors import first_line
from ..cache.common.fields import listed, options_of, suggest
from ..cache.key import file_sha256

logger = logging.getLogger(__name__)

# Working directories that were added to the module search path.
_searched: set[str] = set()

T = TypeVar("T")


class Registry(Generic[T]):
    """The methods of one kind.

    Args:
        kind: What they are, such as "strategy"; also the name of the option that chooses one.
        base: The class that all of them extend.
        package: Where those of the package are.
        builtin: Those of the package, as ``module:Class`` below `package`, by name.
        group: Entry point group from which installed packages add methods; None for none.
    """

    def __init__(
        self,
        kind: str,
        base: type[T],
        package: str,
        builtin: Mapping[str, str],
        group: str | None = None,
    ) -> None:
        self.kind = kind
        self._base = base
        self._builtin = {name: f"{package}.{place}" for name, place in builtin.items()}
        self._group = group

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self._places)

    @cached_property
    def _places(self) -> dict[str, str]:
        """Every method's ``module:Class`` by name; entry points may not take a built-in name."""
        found = entry_points(group=self._group) if self._group else ()
        installed = {point.name: point.value for point in found}
        return {**self._builtin, **installed, **self._builtin}

    def get(self, name: str) -> type[T]:
        """Find the class behind a name or ``module:Class``.

        A module is looked for in the working directory too.

        Raises:
            FedclipError: the name is unknown, its module cannot be imported, or the class
                cannot be used.
        """
        place = self._places.get(name, name)
        if ":" not in place:
            raise FedclipError(f"unknown {self.kind} {name!r}{suggest(name, list(self))}")
        found = _import(place, self.kind)
        if not (isinstance(found, type) and issubclass(found, self._base)):
            raise FedclipError(
                f"--{self.kind} {name}: is not a subclass of fedclip.federate.extend."
                f"{self._base.__qualname__}; see docs/extend.md"
            )
        if isabstract(found):
            methods = vars(found)["__abstractmethods__"]
            missing = listed(sorted(methods), "and")
            raise FedclipError(f"--{self.kind} {name}: does not define {missing}")
        if "<locals>" in found.__qualname__:
            raise FedclipError(
                f"--{self.kind} {name}: is defined inside a function, so a run could not be "
                "resumed; define it at the top of the module"
            )
        # `dataclass` replaces what `option` made, in the class that declares it.
        if any(isinstance(each, Field) for cls in found.__mro__ for each in vars(cls).values()):
            raise FedclipError(
                f"--{self.kind} {name}: declares options but is not a dataclass; put "
                "@dataclass(frozen=True) above the class"
            )
        try:
            options_of(found)
        except (TypeError, NameError) as error:
            raise FedclipError(f"--{self.kind} {name}: {first_line(error)}") from None
        return found

    def name_of(self, method: T) -> str:
        """Return the name by which `get` finds the class of a method."""
        place = _place_of(method)
        return next((name for name, known in self._places.items() if known == place), place)

    def make(self, name: str, options: Mapping[str, Any]) -> T:
        """Make a method from those of `options` that it has; the others are for other methods."""
        kind = self.get(name)
        known = options_of(kind)
        for each in known.values():
            if each.required and each.name not in options:
                raise FedclipError(f"--{self.kind} {name}: needs {each.flag}")
        values = {key: options[key] for key in known if key in options}
        paths = {key for key, value in values.items() if Path in known[key].kinds and value}
        values = {key: Path(v) if key in paths else v for key, v in values.items()}
        try:
            return kind(**values)
        except FedclipError:
            raise
        except Exception as error:  # a user's class may raise anything
            if not self.is_outside(name):
                raise
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise FedclipError(f"--{self.kind} {name}: failed with {reason}") from error

    def classes(self) -> dict[str, type[T]]:
        """Return every class by name; installed ones that cannot be imported are left out."""
        found = {}
        for name in self:
            try:
                found[name] = self.get(name)
            except FedclipError as error:
                if name in self._builtin:
                    raise
                logger.warning("%s; it is left out", error)
        return found

    def is_outside(self, name: str) -> bool:
        """Return whether a method is from outside the package."""
        return self._places.get(name, name) not in self._builtin.values()

    def source_hash(self, name: str) -> str | None:
        """Hash the source of a method from outside the package, which is not run: SHA-256.

        It is part of a run's identity, so that a changed method does not pass for the old one.
        Methods of the package have none.
        """
        if not self.is_outside(name):
            return None
        file = _source_file(self._places.get(name, name).partition(":")[0])
        return file_sha256(file) if file else None


def _place_of(method: object) -> str:
    return f"{type(method).__module__}:{type(method).__qualname__}"


def _import(place: str, kind: str) -> Any:
    module, _, attribute = place.partition(":")
    _search_working_directory()
    try:
        found = import_module(module)
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise FedclipError(f"--{kind} {place}: cannot import {module} ({reason})") from None
    try:
        return reduce(getattr, attribute.split("."), found)
    except AttributeError:
        raise FedclipError(f"--{kind} {place}: {module} has no class {attribute!r}") from None


def _search_working_directory() -> None:
    """Find modules in the working directory from now on, as methods may import more later."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path[:] = [place for place in sys.path if place not in _searched]
        _searched.add(here)
        sys.path.append(here)


def _source_file(module: str) -> Path | None:
    """Find a module's file without running it or the packages that it is in."""
    _search_working_directory()
    places: Sequence[str] | None = sys.path
    name, spec = "", None
    for part in module.split("."):
        name = f"{name}.{part}".removeprefix(".")
        spec = PathFinder.find_spec(name, places)
        if spec is None:
            return None
        places = spec.submodule_search_locations
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        return None
    return Path(spec.origin)

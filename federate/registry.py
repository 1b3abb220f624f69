"""Methods by name: those of the package, of entry points, and `module:Class`.

A method is a frozen dataclass: a strategy, an adapter, a loss or a partition. Its fields,
declared with `option`, are its hyper-parameters; options of the command line, checks, settings
as JSON and the tables of the docs are made from them.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import Field, fields
from functools import cached_property
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Generic, TypeVar

from ..cache import FedclipError
from ..cache.common.errors import first_line
from ..cache.common.fields import suggest
from ..cache.key import file_sha256

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
                f"--{self.kind} {name}: is not a subclass of {self._base.__module__}."
                f"{self._base.__qualname__}; see docs/extend.md"
            )
        # `dataclass` replaces what `option` made, in the class that declares it.
        if any(isinstance(each, Field) for cls in found.__mro__ for each in vars(cls).values()):
            raise FedclipError(
                f"--{self.kind} {name}: declares options but is not a dataclass; put "
                "@dataclass(frozen=True) above the class"
            )
        return found

    def name_of(self, method: T) -> str:
        """Return the name by which `get` finds the class of a method."""
        place = _place_of(method)
        return next((name for name, known in self._places.items() if known == place), place)

    def make(self, name: str, options: Mapping[str, Any]) -> T:
        """Make a method from those of `options` that it has; the others are for other methods."""
        kind = self.get(name)
        known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
        return kind(**{key: value for key, value in options.items() if key in known})

    def classes(self) -> dict[str, type[T]]:
        """Return every class by name; installed ones that cannot be imported are left out."""
        found = {}
        for name in self:
            try:
                found[name] = self.get(name)
            except FedclipError:
                if name in self._builtin:
                    raise
        return found

    def source_hash(self, name: str) -> str | None:
        """Hash the source of a method from outside the package, which is not run: SHA-256.

        It is part of a run's identity, so that a changed method does not pass for the old one.
        Methods of the package have none.
        """
        place = self._places.get(name, name)
        if place in self._builtin.values():
            return None
        spec = None
        with _working_directory(), suppress(ImportError, ValueError):
            spec = find_spec(place.partition(":")[0])
        if spec is None or spec.origin is None:
            return None
        return file_sha256(Path(spec.origin))


def _place_of(method: object) -> str:
    return f"{type(method).__module__}:{type(method).__qualname__}"


def _import(place: str, kind: str) -> Any:
    module, _, attribute = place.partition(":")
    try:
        with _working_directory():
            found = import_module(module)
    except Exception as error:  # a user's module may raise anything
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise FedclipError(f"--{kind} {place}: cannot import {module} ({reason})") from None
    try:
        return getattr(found, attribute)
    except AttributeError:
        raise FedclipError(f"--{kind} {place}: {module} has no class {attribute!r}") from None


@contextmanager
def _working_directory() -> Iterator[None]:
    """Find modules in the working directory first."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)

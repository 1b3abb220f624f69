"""Options that several commands take, and how a command lends its own to another."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Annotated

import typer

CacheDir = Annotated[
    Path,
    typer.Option("--cache-dir", envvar="FEDCLIP_CACHE_DIR", help="Where caches are kept."),
]


def given(context: typer.Context) -> set[str]:
    """Name the parameters that the command line gives."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source and source.name == "COMMANDLINE"}


def flag(name: str) -> str:
    """Spell a parameter as its option is spelt."""
    return f"--{name.replace('_', '-')}"


def options_but(command: Callable[..., None], but: Collection[str]) -> list[str]:
    """Name the parameters of a command but for some."""
    return [name for name in inspect.signature(command).parameters if name not in but]


def with_options_of(
    *lenders: tuple[Callable[..., None], Collection[str]],
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let a command whose last parameter is `**options` take those named of others as well."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(function, eval_str=True).parameters.values())[:-1]
        lent = [
            inspect.signature(command, eval_str=True).parameters[name]
            for command, names in lenders
            for name in names
        ]
        together = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in (*own, *lent)]
        function.__signature__ = inspect.Signature(together)  # type: ignore[attr-defined]
        function.__annotations__ = {each.name: each.annotation for each in together}
        return function

    return decorate

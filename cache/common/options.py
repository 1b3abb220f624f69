"""Command-line options made from the settings that `fields.py` declares.

A command names the dataclasses that it takes, and gets instances of them:

    @app.command(cls=Command)
    @with_options(examples=["fedclip train --lr 0.1"])
    def train(run: RunOptions, settings: Chosen[Settings]) -> None: ...

Each field is one option; parameters of other types are Typer's, as usual.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, TypeVar, get_args, get_origin, overload

import typer
from typer.core import TyperCommand, TyperGroup

from .console import USAGE_ERROR, usage
from .errors import FedclipError
from .fields import Option, flag, option, options_of, suggest
from .tables import WRITERS

__all__ = [
    "Also",
    "CacheOptions",
    "Chosen",
    "Command",
    "DeviceOptions",
    "FormatOptions",
    "call",
    "declared",
    "flag",
    "given",
    "with_options",
]

# Choices of up to this many characters in all are the placeholder for the value in the help.
_SHORT_CHOICES = 24

# Key under which a context keeps the options of its command.
_EXPANDED = __name__

# Attribute in which a decorated function keeps its groups.
_COMMAND = "_with_options"

T = TypeVar("T")


@dataclass(frozen=True)
class CacheOptions:
    """Where caches are."""

    cache_dir: Path = option(
        Path("caches"), envvar="FEDCLIP_CACHE_DIR", help="Folder of the caches."
    )


@dataclass(frozen=True)
class DeviceOptions:
    """Where to compute."""

    device: str = option(
        "auto",
        choices=("auto", "cpu", "cuda"),
        closed=False,
        metavar="DEVICE",
        help="Device to compute on: auto, cpu, cuda, cuda:1, ...",
    )


@dataclass(frozen=True)
class FormatOptions:
    """How a command prints its table."""

    PANEL: ClassVar[str] = "Output"

    format: str = option(
        "table",
        choices=("table", *WRITERS),
        metavar="FORMAT",
        help="How to print the table; if not as a table to read, then nothing else goes to "
        "standard output.",
    )


class Chosen(dict[str, Any], Generic[T]):
    """The settings of `T` that the user set, by name; the others are not in the mapping."""


class Also:
    """Mark for the annotation of a `Chosen`: adds the options that a function lists.

    Args:
        options: Called with the command's raw arguments before they are parsed; without arguments
            if they are invalid, which is usual during shell completion.
    """

    def __init__(self, options: Callable[[Sequence[str]], Iterable[Option]]) -> None:
        self.options = options


@dataclass(frozen=True)
class _Group:
    """A parameter that stands for the options of a dataclass."""

    cls: type
    chosen: bool
    also: tuple[Also, ...]

    @classmethod
    def of(cls, annotation: Any) -> _Group | None:
        """Read a parameter's annotation; None if the parameter is one of Typer's own."""
        also: tuple[Also, ...] = ()
        if get_origin(annotation) is Annotated:
            annotation, *marks = get_args(annotation)
            also = tuple(mark for mark in marks if isinstance(mark, Also))
        chosen = get_origin(annotation) is Chosen
        if chosen:
            (annotation,) = get_args(annotation)
        if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
            return cls(annotation, chosen, also)
        return None

    def options(self, arguments: Sequence[str]) -> list[Option]:
        more = chain.from_iterable(each.options(arguments) for each in self.also)
        return [*options_of(self.cls).values(), *more]


@dataclass
class _Expanded:
    """The options of a command for the arguments of one call."""

    groups: dict[str, list[Option]] = field(default_factory=dict)
    parameters: list[Any] = field(default_factory=list)  # click's


@overload
def with_options(function: Callable[..., T]) -> Callable[..., T]: ...


@overload
def with_options(*, examples: Sequence[str]) -> Callable[[Callable[..., T]], Callable[..., T]]: ...


def with_options(
    function: Callable[..., Any] | None = None, *, examples: Sequence[str] = ()
) -> Any:
    """Let a command take dataclasses and `Chosen` mappings; use it together with `Command`.

    Args:
        function: The command.
        examples: Command lines to show at the end of the help.
    """
    if function is None:
        return functools.partial(with_options, examples=examples)
    signature = inspect.signature(function, eval_str=True)
    groups: dict[str, _Group] = {}
    others: list[inspect.Parameter] = []
    context_name = None
    for parameter in signature.parameters.values():
        group = _Group.of(parameter.annotation)
        if group is not None:
            groups[parameter.name] = group
        elif parameter.annotation is typer.Context:
            context_name = parameter.name
        else:
            others.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    @functools.wraps(function)
    def command(context: typer.Context, **values: Any) -> Any:
        if context_name is not None:
            values[context_name] = context
        return function(**values, **_build(context, groups))

    context = inspect.Parameter(
        "context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context
    )
    command.__signature__ = inspect.Signature([context, *others])  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in (context, *others)}
    setattr(command, _COMMAND, (groups, tuple(examples)))
    return command


def _build(context: typer.Context, groups: Mapping[str, _Group]) -> dict[str, Any]:
    """Build the instances and mappings that a command takes from the user's input."""
    typed = _given(context, "COMMANDLINE", "ENVIRONMENT")
    built = {}
    try:
        for name, group in groups.items():
            values = {
                each.name: _read(each, context.params[each.name])
                for each in _expanded(context).groups[name]
                if each.name in typed
            }
            built[name] = Chosen(values) if group.chosen else group.cls(**values)
    except FedclipError as error:
        context.fail(str(error))
    return built


def _read(each: Option, value: Any) -> Any:
    return value if isinstance(value, bool) else each.read(value)


class Group(TyperGroup):
    """A group of commands that answers --help without loading pydantic."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that the first argument names."""
        if self.get_command(ctx, args[0]) is None and not ctx.resilient_parsing:
            ctx.fail(f"unknown command {args[0]!r}{suggest(args[0], self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)

    def get_params(self, ctx: Any) -> list[Any]:
        """List the parameters; flags default to False, since a None would load pydantic."""
        parameters: list[Any] = super().get_params(ctx)
        for each in parameters:
            if each.default is None and getattr(each, "is_flag", False):
                each.default = False
        return parameters


class Command(TyperCommand):
    """A command whose options are made from dataclasses when its arguments are known."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        groups, examples = getattr(self.callback, _COMMAND, ({}, ()))
        self._groups: dict[str, _Group] = groups
        self.examples: tuple[str, ...] = examples
        paragraphs = (self.help or "").split("\n\n")
        self.help = "\n\n".join(" ".join(each.split()) for each in paragraphs)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Make the options for these arguments, then parse them."""
        try:
            ctx.meta[_EXPANDED] = _expand(self._groups, args)
        except FedclipError as error:
            ctx.meta[_EXPANDED] = _expand(self._groups, ())
            if not ctx.resilient_parsing:  # true during shell completion
                ctx.fail(str(error))
        ctx.allow_extra_args = True
        rest: list[str] = super().parse_args(ctx, args)
        if rest and not ctx.resilient_parsing:
            ctx.fail(f"{rest[0]}: unexpected argument")
        return rest

    def get_params(self, ctx: Any) -> list[Any]:
        """List the parameters: Typer's own, the options made from dataclasses, --help."""
        own = super().get_params(ctx)
        count = len(self.params)
        return [*own[:count], *_expanded(ctx).parameters, *own[count:]]

    def invoke(self, ctx: Any) -> Any:
        """Call the command."""
        own = {each.name for each in self.params}
        values = {name: value for name, value in ctx.params.items() if name in own}
        return ctx.invoke(self.callback, **values)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help, and the examples below it."""
        super().format_help(ctx, formatter)
        if self.examples:
            lines = "".join(f"  {line}\n" for line in self.examples)
            formatter.write(f"\nExamples:\n{lines}")


def _expand(groups: Mapping[str, _Group], arguments: Sequence[str]) -> _Expanded:
    expanded = _Expanded({name: group.options(arguments) for name, group in groups.items()})
    options = [*chain.from_iterable(expanded.groups.values())]
    flags = Counter(flag for each in options for flag in each.flags or (each.flag,))
    twice = [flag for flag, count in flags.items() if count > 1]
    if twice:
        raise FedclipError(f"{twice[0]} is declared twice; rename one of the two options")
    expanded.parameters = _parameters(options)
    return expanded


def _expanded(context: Any) -> _Expanded:
    expanded: _Expanded = context.meta.get(_EXPANDED) or _Expanded()
    return expanded


def _parameters(options: Iterable[Option]) -> list[Any]:
    """Make click's parameters: let Typer derive them from a function's signature."""

    def function() -> None: ...

    parameters = [_parameter(each) for each in options]
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {each.name: each.annotation for each in parameters}
    app = typer.Typer(add_completion=False)
    app.command()(function)
    made: list[Any] = typer.main.get_command(app).params
    return made


def _parameter(each: Option) -> inspect.Parameter:
    """Declare an option to Typer as text, which `Option.read` parses, or as a flag."""
    kind: Any = list[str] if each.multiple else str
    default: Any = each.shown_default or None
    if each.required:
        default = inspect.Parameter.empty
    elif each.kinds == (bool,):
        kind, default = bool, bool(each.default)
    elif default is None:
        kind = kind | None
    elif each.multiple:
        default = [default]
    flags = each.flags
    if not flags:
        negative = f"/--no-{each.flag[2:]}" if kind is bool and default else ""
        flags = (f"{each.flag}{negative}",)
    choices = each.names if each.closed else ()
    short = len("|".join(choices)) <= _SHORT_CHOICES
    text = each.help
    if each.source:
        text = f"{text.rstrip('.')} ({each.source})."
    if choices and not short:
        text = f"{text} One of {', '.join(choices)}."
    metavar = each.metavar or ("|".join(choices) if choices and short else _metavar(each))
    declared: Any = typer.Option(
        *flags,
        help=_escape(text),
        metavar="" if kind is bool else metavar,
        envvar=each.envvar or None,
        show_default=bool(default),
        autocompletion=each.complete or (_completer(each) if each.choices else None),
        rich_help_panel=each.panel or None,
    )
    return inspect.Parameter(
        each.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[kind, declared],
    )


def _metavar(each: Option) -> str:
    if each.choices:
        return "NAME"
    return {int: "INTEGER", float: "NUMBER", Path: "PATH"}.get(each.kinds[-1], "TEXT")


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _completer(each: Option) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        return [name for name in each.names if name.startswith(incomplete)]

    return complete


def call(function: Callable[..., T], words: Sequence[str]) -> T:
    """Call a function that takes dataclasses, as a command that is given these words.

    Raises:
        FedclipError: they are not options of it, or have invalid values.
    """
    app = typer.Typer(add_completion=False)
    app.command(cls=Command, add_help_option=False)(with_options(function))
    try:
        result: T = typer.main.get_command(app).main([*words], standalone_mode=False)
    except USAGE_ERROR as error:
        raise FedclipError(usage(error)) from None
    return result


def declared(context: typer.Context) -> dict[str, Option]:
    """List the options of the running command that are made from dataclasses, by name."""
    options = chain.from_iterable(_expanded(context).groups.values())
    return {each.name: each for each in options}


def given(context: typer.Context) -> set[str]:
    """Return the names of the parameters that the command line sets."""
    return _given(context, "COMMANDLINE")


def _given(context: typer.Context, *where: str) -> set[str]:
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source and source.name in where}

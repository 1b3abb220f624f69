"""Output and exit codes of commands."""

from __future__ import annotations

import errno
import sys
from typing import IO, TYPE_CHECKING, Any

import typer

from .errors import FedclipError, first_line
from .fields import suggest
from .layout import fold_note, lay_out
from .tables import WRITERS, Table
from .text import printable

if TYPE_CHECKING:
    from rich.console import Console

FAILED = 1
BAD_INPUT = 2
INTERRUPTED = 130

# What to do about errors of the system, by their number.
_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "; free some space and run this again"),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "; check its permissions"),
    errno.EFBIG: "; raise the limit on the size of files (ulimit -f) and run this again",
    errno.EROFS: "; choose a place that can be written",
}

# The base class of typer's usage errors; newer versions of typer bring their own click.
USAGE_ERROR: Any = typer.BadParameter.__mro__[1]


def complain(message: str) -> int:
    """Print an error on one line, and return the exit code of bad input."""
    line = "".join(character if character.isprintable() else " " for character in message)
    print("error:", " ".join(line.split()), file=sys.stderr)
    return BAD_INPUT


def explain(error: Exception) -> str | None:
    """Put an error that the user can fix into one line; None for a bug."""
    if isinstance(error, FedclipError):
        return str(error)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}{_REMEDIES.get(error.errno or 0, '')}"
    if isinstance(error, MemoryError):
        return f"not enough memory ({first_line(error)}); use less data at a time"
    if isinstance(error, USAGE_ERROR):
        command = error.ctx.command_path if error.ctx else "fedclip"
        return f"{usage(error)} (see {command} --help)"
    return None


def usage(error: Any) -> str:
    """Word an error of typer's as ours are: what, and what is wrong with it."""
    name = getattr(error, "option_name", None)
    if name and hasattr(error, "possibilities"):
        return f"unknown option {name}{suggest(name, error.possibilities or ())}"
    if name:
        return f"{name}: {error.message.removeprefix(f'Option {name!r} ').rstrip('.')}"
    if hasattr(error, "param_type") and error.param:
        is_option = error.param.param_type_name == "option"
        name = (
            error.param.opts[-1] if is_option else error.param.metavar or error.param.name.upper()
        )
        return f"{name}: is missing"
    return str(error.format_message().removeprefix("Invalid value: "))


class Output:
    """What a command prints to standard output: its table, and notes around it.

    If the table is for programs, it is all that standard output gets; notes go to standard error.

    Args:
        form: The table's format, as `--format` takes it.
    """

    def __init__(self, form: str) -> None:
        self._write = WRITERS.get(form)

    @property
    def for_people(self) -> bool:
        """Whether the table is laid out to be read, and not to be processed."""
        return self._write is None

    def note(self, text: str, *, whole: bool = False) -> None:
        """Print a line, which a terminal gets wrapped between words.

        Args:
            text: The line.
            whole: Whether it is to be copied, so that it may not be wrapped.
        """
        from rich.console import Console

        text = printable(text)
        stream = sys.stdout if self._write is None else sys.stderr
        console = Console(file=stream)
        if console.is_terminal and not whole:
            text = fold_note(text, console.width)
        print(text, file=stream, flush=True)

    def table(self, table: Table) -> None:
        """Print a table."""
        if self._write is None:
            show_table(table)
        else:
            _put(self._write(table), sys.stdout)


def show_table(table: Table, console: Console | None = None) -> None:
    """Print a table for people: as wide as a terminal allows, or plainly to a pipe or a file."""
    from rich.console import Console
    from rich.text import Text

    console = console or Console()
    rule = "─" if console.encoding.startswith("utf") else "-"
    if not console.is_terminal:
        lines = (line.text for line in lay_out(table, rule=rule))
        _put("".join(f"{line}\n" for line in lines), console.file)
        return
    for line in lay_out(table, console.width, rule):
        text = Text(line.text, style="bold" if line.heading else "")
        console.print(text, soft_wrap=True)


def _put(text: str, stream: IO[str]) -> None:
    """Write a text; characters that the stream's encoding lacks are escaped."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()

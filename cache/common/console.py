"""Output and exit codes of commands."""

from __future__ import annotations

import sys
from typing import IO, TYPE_CHECKING

from .layout import fold_note, lay_out
from .tables import WRITERS, Table

if TYPE_CHECKING:
    from rich.console import Console

FAILED = 1
BAD_INPUT = 2
INTERRUPTED = 130


def complain(message: str) -> int:
    """Print an error on one line, and return the exit code of bad input."""
    line = "".join(character if character.isprintable() else " " for character in message)
    print("error:", " ".join(line.split()), file=sys.stderr)
    return BAD_INPUT


class Output:
    """What a command prints to standard output: its table, and notes around it.

    If the table is for programs, it is all that standard output gets; notes go to standard error.

    Args:
        form: The table's format, as `--format` takes it.
    """

    def __init__(self, form: str) -> None:
        self._write = WRITERS.get(form)

    def note(self, text: str, *, whole: bool = False) -> None:
        """Print a line, which a terminal gets wrapped between words.

        Args:
            text: The line.
            whole: Whether it is to be copied, so that it may not be wrapped.
        """
        from rich.console import Console

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

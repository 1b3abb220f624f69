"""What commands print, and the codes that they end with."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

FAILED = 1
BAD_INPUT = 2
INTERRUPTED = 130

# Columns of a table where the output is no terminal.
PLAIN_WIDTH = 240


def complain(message: str) -> int:
    """Print an error as one line, and give the code to end with."""
    line = "".join(character if character.isprintable() else " " for character in message)
    print("error:", " ".join(line.split()), file=sys.stderr)
    return BAD_INPUT


def print_table(
    headings: Sequence[str], rows: Sequence[Sequence[object]], words: Collection[str] = ()
) -> None:
    """Print a table whose first column and those of `words` are words, and the others numbers."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD)
    for column, heading in enumerate(headings):
        left = column == 0 or heading in words
        table.add_column(heading, justify="left" if left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(str, row))
    show_table(table)


def show_table(table: Table, console: Console | None = None) -> None:
    """Print a table, cutting nothing: turned where only so it fits a terminal, else as it is."""
    from rich.console import Console

    console = console or Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH  # a log has no width to fit
    elif _width(table, console) > console.width:
        turned = _turned(table)
        table = turned if _width(turned, console) <= console.width else table
    console.width = max(console.width, _width(table, console))
    console.print(table)


def _width(table: Table, console: Console) -> int:
    """Measure how wide a table is with every cell on one line."""
    from rich.measure import Measurement

    options = console.options.update(max_width=sys.maxsize)
    return Measurement.get(console, options, table).maximum


def _turned(table: Table) -> Table:
    """Make rows of a table's columns; its first column becomes the heading."""
    from rich.table import Table

    turned = Table(box=table.box, title=table.title, title_justify=table.title_justify)
    first, *others = table.columns
    turned.add_column(first.header)
    for heading in first.cells:
        turned.add_column(heading, justify="right")
    for column in others:
        turned.add_row(column.header, *column.cells)
    return turned

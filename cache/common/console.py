"""Output and exit codes of commands."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Column, Table

FAILED = 1
BAD_INPUT = 2
INTERRUPTED = 130

# Width of a table in a pipe or a file, in characters.
PLAIN_WIDTH = 240


def complain(message: str) -> int:
    """Print an error on one line, and return the exit code of bad input."""
    line = "".join(character if character.isprintable() else " " for character in message)
    print("error:", " ".join(line.split()), file=sys.stderr)
    return BAD_INPUT


def print_table(
    headings: Sequence[str], rows: Sequence[Sequence[object]], words: Collection[str] = ()
) -> None:
    """Print a table; the first column and those in `words` contain text, the others numbers."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD)
    for column, heading in enumerate(headings):
        text = column == 0 or heading in words
        table.add_column(heading, justify="left" if text else "right", no_wrap=not text)
    for row in rows:
        table.add_row(*map(str, row))
    show_table(table)


def show_table(table: Table, console: Console | None = None) -> None:
    """Print a table whole, without breaking a word.

    A table too wide for the terminal is transposed. If it is still too wide, its texts are wrapped
    between words; if that is not enough either, each row is printed as a list. In a pipe or a file
    the table is printed as it is.
    """
    from rich.console import Console

    console = console or Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    elif _width(table, console) > console.width:
        table = _fitted(table, console)
    console.width = max(console.width, _width(table, console))
    console.print(table)


def _width(table: Table, console: Console) -> int:
    """Return the width of a table if no cell is wrapped further."""
    from rich.measure import Measurement

    options = console.options.update(max_width=sys.maxsize)
    return Measurement.get(console, options, table).maximum


def _fitted(table: Table, console: Console) -> Table:
    transposed = _transposed(table)
    if _width(transposed, console) <= console.width:
        return transposed
    if any(_is_text(column) for column in table.columns):
        _wrap(table, console)
        if _width(table, console) <= console.width:
            return table
    return _listed(table, console)


def _is_text(column: Column) -> bool:
    return column.justify == "left" and not column.no_wrap


def _transposed(table: Table) -> Table:
    """Turn a table's columns into rows; its first column becomes the heading."""
    from rich.table import Table

    transposed = Table(box=table.box, title=table.title, title_justify=table.title_justify)
    first, *others = table.columns
    transposed.add_column(first.header)
    for heading in first.cells:
        transposed.add_column(heading, justify="right")
    for column in others:
        transposed.add_row(column.header, *column.cells)
    return transposed


def _wrap(table: Table, console: Console) -> None:
    """Narrow the columns of text, the widest first, as far as their longest words allow."""
    texts = [column for column in table.columns if _is_text(column)]
    for column in texts:
        column.width = max(len(cell) for cell in _cells(column))
    while (excess := _width(table, console) - console.width) > 0:
        spare = {id(column): (column.width or 0) - _longest_word(column) for column in texts}
        able = [column for column in texts if spare[id(column)] > 0]
        if not able:
            return
        widest = max(able, key=lambda column: column.width or 0)
        others = [column.width or 0 for column in able if column is not widest]
        width = widest.width or 0
        step = max(1, width - max(others, default=0))
        widest.width = width - min(excess, step, spare[id(widest)])


def _cells(column: Column) -> list[str]:
    return [str(cell) for cell in (column.header, *column.cells)]


def _longest_word(column: Column) -> int:
    return max(len(word) for cell in _cells(column) for word in cell.split() or [""])


def _listed(table: Table, console: Console) -> Table:
    """Turn each row into a list, with the heading and cell of one column per line."""
    from rich.table import Table

    listed = Table(
        box=None, show_header=False, title=table.title, title_justify=table.title_justify
    )
    listed.add_column(no_wrap=True)
    listed.add_column()
    for position in range(table.row_count):
        for column in table.columns:
            header, *cells = _cells(column)
            listed.add_row(header, cells[position])
        if position < table.row_count - 1:
            listed.add_row("", "")
    _wrap(listed, console)
    return listed

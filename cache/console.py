"""What commands print, and the codes that they end with."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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


def show_table(table: Table) -> None:
    """Print a table as wide as the terminal, or as it needs in a log."""
    from rich.console import Console

    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH  # a log has no width to fit
    console.print(table)

"""How tables are printed."""

from io import StringIO

import pytest
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from fedclip.cache.common.console import PLAIN_WIDTH, show_table


def printed(columns: int, width: int, *, terminal: bool = True) -> list[list[str]]:
    """Print a table of two rows, and give its lines that are not empty as words."""
    table = Table(box=SIMPLE_HEAD, title="accuracy")
    for column in range(columns):
        table.add_column(f"heading-{column}")
    for row in ("one", "two"):
        table.add_row(row, *(f"{column}.25 > 99.75" for column in range(1, columns)))
    console = Console(file=StringIO(), force_terminal=terminal, width=width, color_system=None)
    show_table(table, console)
    assert isinstance(console.file, StringIO)
    lines = [line.split() for line in console.file.getvalue().splitlines()]
    return [words for words in lines if words and "─" not in words[0]]


def whole(columns: int) -> list[list[str]]:
    rows = [[f"heading-{column}" for column in range(columns)]]
    for row in ("one", "two"):
        cells = (f"{column}.25 > 99.75".split() for column in range(1, columns))
        rows.append([row, *(word for cell in cells for word in cell)])
    return rows


@pytest.mark.parametrize("width", [40, 79, 120])
def test_a_table_that_fits_is_printed_as_it_is(width: int) -> None:
    assert printed(2, width)[1:] == whole(2)


def test_a_table_that_is_too_wide_is_turned_where_that_fits() -> None:
    lines = printed(9, 60)
    assert lines[1] == ["heading-0", "one", "two"]
    assert lines[2:] == [
        [f"heading-{column}", *2 * [f"{column}.25", ">", "99.75"]] for column in range(1, 9)
    ]


def test_nothing_is_cut_where_neither_fits() -> None:
    assert printed(9, 20)[-3:] == whole(9)


def test_a_log_has_the_table_as_it_is() -> None:
    assert PLAIN_WIDTH > 200
    assert printed(9, 20, terminal=False)[1:] == whole(9)

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


def test_each_row_is_listed_where_neither_fits() -> None:
    lines = [line for row in ("one", "two") for line in listed(row)]
    assert printed(9, 30)[1:] == lines


def listed(row: str) -> list[list[str]]:
    cells = [f"heading-{column} {column}.25 > 99.75".split() for column in range(1, 9)]
    return [["heading-0", row], *cells]


def test_a_list_wraps_between_words_where_it_is_too_wide() -> None:
    assert printed(9, 20)[1:4] == [["heading-0", "one"], ["heading-1", "1.25", ">"], ["99.75"]]
    assert printed(9, 5)[1:5] == [
        ["heading-0", "one"],
        ["heading-1", "1.25"],
        [">"],
        ["99.75"],
    ]


KNOWN = [
    ("pacs", "art_painting, cartoon, photo, sketch", 7, 9991, "flwrlabs/pacs at 0f2a"),
    ("office-home", "art, clipart, product, real_world", 65, 15588, "none but a folder"),
]


def test_texts_are_wrapped_between_words_where_that_is_enough() -> None:
    assert show(120) == [
        "  name          clients by name                        classes   images   source",
        " ──────────────────────────────────────────────────────────────────────────────────────"
        "─────────",
        "  pacs          art_painting, cartoon, photo, sketch         7     9991   "
        "flwrlabs/pacs at 0f2a",
        "  office-home   art, clipart, product, real_world           65    15588   "
        "none but a folder",
    ]
    assert show(80) == [
        "  name          clients by name        classes   images   source",
        " ──────────────────────────────────────────────────────────────────────────────",
        "  pacs          art_painting,                7     9991   flwrlabs/pacs at",
        "                cartoon, photo,                           0f2a",
        "                sketch",
        "  office-home   art, clipart,               65    15588   none but a folder",
        "                product, real_world",
    ]
    assert show(60) == [
        " name             pacs",
        " clients by name  art_painting, cartoon, photo, sketch",
        " classes          7",
        " images           9991",
        " source           flwrlabs/pacs at 0f2a",
        " name             office-home",
        " clients by name  art, clipart, product, real_world",
        " classes          65",
        " images           15588",
        " source           none but a folder",
    ]


def show(width: int) -> list[str]:
    table = Table(box=SIMPLE_HEAD)
    for heading in ("name", "clients by name", "classes", "images", "source"):
        number = heading in ("classes", "images")
        table.add_column(heading, justify="right" if number else "left", no_wrap=number)
    for row in KNOWN:
        table.add_row(*map(str, row))
    console = Console(file=StringIO(), force_terminal=True, width=width, color_system=None)
    show_table(table, console)
    assert isinstance(console.file, StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines() if line.strip()]


def test_a_log_has_the_table_as_it_is() -> None:
    assert PLAIN_WIDTH > 200
    assert printed(9, 20, terminal=False)[1:] == whole(9)

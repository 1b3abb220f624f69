"""Tables as people read them, at the widths that they have."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from fedclip.cache.common.layout import PLAIN_WIDTH, lay_out
from fedclip.cache.common.tables import Column, Table, percent

KNOWN = Table(
    [
        Column("name"),
        Column("clients by name", wraps=True),
        Column("classes"),
        Column("images"),
        Column("source", wraps=True),
    ],
    [
        ("pacs", ("art_painting", "cartoon", "photo", "sketch"), 7, 9991, "flwrlabs/pacs at 0f2a"),
        ("office-home", ("art", "clipart", "product"), 65, 15588, "none but a folder"),
    ],
)

FIGURES = Table(
    [Column("target"), *(Column(f"client-{number}", show=percent) for number in range(5))],
    [
        ("photo", 0.5, 0.25, 1.0, 0.125, None),
        ("sketch", 0.75, 0.5, 0.5, 0.5, 0.5),
    ],
    caption="accuracy in %",
    footer=[("mean", 0.625, 0.375, 0.75, 0.3125, 0.5)],
)


def shown(table: Table, width: int | None) -> list[str]:
    return [line.text for line in lay_out(table, width)]


@pytest.mark.parametrize("width", [None, 80, 120])
def test_a_table_that_fits_is_shown_as_it_is(width: int | None) -> None:
    assert shown(FIGURES, width) == [
        "accuracy in %",
        "target  client-0  client-1  client-2  client-3  client-4",
        "────────────────────────────────────────────────────────",
        "photo      50.00     25.00    100.00     12.50         -",
        "sketch     75.00     50.00     50.00     50.00     50.00",
        "────────────────────────────────────────────────────────",
        "mean       62.50     37.50     75.00     31.25     50.00",
    ]


def test_figures_that_are_too_wide_are_turned() -> None:
    assert shown(FIGURES, 50) == [
        "accuracy in %",
        "target     photo  sketch   mean",
        "───────────────────────────────",
        "client-0   50.00   75.00  62.50",
        "client-1   25.00   50.00  37.50",
        "client-2  100.00   50.00  75.00",
        "client-3   12.50   50.00  31.25",
        "client-4       -   50.00  50.00",
    ]


def test_figures_that_are_too_wide_even_turned_are_split() -> None:
    assert shown(FIGURES, 30) == [
        "accuracy in %",
        "target  client-0  client-1",
        "──────────────────────────",
        "photo      50.00     25.00",
        "sketch     75.00     50.00",
        "──────────────────────────",
        "mean       62.50     37.50",
        "",
        "target  client-2  client-3",
        "──────────────────────────",
        "photo     100.00     12.50",
        "sketch     50.00     50.00",
        "──────────────────────────",
        "mean       75.00     31.25",
        "",
        "target  client-4",
        "────────────────",
        "photo          -",
        "sketch     50.00",
        "────────────────",
        "mean       50.00",
    ]


def test_a_part_of_a_split_table_has_no_footer_without_figures() -> None:
    footer = [("mean", *[None] * 3, 0.3125, 0.5), ("nothing", *[None] * 5)]
    table = Table(FIGURES.columns, FIGURES.rows[:1], footer=footer)
    assert [line.split()[0] for line in shown(table, 30) if line and "─" not in line] == [
        *("target", "photo", "nothing"),
        *("target", "photo", "mean", "nothing"),
        *("target", "photo", "mean", "nothing"),
    ]


def test_each_part_of_a_split_table_has_all_labels() -> None:
    columns = [Column("lr"), Column("adapter"), *(Column(f"figure {at}") for at in range(4))]
    table = Table(columns, [(0.1, "none", 1, 2, 3, 4)], labels=2)
    assert shown(table, 36) == [
        " lr  adapter  figure 0  figure 1",
        "────────────────────────────────",
        "0.1  none            1         2",
        "",
        " lr  adapter  figure 2  figure 3",
        "────────────────────────────────",
        "0.1  none            3         4",
    ]


def test_a_split_table_keeps_a_gain_beside_its_figure() -> None:
    columns = [Column("lr"), Column("runs"), Column("mean"), Column("gain", joined=True)]
    columns += [Column("pooled"), Column("gain", joined=True)]
    table = Table(columns, [(0.1, 5, 1, 2, 3, 4), *[(0.2, 5, 5, 6, 7, 8)] * 9])
    assert [line for line in shown(table, 22) if "lr" in line] == [
        " lr  runs  mean  gain",
        " lr  pooled  gain",
    ]
    assert [line for line in shown(table, 20) if "lr" in line] == [
        " lr  runs",
        " lr  mean  gain",
        " lr  pooled  gain",
    ]


def test_each_row_is_a_list_where_parts_would_have_a_figure_each() -> None:
    assert shown(FIGURES, 22)[:9] == [
        "accuracy in %",
        "target    photo",
        "client-0  50.00",
        "client-1  25.00",
        "client-2  100.00",
        "client-3  12.50",
        "client-4  -",
        "",
        "target    sketch",
    ]


def test_sentences_are_wrapped_between_words() -> None:
    assert shown(KNOWN, 120) == [
        "name         clients by name                       classes  images  source",
        "─────────────────────────────────────────────────────────────────────────────────────────",
        "pacs         art_painting, cartoon, photo, sketch        7    9991  flwrlabs/pacs at 0f2a",
        "office-home  art, clipart, product                      65   15588  none but a folder",
    ]
    assert shown(KNOWN, 80) == [
        "name         clients by name              classes  images  source",
        "────────────────────────────────────────────────────────────────────────────────",
        "pacs         art_painting, cartoon,             7    9991  flwrlabs/pacs at 0f2a",
        "             photo, sketch",
        "office-home  art, clipart, product             65   15588  none but a folder",
    ]


def test_sentences_without_room_make_each_row_a_list() -> None:
    assert shown(KNOWN, 50) == [
        "name             pacs",
        "clients by name  art_painting, cartoon, photo,",
        "                 sketch",
        "classes          7",
        "images           9991",
        "source           flwrlabs/pacs at 0f2a",
        "",
        "name             office-home",
        "clients by name  art, clipart, product",
        "classes          65",
        "images           15588",
        "source           none but a folder",
    ]


def test_names_and_values_stay_one_table_and_long_words_are_broken() -> None:
    facts = [
        ("key", "6c62d1ff91f7131ac3bde55822b17ddc"),
        ("classes", "cup, fish, house, key, tree"),
    ]
    assert shown(Table([Column("fact"), Column("value", wraps=True)], facts), 35) == [
        "fact     value",
        "───────────────────────────────────",
        "key      6c62d1ff91f7131ac3bde55822",
        "         b17ddc",
        "classes  cup, fish, house, key,",
        "         tree",
    ]


def test_a_pipe_gets_each_row_of_figures_on_one_line() -> None:
    names = [f"a-client-of-a-long-name-{number}" for number in range(8)]
    table = Table([Column("target"), *map(Column, names)], [("photo", *range(8))])
    heading, rule, row = shown(table, None)
    assert heading.split() == ["target", *names]
    assert len(heading) == len(rule) == len(row) > PLAIN_WIDTH
    assert row.split() == ["photo", *map(str, range(8))]


def test_a_pipe_gets_sentences_wrapped() -> None:
    table = Table([Column("name"), Column("what", wraps=True)], [("a", "word " * 40)])
    lines = shown(table, None)
    assert max(map(len, lines)) <= PLAIN_WIDTH
    assert " ".join(lines[2:]).split() == ["a", *["word"] * 40]


def test_wide_characters_are_aligned_by_their_width() -> None:
    assert shown(Table([Column("name"), Column("rows")], [("東京", 12), ("a", 3)]), 80) == [
        "name  rows",
        "──────────",
        "東京    12",
        "a        3",
    ]


def test_text_from_data_cannot_color_or_break_a_table() -> None:
    table = Table([Column("a\x1b[31m")], [("[red]b[/red]",), ("c\nd\u202ee",)])
    assert shown(table, 80) == [
        r"a\x1b[31m",
        "────────────",
        "[red]b[/red]",
        r"c\nd\u202ee",
    ]


def test_a_word_wider_than_a_line_is_broken() -> None:
    table = Table([Column("name"), Column("what", wraps=True)], [("n" * 30, "w" * 50)])
    assert shown(table, 20) == [
        "name  nnnnnnnnnnnnnn",
        "      nnnnnnnnnnnnnn",
        "      nn",
        "what  wwwwwwwwwwwwww",
        "      wwwwwwwwwwwwww",
        "      wwwwwwwwwwwwww",
        "      wwwwwwww",
    ]


WORDS = st.lists(st.text("abz_京é\x1b", min_size=1, max_size=30), max_size=6)


@st.composite
def tables(draw: st.DrawFn) -> Table:
    columns = draw(st.integers(1, 7))
    rows = draw(st.integers(0, 4))
    wraps = draw(st.lists(st.booleans(), min_size=columns, max_size=columns))

    def cell(at: int) -> object:
        kinds = [WORDS.map(" ".join), st.integers(), st.none(), st.floats(0, 1)]
        return draw(kinds[0] if wraps[at] else st.one_of(kinds))

    def some(count: int) -> list[list[object]]:
        return [[cell(at) for at in range(columns)] for _ in range(count)]

    return Table(
        [Column(draw(WORDS.map(" ".join)), wraps=wrap) for wrap in wraps],
        some(rows),  # type: ignore[arg-type]
        caption=draw(WORDS.map(" ".join)),
        footer=some(draw(st.integers(0, 1))),  # type: ignore[arg-type]
        labels=draw(st.integers(1, 2)),
    )


def letters(texts: Sequence[str]) -> dict[str, int]:
    """Count the characters of a table, whatever their order."""
    joined = "".join(texts)
    return {each: joined.count(each) for each in set(joined) - set(" ─")}


@given(tables(), st.integers(1, 130))
def test_no_line_is_too_wide_and_nothing_is_lost(table: Table, width: int) -> None:
    lines = shown(table, width)
    assert all(cell_len(line) <= max(width, 20) for line in lines)
    assert not any(line.endswith(" ") for line in lines)
    wanted = letters([text for row in table.texts() for text in row])
    found = letters(lines)
    assert all(found.get(each, 0) >= count for each, count in wanted.items())


@given(tables())
def test_a_pipe_loses_nothing_either(table: Table) -> None:
    lines = shown(table, None)
    assert not any(line.endswith(" ") for line in lines)
    wanted = letters([text for row in table.texts() for text in row])
    found = letters(lines)
    assert all(found.get(each, 0) >= count for each, count in wanted.items())

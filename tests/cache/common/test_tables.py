"""Tables in the formats for programs and papers."""

import csv
import json
import math
from datetime import datetime
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedclip.cache.common.tables import (
    Cell,
    Column,
    Spread,
    Table,
    percent,
    points,
    show_cell,
    thousands,
    to_csv,
    to_json,
    to_latex,
    to_markdown,
)

TABLE = Table(
    [
        Column("adapter"),
        Column("what it is", wraps=True),
        Column("size", show=thousands, best="min"),
        Column("accuracy", show=percent, best="max"),
        Column("all of them", key="each", hidden=True),
    ],
    [
        ("attention", "weights_& norms", 525312, Spread(0.9712345678901234, 0.01), ("a", "b")),
        ("none", "50 % of {it}", 0, Spread(0.95, None), ()),
    ],
    caption="accuracy in %",
    footer=[("mean", None, None, Spread(0.96, 0.02), None)],
)


def test_csv_has_a_column_per_value_in_full_precision() -> None:
    assert to_csv(TABLE).splitlines() == [
        "adapter,what_it_is,size,accuracy.mean,accuracy.deviation,each",
        'attention,weights_& norms,525312,0.9712345678901234,0.01,"a, b"',
        "none,50 % of {it},0,0.95,,",
        "mean,,,0.96,0.02,",
    ]


def test_json_has_an_object_per_row_with_typed_values() -> None:
    assert json.loads(to_json(TABLE)) == [
        {
            "adapter": "attention",
            "what_it_is": "weights_& norms",
            "size": 525312,
            "accuracy": {"mean": 0.9712345678901234, "deviation": 0.01},
            "each": ["a", "b"],
        },
        {
            "adapter": "none",
            "what_it_is": "50 % of {it}",
            "size": 0,
            "accuracy": {"mean": 0.95, "deviation": None},
            "each": [],
        },
        {
            "adapter": "mean",
            "what_it_is": None,
            "size": None,
            "accuracy": {"mean": 0.96, "deviation": 0.02},
            "each": None,
        },
    ]


def test_markdown_shows_what_people_read_with_the_best_in_bold() -> None:
    assert to_markdown(TABLE).splitlines() == [
        "accuracy in %",
        "",
        "| adapter | what it is | size | accuracy |",
        "| --- | --- | ---: | ---: |",
        r"| attention | weights\_\& norms | 525,312 | **97.12 (1.00)** |",
        r"| none | 50 % of \{it\} | **0** | 95.00 |",
        "| mean |  |  | 96.00 (2.00) |",
    ]


def test_latex_uses_booktabs_with_the_best_in_bold() -> None:
    assert to_latex(TABLE).splitlines() == [
        r"\begin{table}",
        r"\centering",
        r"\caption{accuracy in \%}",
        r"\begin{tabular}{llrr}",
        r"\toprule",
        r"adapter & what it is & size & accuracy \\",
        r"\midrule",
        r"attention & weights\_\& norms & $525{,}312$ & $\mathbf{97.12 \pm 1.00}$ \\",
        r"none & 50 \% of \{it\} & $\mathbf{0}$ & $95.00$ \\",
        r"\midrule",
        r"mean &  &  & $96.00 \pm 2.00$ \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        (r"a\b", r"a\textbackslash{}b"),
        ("50 % & $3 #1 a_b {c}", r"50 \% \& \$3 \#1 a\_b \{c\}"),
        ("~^", r"\textasciitilde{}\textasciicircum{}"),
        ("<b>|\"'`", r"\textless{}b\textgreater{}\textbar{}\symbol{34}'\textasciigrave{}"),
        ("--lr -1 ''x'", r"-{}-lr -1 '{}'x'"),
        ("[htb]", "{[}htb{]}"),
        ("a\nb\x1b", r"a\textbackslash{}nb\textbackslash{}x1b"),
        ("東京", "東京"),
    ],
)
def test_latex_escapes_text(text: str, latex: str) -> None:
    lines = to_latex(Table([Column(text)], [(text,)], caption=text)).splitlines()
    assert lines[2] == rf"\caption{{{latex}}}"
    assert lines[5] == lines[7] == rf"{latex} \\"


def test_latex_shows_numbers_in_math_mode_and_other_values_as_text() -> None:
    columns = [Column("a"), Column("b"), Column("c", show=points), Column("d", show="{} MB".format)]
    rows: list[tuple[Cell, ...]] = [(5e-5, -3, -0.0123, 12), (True, 1e30, 0.5, 3)]
    assert to_latex(Table(columns, rows)).splitlines()[6:8] == [
        r"$5 \cdot 10^{-5}$ & $-3$ & $-1.23$ & 12 MB \\",
        r"yes & $1 \cdot 10^{30}$ & $+50.00$ & 3 MB \\",
    ]


def test_markdown_escapes_text() -> None:
    text = "<script>|a|</script> `b` **c** [d](e) \\ &lt; ~f~ $g$ #h"
    line = to_markdown(Table([Column("a")], [(text,)])).splitlines()[2]
    assert line == (
        r"| \<script\>\|a\|\</script\> \`b\` \*\*c\*\* \[d\](e) \\ \&lt; \~f\~ \$g\$ \#h |"
    )


CELLS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=()), max_size=8),
)


@given(st.lists(st.tuples(CELLS, CELLS), max_size=5))
def test_json_gives_every_value_back(rows: list[tuple[Any, Any]]) -> None:
    text = to_json(Table([Column("one"), Column("another one")], rows))
    back = json.loads(text)
    assert [tuple(each.values()) for each in back] == rows
    assert [[type(cell) for cell in each.values()] for each in back] == [
        [type(cell) for cell in row] for row in rows
    ]
    assert all(
        character.isprintable() or character in "\n\u200c\u200d" or character.isspace()
        for character in text
    )


@given(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=5))
def test_csv_gives_text_back_that_can_be_shown(texts: list[str]) -> None:
    kept = [text for text in texts if text.isprintable()]
    lines = csv.reader(StringIO(to_csv(Table([Column("a"), Column("b")], [(t, 1) for t in kept]))))
    assert [line[0] for line in lines][1:] == kept


def test_json_has_null_for_what_is_not_finite() -> None:
    rows: list[tuple[Cell]] = [(math.nan,), (Spread(math.inf, 1.0),)]
    assert json.loads(to_json(Table([Column("a")], rows))) == [
        {"a": None},
        {"a": {"mean": None, "deviation": 1.0}},
    ]


def test_times_and_paths_are_text() -> None:
    table = Table([Column("made"), Column("here")], [(datetime(2026, 1, 2, 3, 4, 5), Path("/a b"))])
    assert json.loads(to_json(table)) == [{"made": "2026-01-02T03:04:05", "here": "/a b"}]
    assert to_csv(table).splitlines()[1] == "2026-01-02T03:04:05,/a b"
    assert to_markdown(table).splitlines()[2] == "| 2026-01-02 03:04 | /a b |"


def test_columns_of_one_name_are_numbered() -> None:
    table = Table([Column("mean"), Column("mean"), Column("x", key="mean")], [(1, 2, 3)])
    assert json.loads(to_json(table)) == [{"mean": 1, "mean_2": 2, "mean_3": 3}]
    assert to_csv(table).splitlines()[0] == "mean,mean_2,mean_3"


def test_an_empty_table_has_its_headings() -> None:
    table = Table([Column("a"), Column("b")], [])
    assert to_csv(table) == "a,b\n"
    assert to_json(table) == "[]\n"
    assert to_markdown(table) == "| a | b |\n| --- | --- |\n"


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="a row has 1 cells for 2 columns"):
        Table([Column("a"), Column("b")], [(1,)])


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (5e-5, "5e-5"),
        (1e-10, "1e-10"),
        (1e20, "1e20"),
        (0.001, "0.001"),
        (1.0, "1"),
        (-2e-7, "-2e-7"),
    ],
)
def test_a_number_is_shown_as_one_types_it(value: float, shown: str) -> None:
    assert show_cell(value) == shown

r"""Tables as values, and the formats in which a command prints them.

A command makes a `Table` of typed cells and hands it to `console.Output`, which prints it in the
format that the user chose:

    table = Table(
        [Column("adapter"), Column("accuracy", show=percent, best="max")],
        [("attention", Spread(0.97, 0.01)), ("none", Spread(0.95, None))],
        caption="accuracy in %: mean (standard deviation)",
    )

`table` is text for people, as wide as the terminal (`layout.py`), `markdown` and `latex` have the
same figures in the same form, and `csv` and `json` have the values themselves in full precision.
Cells are text, numbers, times, paths, lists of texts, None for a value that is missing, or a
`Compound` of several values. All text is escaped.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from io import StringIO
from pathlib import Path
from typing import Any, Literal, TypeAlias

from .text import printable, short_exponent

MISSING = "-"

_NUMBER = re.compile(r"[+-]?[\d,]*\.?\d+(e[+-]?\d+)?")

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\symbol{34}",  # to some languages a shorthand
    "`": r"\textasciigrave{}",
    "[": "{[}",  # after \\ it would be an option
    "]": "{]}",
    **{each: rf"\{each}" for each in "&%$#_{}"},
}

_BEYOND_ASCII = re.compile(r"[^\x20-\x7e\n]")

_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|~&$#])")

Show: TypeAlias = Callable[[Any], str]


class Compound:
    """A cell of several values: a frozen dataclass, of which csv and json have every field."""

    @property
    def rank(self) -> float | None:
        """The number by which the best of a column is chosen."""
        raise NotImplementedError

    def text(self, show: Show) -> str:
        """Return the cell as people read it.

        Args:
            show: Formats one of the values.
        """
        raise NotImplementedError

    def latex(self, show: Show) -> str:
        """Return the cell for LaTeX's math mode.

        Args:
            show: Formats one of the values for math mode.
        """
        raise NotImplementedError

    def parts(self) -> dict[str, Any]:
        """Return the values by field."""
        return {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}  # type: ignore[arg-type]


@dataclass(frozen=True)
class Spread(Compound):
    """A mean and its standard deviation, which one value does not have."""

    mean: float
    deviation: float | None

    @property
    def rank(self) -> float:
        """The mean."""
        return self.mean

    def text(self, show: Show) -> str:
        """Return `mean (deviation)`."""
        deviation = "" if self.deviation is None else f" ({_unsigned(show(self.deviation))})"
        return show(self.mean) + deviation

    def latex(self, show: Show) -> str:
        r"""Return `mean \pm deviation`."""
        deviation = "" if self.deviation is None else rf" \pm {_unsigned(show(self.deviation))}"
        return show(self.mean) + deviation


def _unsigned(number: str) -> str:
    """Leave the sign of a difference out of its deviation."""
    return number.removeprefix("+")


Cell: TypeAlias = str | int | float | Path | datetime | Sequence[str] | Compound | None


def show_cell(value: Any) -> str:
    """Format a value without a format of its own."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return short_exponent(f"{value:g}")
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)


def percent(value: float) -> str:
    """Format a fraction in percent, without the sign."""
    return f"{100 * value:.2f}"


def points(value: float) -> str:
    """Format a difference of fractions in percentage points, with its sign."""
    return f"{100 * value:+.2f}"


def thousands(value: float) -> str:
    """Format a large number without a fraction."""
    return f"{value:,.0f}"


@dataclass(frozen=True)
class Column:
    """A column of a table: numbers are aligned to the right, all else to the left.

    Attributes:
        name: Heading.
        key: Name in csv and json; by default the heading with underscores for spaces.
        show: Formats a value, or each value of a `Compound`.
        wraps: Whether cells are sentences or lists, which may be wrapped between words.
        best: Which of its numbers are in bold in LaTeX and Markdown, if any.
        hidden: Whether only csv and json have it.
        joined: Whether a table that is split keeps it beside the column before it.
    """

    name: str
    key: str = ""
    show: Show = show_cell
    wraps: bool = False
    best: Literal["max", "min"] | None = None
    hidden: bool = False
    joined: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of typed cells.

    Attributes:
        columns: One or more.
        rows: Of each, one cell per column.
        caption: What the figures are, with their units.
        footer: More rows, below a line: what the others come to. What is missing there is blank.
        labels: Number of leading columns that say what a row is; where a table is too wide for
            the terminal and is split, each part has them.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    footer: Sequence[Sequence[Cell]] = ()
    labels: int = 1

    def __post_init__(self) -> None:
        for row in self.all_rows:
            if len(row) != len(self.columns):
                raise ValueError(f"a row has {len(row)} cells for {len(self.columns)} columns")

    @property
    def all_rows(self) -> list[Sequence[Cell]]:
        """The rows and the footer's."""
        return [*self.rows, *self.footer]

    @property
    def shown(self) -> list[int]:
        """The positions of the columns that people are shown."""
        return [at for at, column in enumerate(self.columns) if not column.hidden]

    def numeric(self, at: int) -> bool:
        """Return whether a column has numbers and nothing else."""
        cells = [row[at] for row in self.all_rows if row[at] is not None]
        numbers = (isinstance(each, int | float | Compound) for each in cells)
        return bool(cells) and all(numbers) and not any(isinstance(each, bool) for each in cells)

    def text(self, row: Sequence[Cell], at: int, missing: str = MISSING) -> str:
        """Format a cell as people read it; `missing` stands for None."""
        value, show = row[at], _present(self.columns[at].show)
        if value is None:
            return missing
        return printable(value.text(show) if isinstance(value, Compound) else show(value))

    def texts(self) -> list[list[str]]:
        """Format the rows and the footer of the columns that people are shown."""
        shown = self.shown
        rows = [[self.text(row, at) for at in shown] for row in self.rows]
        return rows + [[self.text(row, at, "") for at in shown] for row in self.footer]

    def best(self) -> dict[int, float]:
        """Return the best number of each column that has one, the footer's left out."""
        found = {}
        for at, column in enumerate(self.columns):
            ranks = [rank for row in self.rows if (rank := _rank(row[at])) is not None]
            if ranks and column.best:
                found[at] = max(ranks) if column.best == "max" else min(ranks)
        return found


def _present(show: Show) -> Show:
    return lambda value: MISSING if value is None else show(value)


def _rank(value: Cell) -> float | None:
    rank = value.rank if isinstance(value, Compound) else value
    return rank if isinstance(rank, int | float) and math.isfinite(rank) else None


def to_csv(table: Table) -> str:
    """Write values in full precision; a `Compound` has a column for each of its fields."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    parts = [_fields(table, at) for at in range(len(table.columns))]
    keys = _keys(table)
    header = [
        printable(f"{key}.{name}" if name else key)
        for key, names in zip(keys, parts, strict=True)
        for name in names
    ]
    writer.writerow(header)
    for row in table.all_rows:
        writer.writerow(
            [
                _plain(getattr(cell, name, None) if name else cell, column.show)
                for cell, column, names in zip(row, table.columns, parts, strict=True)
                for name in names
            ]
        )
    return text.getvalue()


def _fields(table: Table, at: int) -> list[str]:
    """Return the names of the values of a column's cells; one without a name if they are plain."""
    cells = [row[at] for row in table.all_rows]
    compound = next((each for each in cells if isinstance(each, Compound)), None)
    return list(compound.parts()) if compound else [""]


def _plain(value: Any, show: Show) -> str:
    """Return a value as text in full precision; a list as people read it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, datetime):
        return value.isoformat()
    return printable(show(value) if isinstance(value, list | tuple) else str(value))


def to_json(table: Table) -> str:
    """Write a list with an object per row; what is missing or not finite is null."""
    keys = _keys(table)
    rows = [
        {key: _json(cell) for key, cell in zip(keys, row, strict=True)} for row in table.all_rows
    ]
    text = json.dumps(rows, indent=2, ensure_ascii=False, allow_nan=False)
    return _BEYOND_ASCII.sub(_json_escaped, text) + "\n"


def _json_escaped(character: re.Match[str]) -> str:
    """Escape a character unless it can be shown; outside of strings all can."""
    own = character[0]
    return own if printable(own) == own else json.dumps(own)[1:-1]


def _json(value: Any) -> Any:
    if isinstance(value, Compound):
        return {name: _json(part) for name, part in value.parts().items()}
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, list | tuple):
        return [_json(each) for each in value]
    return str(value) if isinstance(value, Path) else value


def _keys(table: Table) -> list[str]:
    """Return the columns' names in csv and json; of several with one name, the later numbered."""
    keys: list[str] = []
    for column in table.columns:
        own = key = column.key or column.name.replace(" ", "_")
        count = 1
        while key in keys:
            count += 1
            key = f"{own}_{count}"
        keys.append(key)
    return keys


def to_markdown(table: Table) -> str:
    """Write a table as GitHub and others show it, the best of a column in bold."""
    lines = [escape_markdown(table.caption), ""] if table.caption else []
    lines.append(_markdown_row(escape_markdown(table.columns[at].name) for at in table.shown))
    lines.append(_markdown_row("---:" if table.numeric(at) else "---" for at in table.shown))
    for texts, bold in zip(table.texts(), _bold(table), strict=True):
        cells = map(escape_markdown, texts)
        lines.append(
            _markdown_row(
                f"**{cell}**" if at in bold else cell
                for at, cell in zip(table.shown, cells, strict=True)
            )
        )
    return "\n".join(lines) + "\n"


def _markdown_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _bold(table: Table) -> list[set[int]]:
    """Return for each row the columns of which it has the best; the footer's rows have none."""
    best = table.best()
    rows = [{at for at, value in best.items() if _rank(row[at]) == value} for row in table.rows]
    return rows + [set() for _ in table.footer]


def escape_markdown(text: str) -> str:
    """Escape what Markdown, or HTML within it, gives a meaning to."""
    return _MARKDOWN.sub(r"\\\1", printable(text))


def to_latex(table: Table) -> str:
    """Write a table for LaTeX with the package booktabs, the best of a column in bold."""
    alignment = "".join("r" if table.numeric(at) else "l" for at in table.shown)
    rows = [
        _latex_row(_latex_cell(table, row, at, MISSING, bold=at in bold) for at in table.shown)
        for row, bold in zip(table.rows, _bold(table), strict=False)
    ]
    footer = [
        _latex_row(_latex_cell(table, row, at, "") for at in table.shown) for row in table.footer
    ]
    lines = [
        r"\begin{table}",
        r"\centering",
        *([rf"\caption{{{escape_latex(table.caption)}}}"] if table.caption else []),
        rf"\begin{{tabular}}{{{alignment}}}",
        r"\toprule",
        _latex_row(escape_latex(table.columns[at].name) for at in table.shown),
        r"\midrule",
        *rows,
        *([r"\midrule", *footer] if footer else []),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _latex_row(cells: Iterable[str]) -> str:
    return rf"{' & '.join(cells)} \\"


def _latex_cell(
    table: Table, row: Sequence[Cell], at: int, missing: str, *, bold: bool = False
) -> str:
    value, show = row[at], _present(table.columns[at].show)
    if isinstance(value, Compound):
        math_mode = value.latex(lambda part: _latex_number(show(part)))
    elif isinstance(value, int | float) and _NUMBER.fullmatch(show(value)):
        math_mode = _latex_number(show(value))
    else:
        return escape_latex(table.text(row, at, missing))
    return rf"$\mathbf{{{math_mode}}}$" if bold else f"${math_mode}$"


def _latex_number(shown: str) -> str:
    """Return a number for math mode, and anything else as text within it."""
    if not _NUMBER.fullmatch(shown):
        return rf"\mbox{{{escape_latex(shown)}}}"
    number, exponent, power = shown.replace(",", "{,}").partition("e")
    return rf"{number} \cdot 10^{{{power.lstrip('+')}}}" if exponent else number


def escape_latex(text: str) -> str:
    """Escape every character that LaTeX gives a meaning to, and those that it would join."""
    escaped = "".join(_LATEX.get(character, character) for character in printable(text))
    return re.sub("(-(?=-)|'(?='))", r"\1{}", escaped)


# What --format takes besides a table for people.
WRITERS: Mapping[str, Callable[[Table], str]] = {
    "csv": to_csv,
    "json": to_json,
    "latex": to_latex,
    "markdown": to_markdown,
}

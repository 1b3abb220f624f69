"""How a table is laid out for people: within a terminal's width, or plainly for a pipe or a file.

A table that is too wide has its sentences wrapped between words. If that is not enough, a table of
figures is transposed, or split into blocks of columns with the labels repeated. If even that is too
wide, or there are sentences, each row is a list. Where a row is a name and a sentence, long words
are broken instead. Nothing is cut off.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from .tables import Table
from .text import printable

# Width in a pipe or a file; figures are not wrapped and may make a line wider.
PLAIN_WIDTH = 120

# Columns of sentences are not made narrower than this, and no terminal is taken to be.
_NARROWEST = 20

_GAP = "  "

# Width of the label that a note starts with.
_LABEL = 11


class Line(NamedTuple):
    """A line of text, and whether it is a heading."""

    text: str
    heading: bool = False


def fold_note(text: str, width: int) -> str:
    """Wrap a note between words, its further lines below what follows its label.

    Args:
        text: Such as `cache      pacs`.
        width: Of the terminal, in cells. A path or another word that is wider stays whole.
    """
    if _cells(text) <= width:
        return text
    label = re.match(r"\S* +", text)
    indent = label.end() if label and label.end() == _LABEL else 0
    lines = [text[:indent]]
    for word in text[indent:].split(" "):
        first = not lines[-1].strip() or len(lines[-1]) == indent
        joined = lines[-1] + ("" if first else " ") + word
        if first or _cells(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(" " * indent + word)
    return "\n".join(lines)


def lay_out(table: Table, width: int | None = None, rule: str = "─") -> list[Line]:
    """Lay out a table.

    Args:
        table: What to show.
        width: Of the terminal, in cells; no line is wider, unless the terminal is narrower than
            20. None for a pipe or a file, where each row stays one and only sentences are wrapped.
        rule: Character of the lines below the headings.
    """
    grid = _Grid.of(table, rule)
    most = PLAIN_WIDTH if width is None else max(width, _NARROWEST)
    caption = [Line(text) for text in _fold(printable(table.caption), most)]
    if width is None:
        return [*caption, *grid.lines(grid.narrowed(most))]
    blocks = [grid] if grid.fits(most) else _divided(grid, most, max(table.labels, 1))
    lines = []
    for block in blocks:
        lines += [Line(""), *block.lines(block.narrowed(most))]
    return [*caption, *lines[1:]]


def _divided(grid: _Grid, width: int, labels: int) -> list[_Grid]:
    """Divide a grid that is too wide into ones that fit."""
    room = width - len(_GAP) - grid.widths()[0]
    if [*grid.wraps] == [False, True] and room >= _NARROWEST:
        return [replace(grid, most=(width, room))]
    if not any(grid.wraps):
        turned = grid.transposed() if labels == 1 else grid
        if turned.fits(width):
            return [turned]
        blocks = _blocks(grid, width, labels)
        if 0 < 2 * len(blocks) <= len(grid.headings):
            return blocks
    return [grid.list_of(row, width) for row in range(len(grid.rows))]


def _blocks(grid: _Grid, width: int, labels: int) -> list[_Grid]:
    """Divide a grid's columns into blocks that fit; nothing if labels leave no room for them."""
    first = [*range(labels)]
    together: list[list[int]] = []
    for at in range(labels, len(grid.headings)):
        if together and grid.joined[at]:
            together[-1].append(at)
        else:
            together.append([at])
    blocks: list[list[int]] = []
    for columns in together:
        if blocks and grid.of_columns([*blocks[-1], *columns]).fits(width):
            blocks[-1] += columns
        else:
            blocks.append([*first, *columns])
    parts = [grid.of_columns(columns).without_blanks(labels, grid) for columns in blocks]
    return parts if all(each.fits(width) for each in parts) else []


@dataclass(frozen=True)
class _Grid:
    """Headings and cells as text.

    Attributes:
        right: Whether each column is aligned to the right.
        wraps: Whether each column's cells may be wrapped.
        joined: Whether each column stays beside the one before it.
        ruled: Number of the row that has a line above it, if any.
        rule: Character of lines.
        most: Largest width of each column; empty if they depend on what is in them.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: Sequence[bool]
    wraps: Sequence[bool]
    joined: Sequence[bool] = ()
    ruled: int | None = None
    rule: str = ""
    most: Sequence[int] = ()

    @classmethod
    def of(cls, table: Table, rule: str) -> _Grid:
        shown = table.shown
        return cls(
            headings=[printable(table.columns[at].name) for at in shown],
            rows=table.texts(),
            right=[table.numeric(at) for at in shown],
            wraps=[table.columns[at].wraps for at in shown],
            joined=[table.columns[at].joined for at in shown],
            ruled=len(table.rows) if table.footer else None,
            rule=rule,
        )

    def of_columns(self, columns: Sequence[int]) -> _Grid:
        return replace(
            self,
            headings=[self.headings[at] for at in columns],
            rows=[[row[at] for at in columns] for row in self.rows],
            right=[self.right[at] for at in columns],
            wraps=[self.wraps[at] for at in columns],
        )

    def without_blanks(self, labels: int, whole: _Grid) -> _Grid:
        """Leave out rows of the footer of which other parts of `whole` have the figures."""
        ruled = len(self.rows) if self.ruled is None else self.ruled
        footer = [
            own
            for own, row in zip(self.rows[ruled:], whole.rows[ruled:], strict=True)
            if any(own[labels:]) or not any(row[labels:])
        ]
        return replace(self, rows=[*self.rows[:ruled], *footer])

    def transposed(self) -> _Grid:
        """Turn columns into rows; the first column becomes the headings."""
        headings, *rows = zip(self.headings, *self.rows, strict=True)
        numbers = [False, *[True] * len(self.rows)]
        return _Grid(headings, rows, numbers, [False] * len(headings), rule=self.rule)

    def list_of(self, row: int, width: int) -> _Grid:
        """Turn a row into a list with a heading and its cell on each line."""
        pairs = [*zip(self.headings, self.rows[row], strict=True)]
        longest = max(_cells(heading) for heading in self.headings)
        first = min(longest, (width - len(_GAP)) // 2)
        most = (first, width - len(_GAP) - first)
        return _Grid((), pairs, (False, False), (True, True), most=most)

    def widths(self) -> list[int]:
        """Return each column's width if nothing is wrapped."""
        lines = [self.headings, *self.rows] if self.headings else self.rows
        return [max(_each_cells(column)) for column in zip(*lines, strict=True)]

    def narrowed(self, width: int) -> list[int]:
        """Return each column's width, sentences wrapped as far as their longest words allow."""
        if self.most:
            return [min(pair) for pair in zip(self.widths(), self.most, strict=True)]
        widths = self.widths()
        floors = [self._floor(at, own) for at, own in enumerate(widths)]
        while (excess := _total(widths) - width) > 0:
            able = [at for at, own in enumerate(widths) if own > floors[at]]
            if not able:
                break
            widest = max(able, key=lambda at: widths[at])
            others = [widths[at] for at in able if at != widest]
            step = max(1, widths[widest] - max(others, default=0))
            widths[widest] -= min(excess, step, widths[widest] - floors[widest])
        return widths

    def _floor(self, at: int, width: int) -> int:
        if not self.wraps[at]:
            return width
        texts = [self.headings[at], *(row[at] for row in self.rows)]
        longest = max((_cells(word) for text in texts for word in text.split(" ")), default=0)
        return min(width, max(longest, _NARROWEST))

    def fits(self, width: int) -> bool:
        return _total(self.narrowed(width)) <= width

    def lines(self, widths: Sequence[int]) -> Iterator[Line]:
        """Yield the lines, none of which ends with spaces."""
        if self.headings:
            for text in self._row(self.headings, widths):
                yield Line(text, heading=True)
            yield Line(self.rule * _total(widths))
        for number, row in enumerate(self.rows):
            if number == self.ruled:
                yield Line(self.rule * _total(widths))
            for text in self._row(row, widths):
                yield Line(text)

    def _row(self, cells: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
        if all(map(operator.le, _each_cells(cells), widths)):  # nothing to wrap
            yield _GAP.join(map(_pad, cells, widths, self.right)).rstrip(" ")
            return
        folded = [_fold(cell, width) for cell, width in zip(cells, widths, strict=True)]
        for number in range(max(map(len, folded))):
            texts = [lines[number] if number < len(lines) else "" for lines in folded]
            padded = map(_pad, texts, widths, self.right)
            yield _GAP.join(padded).rstrip(" ")


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(_GAP) * (len(widths) - 1)


def _pad(text: str, width: int, right: bool) -> str:
    if text.isascii():
        return text.rjust(width) if right else text.ljust(width)
    space = " " * (width - _cells(text))
    return space + text if right else text + space


def _cells(text: str) -> int:
    """Return how wide a terminal shows a text; letters of East Asian scripts take two cells."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def _each_cells(texts: Sequence[str]) -> list[int]:
    """Return how wide a terminal shows each of many texts, fast if none needs to be looked at."""
    if "".join(texts).isascii():
        return [len(text) for text in texts]
    return [_cells(text) for text in texts]


def _fold(text: str, width: int) -> list[str]:
    """Wrap a text between words; only a word wider than a line is broken."""
    if _cells(text) <= width:
        return [text] if text else []
    from rich.cells import chop_cells

    lines: list[str] = []
    for word in text.split(" "):
        if lines and _cells(lines[-1]) + 1 + _cells(word) <= width:
            lines[-1] += f" {word}"
        else:
            lines += chop_cells(word, width) if _cells(word) > width else [word]
    return lines

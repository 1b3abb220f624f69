"""How notes, warnings and progress are shown on a terminal or in a log file.

Modules log notes (INFO) and warnings to `logging.getLogger(__name__)`, and work that can report
its progress takes a `Progress` callback. Nothing is shown unless `show_progress` is active.
"""

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any, Protocol, TextIO

from rich import progress as bars
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
)
from rich.text import Text

from .text import duration, printable

# Parent of all modules' loggers.
PACKAGE = __name__.partition(".")[0]

SECONDS_BETWEEN_LINES = 5.0
SECONDS_BETWEEN_BARS = 0.1

# In place of the total of a stream, until that is over.
UNKNOWN = -1

# Number of lines of one kind that are shown.
LINES_SHOWN = 10


class Progress(Protocol):
    """Called as work proceeds: `done` of `total` units of `task` are finished.

    `total` may be `UNKNOWN`.
    """

    def __call__(self, task: str, done: int, total: int, unit: str, detail: str = "") -> None:
        """Show the new count, followed by `detail`."""


def no_progress(task: str, done: int, total: int, unit: str, detail: str = "") -> None:
    """Show nothing: the default of everything that takes a `Progress`."""


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(_rate(task.finished_speed or task.speed, task.fields["unit"]))


def _rate(speed: float | None, unit: str) -> str:
    return f"{speed:.1f} {unit}/s" if speed else ""


def _count(done: int, total: int) -> str:
    return str(done) if total == UNKNOWN else f"{done}/{total}"


class _Left(ProgressColumn):
    max_refresh = 0.5  # seconds, as it would flicker

    def render(self, task: Task) -> Text:
        left = task.time_remaining
        return Text("" if left is None or task.finished else duration(left))


class Bars:
    """Progress bars on a terminal, one per task."""

    def __init__(self, console: Console, progress: bars.Progress) -> None:
        self._console = console
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def note(self, text: str) -> None:
        """Print a line above the bars."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Print a line above the bars, marked as a warning."""
        self._console.print(
            f"warning: {text}",
            style="yellow",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )

    def __call__(self, task: str, done: int, total: int, unit: str, detail: str = "") -> None:
        """Move the task's bar."""
        most = None if total == UNKNOWN else total
        if task not in self._tasks:
            self._tasks[task] = self._progress.add_task(task, total=most, unit=unit, detail="")
        self._progress.update(self._tasks[task], completed=done, total=most, detail=detail)


@dataclass
class _Clock:
    started: float
    shown: float
    done: int  # before it started


class Lines:
    """Plain lines for a log file: the first, the last and one every few seconds."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._clocks: dict[str, _Clock] = {}

    def note(self, text: str) -> None:
        """Write a line."""
        print(text, file=self._stream, flush=True)

    def warn(self, text: str) -> None:
        """Write a line, marked as a warning."""
        self.note(f"warning: {text}")

    def __call__(self, task: str, done: int, total: int, unit: str, detail: str = "") -> None:
        """Write a line if one is due."""
        now = time.monotonic()
        first = task not in self._clocks
        clock = self._clocks.setdefault(task, _Clock(now, now, done))
        over = done >= total != UNKNOWN
        if not first and not over and now - clock.shown < SECONDS_BETWEEN_LINES:
            return
        clock.shown = now
        elapsed = now - clock.started
        speed = (done - clock.done) / elapsed if elapsed else None
        left = f"ETA {duration((total - done) / speed)}" if speed and done < total else ""
        facts = [f"{task}: {_count(done, total)} {unit}", _rate(speed, unit), left, detail]
        self.note(", ".join(fact for fact in facts if fact))


class Cells(Lines):
    """Progress bars in the output of a notebook's cell, and lines for all else."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._handle: Any = None
        self._tasks: dict[str, str] = {}
        self._shown = 0.0

    def __call__(self, task: str, done: int, total: int, unit: str, detail: str = "") -> None:
        """Move the task's bar, at most ten times a second."""
        from IPython import display

        shown = f"{task} {_count(done, total)} {unit}" + (f", {detail}" if detail else "")
        place = "" if total == UNKNOWN else f" max={max(total, 1)} value={done}"
        self._tasks[task] = f"<div><progress{place}></progress> {escape(shown)}</div>"
        now, over = time.monotonic(), done >= total != UNKNOWN
        if self._handle is not None and not over and now - self._shown < SECONDS_BETWEEN_BARS:
            return
        self._shown = now
        bars = display.HTML("".join(self._tasks.values()))
        if self._handle is None:
            self._handle = display.display(bars, display_id=True)
        else:
            self._handle.update(bars)


def _in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


class _Handler(logging.Handler):
    """Passes log records on to the display."""

    def __init__(self, display: Bars | Lines) -> None:
        super().__init__()
        self._display = display

    def emit(self, record: logging.LogRecord) -> None:
        """Show a record as a warning or a note."""
        show = self._display.warn if record.levelno >= logging.WARNING else self._display.note
        show(printable(record.getMessage()))


@contextmanager
def show_progress(stream: TextIO | None = None) -> Iterator[Progress]:
    """Show the package's notes, warnings and progress while the context is active.

    Args:
        stream: Output stream; standard error by default. A terminal or a notebook shows bars,
            anything else plain lines.
    """
    if stream is None and _in_notebook():
        cells = Cells(sys.stderr)
        with _logged(cells):
            yield cells
        return
    stream = stream or sys.stderr
    console = Console(file=stream)
    if not console.is_terminal:
        lines = Lines(stream)
        with _logged(lines):
            yield lines
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        _Left(),
        TextColumn("{task.fields[detail]}", markup=False),
    )
    with bars.Progress(*columns, console=console) as progress:
        display = Bars(console, progress)
        with _logged(display):
            yield display


@contextmanager
def showing(wanted: bool) -> Iterator[Progress]:
    """Show the package's notes, warnings and progress if `wanted`."""
    if not wanted:
        yield no_progress
        return
    with show_progress() as progress:
        yield progress


@contextmanager
def _logged(display: Bars | Lines) -> Iterator[None]:
    logger, handler = logging.getLogger(PACKAGE), _Handler(display)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def first_of(lines: Sequence[str], rest: Callable[[int], str]) -> list[str]:
    """Return the first lines, then what `rest` makes of the number of the others."""
    more = len(lines) - LINES_SHOWN
    return [*lines[:LINES_SHOWN], *([rest(more)] if more > 0 else [])]

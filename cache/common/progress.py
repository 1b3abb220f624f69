"""How long work tells of itself, and how a terminal or a log shows it."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

SECONDS_BETWEEN_LINES = 5.0

# Of many lines of one kind, those that are told.
LINES_SHOWN = 10


class Report(Protocol):
    """Takes what there is to tell."""

    def note(self, text: str) -> None:
        """Tell one line of what is being done."""

    def warn(self, text: str) -> None:
        """Tell one line of what the user should look at."""

    def progress(self, task: str, done: int, total: int, unit: str, detail: str = "") -> None:
        """Tell that `done` of `total` units of `task` are done."""


class Silence:
    """Tells nothing, for one of many processes."""

    def note(self, text: str) -> None:
        """Tell nothing."""

    def warn(self, text: str) -> None:
        """Tell nothing."""

    def progress(self, task: str, done: int, total: int, unit: str, detail: str = "") -> None:
        """Tell nothing."""


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(_rate(task.finished_speed or task.speed, task.fields["unit"]))


def _rate(speed: float | None, unit: str) -> str:
    return f"{speed:.1f} {unit}/s" if speed else ""


class BarReport:
    """Shows bars on a terminal, a line for each task."""

    def __init__(self, console: Console, progress: Progress) -> None:
        self._console = console
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def note(self, text: str) -> None:
        """Print a line above the bars."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Print a line above the bars, marked."""
        self._console.print(
            f"warning: {text}",
            style="yellow",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )

    def progress(self, task: str, done: int, total: int, unit: str, detail: str = "") -> None:
        """Move the task's bar."""
        if task not in self._tasks:
            self._tasks[task] = self._progress.add_task(task, total=total, unit=unit, detail="")
        self._progress.update(self._tasks[task], completed=done, total=total, detail=detail)


@dataclass
class _Clock:
    begun: float
    shown: float
    done: int  # before it began


class LineReport:
    """Writes plain lines, for a log: the first, the last and one every few seconds."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._clocks: dict[str, _Clock] = {}

    def note(self, text: str) -> None:
        """Write a line."""
        print(text, file=self._stream, flush=True)

    def warn(self, text: str) -> None:
        """Write a line, marked."""
        self.note(f"warning: {text}")

    def progress(self, task: str, done: int, total: int, unit: str, detail: str = "") -> None:
        """Write a line if it is time to."""
        now = time.monotonic()
        first = task not in self._clocks
        clock = self._clocks.setdefault(task, _Clock(now, now, done))
        if not first and done < total and now - clock.shown < SECONDS_BETWEEN_LINES:
            return
        clock.shown = now
        elapsed = now - clock.begun
        speed = (done - clock.done) / elapsed if elapsed else None
        left = f"ETA {(total - done) / speed:.0f} s" if speed and done < total else ""
        facts = [f"{task}: {done}/{total} {unit}", _rate(speed, unit), left, detail]
        self.note(", ".join(fact for fact in facts if fact))


@contextmanager
def open_report(stream: TextIO | None = None) -> Iterator[Report]:
    """Open bars if `stream`, by default standard error, is a terminal, else plain lines."""
    stream = stream or sys.stderr
    console = Console(file=stream)
    if not console.is_terminal:
        yield LineReport(stream)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
    )
    with Progress(*columns, console=console) as progress:
        yield BarReport(console, progress)


def first_of(lines: Sequence[str], rest: str) -> list[str]:
    """Keep the first of many lines; `rest` says of the others what they are, by ``{}`` how many."""
    more = len(lines) - LINES_SHOWN
    return [*lines[:LINES_SHOWN], *([rest.format(more)] if more > 0 else [])]

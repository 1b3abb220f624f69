"""What long work tells of itself."""

import io
import logging
import re
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from rich.console import Console
from rich.progress import Progress, TextColumn

from fedclip.cache.common import progress as report
from fedclip.cache.common.progress import UNKNOWN, Bars, Lines, show_progress

logger = logging.getLogger("fedclip.tests")


@dataclass
class Clock:
    """A clock that goes when it is told to."""

    now: float = 100.0

    def monotonic(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Give the clock that reports go by."""
    clock = Clock()
    monkeypatch.setattr(report, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


@pytest.fixture
def stream() -> io.StringIO:
    """Give what a log is written to."""
    return io.StringIO()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Give a terminal of 120 columns, whatever the environment says of this one."""
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    return Terminal()


def text_of(stream: io.StringIO) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())


def test_a_log_has_the_first_line_the_last_and_one_every_five_seconds(
    clock: Clock, stream: io.StringIO
) -> None:
    log = Lines(stream)
    for done in range(0, 13):
        log("photo", 10 * done, 120, "images")
        clock.now += 1
    assert stream.getvalue().splitlines() == [
        "photo: 0/120 images",
        "photo: 50/120 images, 10.0 images/s, ETA 7 s",
        "photo: 100/120 images, 10.0 images/s, ETA 2 s",
        "photo: 120/120 images, 10.0 images/s",
    ]


def test_a_log_without_a_total_counts_and_ends_with_the_total(
    clock: Clock, stream: io.StringIO
) -> None:
    log = Lines(stream)
    for done in range(1, 8):
        log("images", 10 * done, UNKNOWN, "images")
        clock.now += 1
    log("images", 70, 70, "images")
    assert stream.getvalue().splitlines() == [
        "images: 10 images",
        "images: 60 images, 10.0 images/s",
        "images: 70/70 images, 8.6 images/s",
    ]


def test_a_log_line_ends_with_its_detail(clock: Clock, stream: io.StringIO) -> None:
    log = Lines(stream)
    log("photo", 0, 30, "images")
    clock.now += 8
    log("photo", 20, 30, "images", "2 skipped")
    assert stream.getvalue().splitlines()[-1] == (
        "photo: 20/30 images, 2.5 images/s, ETA 4 s, 2 skipped"
    )


def test_work_that_takes_no_time_has_no_rate(clock: Clock, stream: io.StringIO) -> None:
    log = Lines(stream)
    log("photo", 3, 3, "images")
    assert (stream.getvalue(), clock.now) == ("photo: 3/3 images\n", 100.0)


def test_work_with_nothing_to_do_is_told_once(clock: Clock, stream: io.StringIO) -> None:
    Lines(stream)("photo", 0, 0, "images")
    assert (stream.getvalue(), clock.now) == ("photo: 0/0 images\n", 100.0)


def test_every_task_has_its_own_clock(clock: Clock, stream: io.StringIO) -> None:
    log = Lines(stream)
    log("photo", 0, 10, "images")
    clock.now += 10
    log("photo", 10, 10, "images")
    log("sketch", 0, 40, "rounds")
    clock.now += 10
    log("sketch", 20, 40, "rounds")
    assert "photo: 10/10 images, 1.0 images/s" in stream.getvalue().splitlines()
    assert stream.getvalue().splitlines()[-1] == "sketch: 20/40 rounds, 2.0 rounds/s, ETA 10 s"


def test_what_was_done_before_counts_for_no_speed(clock: Clock, stream: io.StringIO) -> None:
    log = Lines(stream)
    log("photo", 80, 100, "rounds")
    clock.now += 5
    log("photo", 90, 100, "rounds")
    assert stream.getvalue().splitlines() == [
        "photo: 80/100 rounds",
        "photo: 90/100 rounds, 2.0 rounds/s, ETA 5 s",
    ]


def test_a_log_has_notes_and_warnings_as_they_are(stream: io.StringIO) -> None:
    log = Lines(stream)
    log.note("[red]images[/red] below /data")
    log.warn("sketch has 3 rows")
    assert stream.getvalue() == "[red]images[/red] below /data\nwarning: sketch has 3 rows\n"


def test_bars_show_how_far_each_task_is() -> None:
    stream = io.StringIO()
    console = Console(force_terminal=True, file=stream, width=100)
    columns = "{task.description}|{task.completed}|{task.total}|{task.fields[unit]}|"
    progress = Progress(
        TextColumn(columns + "{task.fields[detail]}"), console=console, auto_refresh=False
    )
    with progress:
        bars = Bars(console, progress)
        bars("photo", 0, 20, "images")
        bars("sketch", 4, 10, "images")
        bars("photo", 15, 20, "images", "2 skipped")
    assert [task.description for task in progress.tasks] == ["photo", "sketch"]
    assert "photo|15|20|images|2 skipped" in text_of(stream)
    assert "sketch|4|10|images|" in text_of(stream)


def test_a_terminal_gets_bars_with_rates(
    terminal: Terminal, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rich.console.monotonic", clock.monotonic)
    with show_progress(terminal) as bars:
        assert isinstance(bars, Bars)
        bars("[photo]", 10, 30, "images")
        clock.now += 4
        bars("[photo]", 30, 30, "images", "[2] skipped")
    last = text_of(terminal).splitlines()[-1]
    assert re.fullmatch(r"\[photo\] ━+ 30/30 5\.0 images/s  \[2\] skipped *", last)


def test_a_terminal_gets_long_notes_and_warnings_as_they_are(terminal: Terminal) -> None:
    long = "[bold]x[/bold] " * 20
    with show_progress(terminal):
        logger.info("%s", long)
        logger.warning("[2] %s", long)
    lines = text_of(terminal).splitlines()
    assert long in lines
    assert f"warning: [2] {long}" in lines


def test_anything_but_a_terminal_gets_lines(stream: io.StringIO) -> None:
    with show_progress(stream) as log:
        assert isinstance(log, Lines)
        logger.info("told")
    assert stream.getvalue() == "told\n"


def test_notes_go_to_standard_error_as_it_is_now(capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress():
        logger.info("told")
    assert capsys.readouterr() == ("", "told\n")


def test_nothing_is_shown_outside_the_context(stream: io.StringIO) -> None:
    before = list(logging.getLogger("fedclip").handlers)
    with show_progress(stream):
        pass
    logger.info("too late")
    assert stream.getvalue() == ""
    assert logging.getLogger("fedclip").handlers == before

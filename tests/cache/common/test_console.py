"""What commands print, and where to."""

import json
import sys
from io import BytesIO, StringIO, TextIOWrapper

import pytest
from rich.console import Console

from fedclip.cache.common.console import Output, show_table
from fedclip.cache.common.tables import WRITERS, Column, Table

TABLE = Table([Column("name"), Column("rows")], [("東京", 12)], caption="what there is")


def test_a_terminal_gets_bold_headings_and_nothing_of_the_data_as_markup() -> None:
    stream = StringIO()
    console = Console(file=stream, force_terminal=True, width=80, color_system="standard")
    show_table(Table([Column("[red]a")], [(":smile: [b]c[/b] https://x.y 12",)]), console)
    assert stream.getvalue().splitlines() == [
        "\x1b[1m[red]a\x1b[0m",
        "─" * 31,
        ":smile: [b]c[/b] https://x.y 12",
    ]


def test_a_pipe_gets_plain_text(capsys: pytest.CaptureFixture[str]) -> None:
    Output("table").table(TABLE)
    assert capsys.readouterr().out.splitlines() == [
        "what there is",
        "name  rows",
        "──────────",
        "東京    12",
    ]


def test_a_stream_of_ascii_gets_the_rest_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = BytesIO()
    monkeypatch.setattr(sys, "stdout", TextIOWrapper(raw, encoding="ascii"))
    Output("table").table(TABLE)
    assert raw.getvalue().decode().splitlines()[2:] == ["----------", r"\u6771\u4eac    12"]


def test_notes_go_beside_a_table_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    Output("table").note("cache      demo")
    assert capsys.readouterr() == ("cache      demo\n", "")


@pytest.mark.parametrize("form", WRITERS)
def test_a_table_for_programs_is_alone_on_standard_output(
    form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = Output(form)
    output.note("cache      demo")
    output.table(TABLE)
    out, err = capsys.readouterr()
    assert err == "cache      demo\n"
    assert out == WRITERS[form](TABLE)


def test_json_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    Output("json").table(TABLE)
    assert json.loads(capsys.readouterr().out) == [{"name": "東京", "rows": 12}]

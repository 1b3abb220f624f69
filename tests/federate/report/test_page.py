"""The report as a reader sees it: in a browser, with any names, with few runs and with old ones."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from fedclip.cache import FeatureCache
from fedclip.cli import run

MakeCache = Callable[..., Path]
MakeFeatures = Callable[..., FeatureCache]
Refusal = Callable[..., str]
Page = Any

GOLDEN = Path(__file__).parents[2] / "golden"

RUN = ["federate", "--rounds", "3", "--preset", "tuned", "--lr", "1e-2"]

pytestmark = pytest.mark.usefixtures("empty_folder")


def assert_well(page: Page, path: Path) -> None:
    """Look at a report as on a phone and on a desktop, in light and in dark."""
    for width in (390, 1280):
        for scheme in ("light", "dark"):
            page.open(path, width, scheme)
            assert page.run("document.documentElement.scrollWidth") <= width
            charts = page.run("document.querySelectorAll('.chart').length")
            drawn = page.run("document.querySelectorAll('.chart > svg, .chart .marks').length")
            assert 0 < charts <= drawn
    assert page.problems == []
    outside = [each for each in page.requests if not each.startswith(("file:", "data:", "about:"))]
    assert outside == []


COLUMN = """
[...document.querySelectorAll('#all-settings tbody tr:not([hidden])')]
    .map((row) => row.cells[%d].dataset.v ?? row.cells[%d].textContent)
"""


def test_a_report_of_an_ablation_is_drawn_sorted_and_filtered(
    page: Page, make_cache: MakeCache
) -> None:
    make_cache({"art": 60, "photo": 70})
    grid = ["--set", "adapter=attention,linear,none", "--set", "lr=1e-3,1e-2,3e-2", "--seeds", "2"]
    assert run(["ablate", *grid, "--rounds", "2", "--preset", "tuned", "--csv", "grid.csv"]) == 0
    assert run(["report", "grid.csv"]) == 0
    assert_well(page, Path("report.html"))

    def column(number: int) -> list[str]:
        values = page.run(COLUMN % (number, number))
        assert isinstance(values, list)
        return values

    means = column(4)
    assert len(means) == 9
    assert sorted(means, key=float, reverse=True) == means
    heading = "document.querySelectorAll('#all-settings th button')"
    page.run(f"{heading}[1].click()")
    assert [float(each) for each in column(1)] == [0.001] * 3 + [0.01] * 3 + [0.03] * 3
    page.run(f"{heading}[4].click()")
    page.run(f"{heading}[4].click()")
    assert sorted(means, key=float) == column(4)
    page.run(
        "(() => { const box = document.querySelector('.tools[data-table=all-settings] input');"
        "box.value = 'linear 0.01'; box.dispatchEvent(new Event('input')); })()"
    )
    assert [column(0), column(1)] == [["linear"], ["0.01"]]
    shown = page.run("document.querySelector('.tools[data-table=all-settings] output').textContent")
    assert shown == "1 of 9"
    page.run(
        "(() => { const box = document.querySelector('select[data-option=\"0\"]');"
        "box.value = '1'; box.dispatchEvent(new Event('change')); })()"
    )
    texts = "[...document.querySelectorAll('#two-options svg text')].map((e) => e.textContent)"
    while {"attention", "linear"} & {*page.run(texts)} and "0.03" not in page.run(texts):
        pass
    assert page.problems == []


NAMES = (
    "<script>window.pwned = 1</script>",
    "</script><img src=x onerror='window.pwned = 1'>",
    "\u202egnp.tac\u200f",
    '"; window.pwned = 1; //\u2028',
    "x" * 200,
)


def test_names_with_markup_are_text_everywhere(
    page: Page, make_cache: MakeCache, make_features: MakeFeatures
) -> None:
    caches = [
        make_features(
            client,
            60,
            classes=NAMES,
            ids=tuple(f"{NAMES[index % 5]}{index}" for index in range(60)),
        )
        for client in ("art", "p" * 150)
    ]
    make_cache(caches)
    assert run([*RUN, "--target", "art"]) == 0
    assert run([*RUN, "--target", "art", "--adapter", "linear"]) == 0
    assert run(["report"]) == 0
    assert_well(page, Path("report.html"))
    assert page.run("window.pwned") is None
    assert page.run("document.querySelectorAll('img').length") == 0
    text = page.run("document.body.innerText")
    assert "<script>window.pwned = 1</script>" in text
    assert "\\u202egnp.tac\\u200f" in text
    assert "\u202e" not in Path("report.html").read_text()
    assert run(["show", next(Path("runs").iterdir()).name]) == 0


class Scripts(HTMLParser):
    """Collects the scripts of a page as a browser would."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._inside = False

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._inside = tag == "script"
        if self._inside:
            self.found.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.found[-1] += data


def test_the_data_in_a_page_is_json_whatever_the_names(
    make_cache: MakeCache, make_features: MakeFeatures
) -> None:
    make_cache([make_features("art", 60, classes=NAMES)])
    assert run(RUN) == 0
    assert run(["report", "--out", "deep/one.html"]) == 0
    scripts = Scripts()
    scripts.feed(Path("deep/one.html").read_text())
    assert len(scripts.found) == 4
    charts = json.loads(scripts.found[0])["charts"]
    classes = {row["right"] for row in charts["confusion-after"]["data"]["values"]}
    assert NAMES[0] in classes
    assert "\\u202egnp.tac\\u200f" in classes


def test_a_page_names_no_address_that_a_browser_would_load() -> None:
    shutil.copytree(GOLDEN / "runs" / "golden-f86c2b6e-seed3", "runs/golden-f86c2b6e-seed3")
    assert run(["report"]) == 0
    text = re.sub(r"<script>.*?</script>", "", Path("report.html").read_text(), flags=re.DOTALL)
    assert not re.search(r'(src|href)="(?!#|data:)', text)
    assert "default-src 'none'" in text


def test_a_report_of_all_runs_says_how_many_they_are_and_from_where(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("golden-f86c2b6e-seed3", "golden-2107be8e-seed3"):
        shutil.copytree(GOLDEN / "runs" / name, Path("runs") / name)
    capsys.readouterr()
    all_runs = "runs       2 runs, all in runs; name some to report on these alone\n"
    assert run(["report"]) == 0
    assert capsys.readouterr().out == f"report     report.html\n{all_runs}"
    assert run(["report", "--figures", "figures"]) == 0
    assert capsys.readouterr().out.endswith(f".pdf\n{all_runs}")
    assert run(["report", "golden-f86c2b6e-seed3"]) == 0
    assert capsys.readouterr().out == "report     report.html\n"


def test_old_runs_are_shown_without_what_they_lack(page: Page) -> None:
    shutil.copytree(GOLDEN / "runs", "runs")
    assert run(["report"]) == 0
    assert_well(page, Path("report.html"))
    text = page.run("document.body.innerText")
    assert "no kept predictions" in text
    assert "is not where it was" in text
    assert run(["report", "--cache-dir", str(GOLDEN / "caches")]) == 0
    page.open(Path("report.html"), 1280)
    assert "Features by domain" in page.run("document.body.innerText")


def test_a_report_without_zero_shot_says_so(page: Page, make_cache: MakeCache) -> None:
    make_cache({"art": 60, "photo": 70})
    assert run([*RUN, "--target", "photo", "--class-vectors", "means"]) == 0
    assert run(["report"]) == 0
    assert_well(page, Path("report.html"))
    text = page.run("document.body.innerText")
    assert "Without class texts it has no zero-shot accuracy." in text
    assert "Without zero-shot there is nothing to compare with." in text


def test_a_report_reads_no_pipe_and_no_config_of_another_form() -> None:
    shutil.copytree(GOLDEN / "runs" / "golden-2107be8e-seed3", "runs/one")
    config = json.loads(Path("runs/one/config.json").read_text())
    config |= {"cache": {"name": 5, "clients": 3, "key": []}, "versions": [], "preset": {}}
    Path("runs/one/config.json").write_text(json.dumps(config))
    Path("runs/one/rounds.jsonl").unlink()
    os.mkfifo("runs/one/rounds.jsonl")
    assert run(["report", "one"]) == 0
    Path("runs/one/rounds.jsonl").unlink()
    line = '{"round": 1, "bytes_up": 1, "bytes_down": 1, "test": {"art": 1e999}}'
    Path("runs/one/rounds.jsonl").write_text(line)
    assert run(["report", "one"]) == 0


def test_figures_are_written_as_svg_and_pdf(make_cache: MakeCache) -> None:
    make_cache({"art": 60, "photo": 70})
    assert run([*RUN, "--target", "photo"]) == 0
    assert run(["report", "--figures", "figures"]) == 0
    names = {path.name for path in Path("figures").iterdir()}
    for name in (
        *("accuracy-over-rounds", "accuracy-against-bytes", "confusion-before", "attention"),
        *("confusion-after", "calibration", "class-gains", "features-by-domain"),
    ):
        assert {f"{name}.svg", f"{name}.pdf"} <= names
        svg = (Path("figures") / f"{name}.svg").read_text()
        assert svg.startswith("<svg")
        assert "var(--" not in svg
        assert (Path("figures") / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    assert not Path("report.html").exists()


def test_without_the_extra_the_error_names_it() -> None:
    code = """
import sys
sys.modules["vl_convert"] = None
from fedclip.cli import run
sys.exit(run(["report"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=1800, check=False
    )
    assert done.returncode == 2
    assert done.stderr == (
        "error: fedclip report and .plot(): needs vl_convert, which is not installed; run "
        "'pip install fedclip[report]'\n"
    )


def test_what_cannot_be_shown_is_refused(refusal: Refusal) -> None:
    assert "no runs in runs" in refusal("report")
    Path("runs").mkdir()
    Path("other.csv").write_text("a,b\n1,2\n")
    assert "other.csv: is not the table of an ablation" in refusal("report", "other.csv")
    Path("bad.csv").write_text("run,status\n../../etc,finished\n")
    assert "'../../etc' is not the name of a run" in refusal("report", "bad.csv")
    assert "unknown run 'nothing' in runs" in refusal("report", "nothing")
    shutil.copytree(GOLDEN / "runs" / "fedavg-killed", "runs/fedavg-killed")
    assert "has no result yet" in refusal("report", "fedavg-killed")

"""README.md and docs/: their commands are parsed, and those on the demo run as they stand there."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from fedclip.cli import app, run

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]

# Pages of which every block runs, in order, after the demo. A block marked `sh network` needs one.
RUN_WHOLE = [page for page in PAGES if page.parent.parent == ROOT / "docs"]

# Where a command ends for the shell.
OPERATORS = re.compile(r"[|<>]|&&")

# Made by a command of the page itself, whose own test runs it.
OWN_METHODS = "extend.md"


def blocks(page: Path, language: str = "sh") -> list[str]:
    """List the blocks of a page whose first line is `language`, a regular expression."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands() -> Iterator[tuple[str, list[str]]]:
    """Yield every command line of the pages with the name of its page."""
    for page in PAGES:
        for block in blocks(page, "sh(?: network)?") if page.name != OWN_METHODS else ():
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(OPERATORS.split(line)[0], comments=True)
                if words and words[0] == "fedclip":
                    yield page.name, words[1:]


# A program that a page shows and then runs.
SAVED = re.compile(r"```python\n((?:(?!```).)*)```\s+Save this as `(\w+\.py)`", re.DOTALL)

COMMANDS = list(commands())

# Those on the demo's features, which the README says may be copied as they are.
ON_THE_DEMO = [
    words
    for page, words in COMMANDS
    if page == "README.md" and words[0] in ("federate", "ablate") and "demo" in words
]


def parsed(group: Any, words: list[str]) -> Any:
    """Parse a command line down to the command that would run."""
    command = group.commands[words[0]]
    if hasattr(command, "commands"):
        return parsed(command, words[1:])
    return command.make_context(words[0], words[1:])


@pytest.fixture(scope="module")
def clone(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Put the demo's images and features where a clone has them after the demo."""
    folder = tmp_path_factory.mktemp("copy") / "clone"
    shutil.copytree(demo_folder, folder)
    (folder / "extract").symlink_to(ROOT / "extract")
    return folder


def shortened(words: list[str]) -> list[str]:
    """Set one round, and nothing else, so that a test need not wait."""
    if "--rounds" in words:
        place = words.index("--rounds")
        words = [*words[:place], *words[place + 2 :]]
    return [*words, "--rounds", "1"]


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=lambda each: str(each)[:60])
def test_a_command_of_a_page_is_one_of_fedclip(page: str, words: list[str]) -> None:
    assert parsed(typer.main.get_command(app), words).args == []


@pytest.mark.parametrize("words", ON_THE_DEMO, ids=lambda words: " ".join(words)[:60])
def test_a_command_on_the_demo_runs(
    clone: Path, words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(clone)
    assert run([*shortened(words), "--runs-dir", str(tmp_path)]) == 0


def test_the_readme_has_such_commands() -> None:
    assert len(ON_THE_DEMO) >= 5


@pytest.mark.slow
def test_the_sites_of_the_readme_federate(clone: Path) -> None:
    (script,) = [block for block in blocks(ROOT / "README.md") if "--cache-dir site-a" in block]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    script = script.replace("--rounds 20", "--rounds 1")
    done = subprocess.run(
        ["bash", "-euc", script],
        cwd=clone,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr
    assert "domains    a, b: 600 rows" in done.stdout


def test_the_grid_of_the_formats_page_runs_on_the_demo(
    clone: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(clone)
    (grid,) = blocks(ROOT / "docs" / "formats.md", "toml")
    (tmp_path / "grid.toml").write_text(grid)
    options = ["--rounds", "1", "--seeds", "1", "--runs-dir", str(tmp_path)]
    assert run(["ablate", str(tmp_path / "grid.toml"), *options]) == 0
    assert len([*tmp_path.glob("*/config.json")]) == 4


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN_WHOLE, ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run_in_order(
    clone: Path, page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(clone)
    monkeypatch.setenv("FEDCLIP_RUNS_DIR", str(tmp_path))
    for code, name in SAVED.findall(page.read_text(encoding="utf-8")):
        (clone / name).write_text(code)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for line in "".join(blocks(page)).replace("\\\n", " ").splitlines():
        line = re.sub(r"--rounds \d+", "--rounds 1", re.sub(r"--seeds \d+", "--seeds 1", line))
        if line.startswith("fedclip ") and not OPERATORS.search(line):
            assert run(shlex.split(line, comments=True)[1:]) == 0, line
        else:
            subprocess.run(
                ["bash", "-euc", line],
                env={**os.environ, "PATH": path},
                check=True,
                timeout=1800,
            )

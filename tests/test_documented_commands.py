"""README.md and docs/: their commands are parsed, and what can run here runs.

Names that stand for a reader's own, such as RUN, are filled in. What needs a network, Flower or a
browser is parsed only; tests of these run it elsewhere.
"""

import io
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


# Commands within sentences and tables, which may be abbreviated.
INLINE = re.compile(r"`(fedclip [^`]*)`")

# Two runs that pages name.
ONE, OTHER = "demo-0a1b2c3d", "demo-4e5f6a7b"

# What stands in a page for something of the reader's, and what it is here.
OWN = {
    "RUN": f"{ONE}-seed0",
    "IMAGE...": "photo.jpg",
    "FOLDER": "data/demo/photo/cup",
    "LIST.csv": "list.csv",
    "CACHE": "demo",
    "--open": "",
}

# Commands on a run that a test of theirs runs with a hub, and those that take seconds each.
ELSEWHERE = ("push",)
HEAVY = ("predict", "export")

# A program that a page shows and then runs.
SAVED = re.compile(r"```python\n((?:(?!```).)*)```\s+Save this as `(\w+\.py)`", re.DOTALL)

COMMANDS = list(commands())


def on_runs() -> Iterator[Any]:
    """Yield every line of the README and of the page on using a result that reads a run."""
    reading = ("ls", "show", "compare", "report", "predict", "export", "push")
    for page in (ROOT / "README.md", ROOT / "docs" / "use.md"):
        for line in "".join(blocks(page)).splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["fedclip"] and words[1] in reading and words[1] not in ELSEWHERE:
                heavy = any(word in HEAVY for word in words)
                marks = pytest.mark.slow if heavy else ()
                yield pytest.param(line, id=" ".join(words)[:60], marks=marks)


ON_RUNS = list(on_runs())

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
    for manifest in (folder / "caches").rglob("manifest.json"):  # it names the images' folder
        manifest.write_text(manifest.read_text().replace(str(demo_folder), str(folder)))
    (folder / "extract").symlink_to(ROOT / "extract")
    return folder


def shell(script: str, folder: Path) -> str:
    """Run a script in a folder with this environment's commands; give what it printed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euc", script],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


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


def test_there_are_such_commands() -> None:
    assert len(ON_THE_DEMO) >= 5
    assert len(ON_RUNS) >= 13


@pytest.fixture(scope="module")
def with_runs(clone: Path) -> Path:
    """Put two runs, an image and a list beside the demo's images and features."""
    photo = sorted((clone / "data" / "demo" / "photo" / "cup").iterdir())[0]
    shutil.copy(photo, clone / "photo.jpg")
    (clone / "list.csv").write_text("path,label\nphoto.jpg,cup\n")
    (clone / "paths.txt").write_text("photo.jpg\n")
    places = ["--cache-dir", str(clone / "caches"), "--runs-dir", str(clone / "runs")]
    for name, options in ((ONE, []), (OTHER, ["--adapter", "linear"])):
        common = ["--cache", "demo", "--target", "sketch", "--rounds", "1", *options, *places]
        assert run(["federate", *common, "--name", f"{name}-seed0"]) == 0
    return clone


@pytest.mark.parametrize("line", ON_RUNS)
def test_a_command_on_a_run_runs(
    with_runs: Path, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(with_runs)
    command, _, source = line.partition("#")[0].partition("<")
    if source:
        monkeypatch.setattr(
            "sys.stdin", io.TextIOWrapper(io.BytesIO(Path(source.strip()).read_bytes()))
        )
    words = [OWN.get(word, word) for word in shlex.split(command)[1:]]
    assert run([word for word in words if word]) == 0


def test_the_program_of_the_readme_runs(with_runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(with_runs)
    (code,) = blocks(ROOT / "README.md", "python")
    assert code.count('preset="tuned"') == 1
    exec(code.replace('preset="tuned"', 'preset="tuned", rounds=1'), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_and_options_within_sentences_exist(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for found in INLINE.findall(text):
        for alternative in re.findall(r"\S+\|[\S|]+", found) or [""]:
            for choice in alternative.split("|"):
                words = (found.replace(alternative, choice) if choice else found).split()[1:]
                command = typer.main.get_command(app)
                while hasattr(command, "commands") and words:
                    command = command.commands[words.pop(0)]
                context = command.make_context("", words, resilient_parsing=True)
                known = {
                    flag
                    for each in command.get_params(context)
                    for flag in (*each.opts, *each.secondary_opts)
                }
                own = {"--width"} if page.name == OWN_METHODS else set()
                options = {word.partition("=")[0] for word in words if word.startswith("--")}
                assert options <= known | own, found


@pytest.mark.long
def test_the_readme_runs_from_top_to_bottom(with_runs: Path, tmp_path: Path) -> None:
    """Hold its commands to their order, in one folder, with few rounds."""
    elsewhere = ("pip install", "activate", "office-home", "hospital-a", "paper pacs", *ELSEWHERE)
    script = [f"cp -r runs {tmp_path}/runs", f"export FEDCLIP_RUNS_DIR={tmp_path}/runs"]
    for line in "".join(blocks(ROOT / "README.md")).splitlines():
        if not any(each in line for each in elsewhere):
            line = re.sub(r"--rounds \d+", "", re.sub(r"--seeds \d+", "--seeds 1", line))
            line = re.sub(r"^fedclip (federate|ablate|baseline)", r"\g<0> --rounds 1", line)
            for name, value in OWN.items():
                line = re.sub(rf"(?<=\s){re.escape(name)}(?=\s|$)", value, line)
            script.append(line)
    shell("\n".join(script), with_runs)


@pytest.mark.slow
def test_the_sites_of_the_readme_federate(clone: Path) -> None:
    (script,) = [block for block in blocks(ROOT / "README.md") if "--cache-dir site-a" in block]
    script = script.replace("--rounds 20", "--rounds 1")
    assert "domains    a, b: 600 rows" in shell(script, clone)


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
    for line in "".join(blocks(page)).replace("\\\n", " ").splitlines():
        line = re.sub(r"--rounds \d+", "--rounds 1", re.sub(r"--seeds \d+", "--seeds 1", line))
        if line.startswith("fedclip ") and not OPERATORS.search(line):
            assert run(shlex.split(line, comments=True)[1:]) == 0, line
        else:
            shell(line, clone)

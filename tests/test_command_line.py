"""The command line as a whole: help, version, what it imports."""

import csv
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from rich.cells import cell_len

import fedclip
from fedclip.cli import app, run

Fedclip = Callable[..., subprocess.CompletedProcess[str]]
MakeCache = Callable[..., Path]
Refusal = Callable[..., str]


def imported_by(*arguments: str) -> set[str]:
    """Run the command line in a fresh process and list the top-level modules it imported."""
    code = (
        "import sys; from fedclip.cli import run; run(sys.argv[1:]);"
        "print('modules', *{name.split('.')[0] for name in sys.modules})"
    )
    output = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    ).stdout
    return set(output.splitlines()[-1].split()[1:])


@pytest.mark.parametrize("arguments", [["--help"], ["federate", "--help"], ["extract", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    heavy = {"torch", "open_clip", "h5py", "numpy", "PIL", "pyarrow", "huggingface_hub"}
    assert not imported_by(*arguments) & heavy


@pytest.mark.parametrize(
    "command",
    [
        *("federate --cache pats", "federate --target phto", "federate --resume mine"),
        *("federate --adapter atention", "federate --lr 0,001", "ablate --set lr=1e-3,abc"),
        *("ablate strategie", "ablate --rounds 3", "baseline --strategy ditto --dataset demo"),
        *("extract --dataset pacz", "extract --dataset demo --model ViT-B-23"),
        *("cost --model ViT-B-23", "paper pasc"),
    ],
)
def test_a_mistake_is_found_before_torch_is_imported(
    command: str, make_cache: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(make_cache({"photo": 5}).parent)
    assert "torch" not in imported_by(*command.split())


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"fedclip {fedclip.__version__}\n"


def test_the_module_is_the_command(fedclip: Fedclip) -> None:
    result = fedclip("--version")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("fedclip ")


def test_no_command_prints_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    printed = capsys.readouterr().out
    assert all(command in printed for command in ("extract", "federate", "cache"))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["fly"], "unknown command 'fly'"),
        (["fedrate"], "unknown command 'fedrate'; did you mean federate?"),
        (["extract"], "--dataset: is missing; set it or --manifest"),
        (["baseline"], "--dataset: is missing"),
        (["cache", "show"], "NAME: is missing"),
        (["cache", "import", "x.npz"], "--name: is missing"),
        (["cache", "shw"], "unknown command 'shw'; did you mean show?"),
        (["federate", "more", "and more"], "more: unexpected argument"),
        (["federate", "--rounds"], "--rounds: requires an argument"),
        (["federate", "--overwrite=yes"], "--overwrite: does not take a value"),
        (["federate", "--rounds", "many"], "--rounds many: must be a whole number"),
        (["federate", "--lr", "0,001"], "--lr 0,001: must be a number"),
        (["adapters", "--classes", "5.5"], "--classes 5.5: must be a whole number"),
        (["adapters", "--embed-dim", "0"], "--embed-dim 0: must be at least 1 and at most 16384"),
        (
            ["baseline", "--strategy", "ditto"],
            "--strategy ditto: works with adapters only; full models take fedavg or fedprox",
        ),
        (["baseline", "--strategy", "gossip"], "--strategy gossip: unknown strategy"),
        (["extract", "--datset", "x"], "unknown option --datset; did you mean --dataset?"),
    ],
)
def test_usage_errors_are_one_line_that_names_the_help(
    capsys: pytest.CaptureFixture[str], arguments: list[str], complaint: str
) -> None:
    assert run(arguments) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert complaint in errors
    assert "--help)" in errors


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("command", [[], ["extract"], ["cache"], ["cache", "ls"]])
def test_help_has_two_names(
    capsys: pytest.CaptureFixture[str], command: list[str], flag: str
) -> None:
    assert run([*command, flag]) == 0
    assert f"Usage: {' '.join(['fedclip', *command])}" in capsys.readouterr().out


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every command below a group, with its path."""
    for name, each in group.commands.items():
        if hasattr(each, "commands"):
            yield from commands(each, (*path, name))
        else:
            yield (*path, name), each


COMMANDS = list(commands(typer.main.get_command(app)))


@pytest.mark.parametrize(
    ("path", "command", "example"),
    [(path, each, line) for path, each in COMMANDS for line in getattr(each, "examples", ())],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_examples_are_of_their_command_can_be_parsed_and_fit_a_terminal(
    path: tuple[str, ...], command: Any, example: str
) -> None:
    words = shlex.split(example)
    start = ["fedclip", *path]
    assert words[: len(start)] == start
    assert command.make_context(path[-1], words[len(start) :]).args == []
    assert len(example) <= 76


def complete(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, line: str
) -> list[str]:
    """Complete a command line as bash asks for it."""
    monkeypatch.setenv("_FEDCLIP_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
    with pytest.raises(SystemExit):
        run([])
    return capsys.readouterr().out.split()


def test_the_shell_completes_what_may_follow(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    make_cache: Callable[..., Path],
    tmp_path: Path,
) -> None:
    caches = make_cache({"photo": 5}, "pets/vit")
    make_cache({"photo": 5}, "pacs/rn50")
    for line, words in (
        ("fedclip cache ve", ["verify"]),
        (f"fedclip federate --cache-dir {caches} --cache pa", ["pacs/rn50"]),
        (f"fedclip ablate --cache-dir {caches} --cache ", ["pacs/rn50", "pets/vit"]),
        ("fedclip ablate st", ["strategies"]),
        ("fedclip federate --keep s", ["shared"]),
        (f"fedclip cache show --cache-dir {caches} ", ["pacs/rn50", "pets/vit"]),
        (f"fedclip cache rm --cache-dir {caches} pe", ["pets/vit"]),
        ("fedclip extract --dataset off", ["office-home"]),
        ("fedclip extract --template-set ", ["openai7", "openai80"]),
        ("fedclip extract --pretrained r", ["random"]),
        ("fedclip extract --model ViT-B-32-quick", ["ViT-B-32-quickgelu"]),
        ("fedclip extract --res", ["--resizer"]),
    ):
        assert complete(capsys, monkeypatch, line) == words
    monkeypatch.setenv("FEDCLIP_CACHE_DIR", str(caches))
    assert complete(capsys, monkeypatch, "fedclip cache diff pa") == ["pacs/rn50"]


def test_the_shell_s_script_is_printed(hangs: int) -> None:
    # Typer finds out which shell started the command.
    command = f"{shlex.quote(sys.executable)} -m fedclip --show-completion; exit $?"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, check=False, timeout=hangs
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "_FEDCLIP_COMPLETE=complete_bash" in done.stdout


def test_what_the_system_refuses_is_one_line_that_names_the_place(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    archive = tmp_path / "features.npz"
    np.savez(archive, image_features=np.ones((2, 3)), labels=[0, 0], text_features=np.ones((1, 3)))
    in_the_way = tmp_path / "file"
    in_the_way.write_text("a file where a folder belongs")
    place = str(in_the_way / "caches")
    assert run(["cache", "import", str(archive), "--name", "x", "--cache-dir", place]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert str(in_the_way) in errors


TABLES = (["datasets"], ["adapters"], ["strategies"], ["cache", "ls"])


@pytest.mark.parametrize("command", TABLES, ids=" ".join)
@pytest.mark.parametrize("width", [40, 80, 120])
def test_tables_and_notes_fit_a_terminal(
    command: list[str],
    width: int,
    make_cache: MakeCache,
    empty_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_cache({"photo": 5}, f"{'d' * 30}/{'v' * 40}")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))
    assert run(command) == 0
    printed = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert printed.strip()
    assert max(map(cell_len, printed.splitlines())) <= width


@pytest.mark.parametrize("command", TABLES, ids=" ".join)
def test_tables_have_the_same_cells_in_every_format(
    command: list[str],
    make_cache: MakeCache,
    empty_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_cache({"photo": 5})

    def printed(form: str) -> str:
        assert run([*command, "--format", form]) == 0
        return capsys.readouterr().out

    rows = json.loads(printed("json"))
    assert [row[:1] for row in csv.reader(StringIO(printed("csv")))][1:] == [
        [next(iter(row.values()))] for row in rows
    ]
    assert printed("latex").count("\\\\\n") == len(rows) + 1
    assert printed("markdown").count("\n| ") + 1 == len(rows) + 2


def test_an_unknown_format_is_refused(refusal: Refusal) -> None:
    assert "--format xml: unknown format; choose table, csv, json, latex or markdown" in refusal(
        "datasets", "--format", "xml"
    )


def test_the_doctor_shows_the_machine_on_one_screen(
    capsys: pytest.CaptureFixture[str],
    make_cache: Callable[..., Path],
    empty_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_cache({"photo": 20})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("fedclip.cache.common.extras.find_spec", lambda name: None)
    assert run(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24
    facts = dict(line.split("  ", 1) for line in lines)
    assert facts["fedclip"].strip() == fedclip.__version__
    size = (empty_folder / "caches" / "tiny" / "drawn" / "photo.h5").stat().st_size
    assert f"1 cache, {size / 1000:.1f} kB" in facts["caches"]
    assert facts["runs"].endswith("runs: not there yet")
    assert "not asked, as HF_HUB_OFFLINE is set" in facts["hub"]
    assert any("pip install 'fedclip[onnx]'" in line for line in lines)

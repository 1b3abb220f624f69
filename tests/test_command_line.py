"""The command line as a whole: help, version, what it imports."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import fedclip
from fedclip.cli import run

Fedclip = Callable[..., subprocess.CompletedProcess[str]]


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
        (["fly"], "No such command 'fly'"),
        (["extract"], "Missing option '--dataset'"),
        (["cache", "show"], "Missing argument 'NAME'"),
        (["cache", "fly"], "No such command 'fly'"),
        (["federate", "--rounds", "many"], "Invalid value for '--rounds'"),
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

"""docs/extend.md: its methods are saved, and its commands run, as a reader would."""

import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from fedclip.cli import run

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
MODULES = dict(re.findall(r"Save this as `(\w+\.py)`:\n\n```python\n(.*?)```", PAGE, re.DOTALL))
COMMANDS = [
    line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()
]


@pytest.fixture(autouse=True)
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Put a reader in a folder with the page's modules and a cache."""
    for name, code in MODULES.items():
        (tmp_path / name).write_text(code, encoding="utf-8")
    shutil.copytree(ROOT / "tests" / "golden" / "caches" / "golden", tmp_path / "caches" / "golden")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in MODULES:
        sys.modules.pop(name.removesuffix(".py"), None)


def config_of(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def test_the_page_has_methods_of_about_twenty_lines() -> None:
    assert [*MODULES] == ["my_adapter.py", "my_strategy.py", "my_personal.py"]
    assert all(len(code.splitlines()) <= 25 for code in MODULES.values())


def test_every_command_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(COMMANDS) == 6
    for command in COMMANDS:
        program, *arguments = shlex.split(command)
        assert program == "fedclip"
        assert run(arguments) == 0, capsys.readouterr().err


def test_the_help_lists_the_options_of_an_own_method(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["federate", "--adapter", "my_adapter:Gate", "--help"]) == 0
    assert "--width" in (printed := capsys.readouterr().out)
    assert "Width of the bottleneck." in printed
    assert run(["federate", "--help"]) == 0
    assert "--width" not in capsys.readouterr().out


@pytest.mark.parametrize("engine", ["plain", "threads", "batched"])
def test_own_methods_run_in_every_engine(reader: Path, engine: str) -> None:
    own = ["--adapter", "my_adapter:Gate", "--strategy", "my_strategy:TrimmedMean"]
    options = ["--width", "4", "--rounds", "2", "--target", "photo", "--engine", engine]
    assert run(["federate", *own, *options, "--name", engine]) == 0
    folder = reader / "runs" / engine
    settings = config_of(folder)["settings"]
    assert settings["adapter"] == "my_adapter:Gate"
    assert settings["strategy"] == "my_strategy:TrimmedMean"
    assert (settings["width"], settings["trim"]) == (4, 0.1)
    assert len(settings["adapter_source"]) == len(settings["strategy_source"]) == 64
    with safe_open(folder / "adapter.safetensors", "pt") as file:
        facts = json.loads(file.metadata()["fedclip"])
        assert sorted(file.keys())[:2] == ["@class_texts", "gate.0.bias"]
    assert (facts["adapter"], facts["options"]) == ("my_adapter:Gate", {"width": 4})


def test_an_option_of_an_own_method_is_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["federate", "--adapter", "my_adapter:Gate", "--width", "0"]) == 2
    assert "--width 0: must be at least 1" in capsys.readouterr().err


def test_a_changed_method_is_another_run(reader: Path) -> None:
    arguments = ["federate", "--adapter", "my_adapter:Gate", "--rounds", "1", "--target", "photo"]
    assert run(arguments) == 0
    assert run(arguments) == 2  # this run exists
    module = reader / "my_adapter.py"
    module.write_text(module.read_text().replace("nn.ReLU()", "nn.Tanh()"))
    sys.modules.pop("my_adapter")
    assert run(arguments) == 0
    assert len([*(reader / "runs").iterdir()]) == 2


def test_a_run_is_not_resumed_with_a_changed_method_nor_runs_a_line_of_it(
    reader: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ["--adapter", "my_adapter:Gate", "--rounds", "1", "--target", "photo", "--name", "own"]
    assert run(["federate", *own]) == 0
    sys.modules.pop("my_adapter")
    module = reader / "my_adapter.py"
    source = module.read_text()
    module.write_text("raise SystemExit('run')\n" + source)
    assert run(["federate", "--resume", "own"]) == 2
    assert "--adapter my_adapter:Gate: its source is not the one" in capsys.readouterr().err
    module.write_text(source)
    assert run(["federate", "--resume", "own"]) == 0
    assert "is finished" in capsys.readouterr().err

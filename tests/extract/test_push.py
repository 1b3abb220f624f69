"""Adapters on the hub: pushed from one machine, used on another."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from fedclip import load_classifier, load_run
from fedclip.cli import run

Demo = Any  # the class of this name in conftest.py
Hub = Any  # the class of this name beside this file
Fedclip = Callable[..., subprocess.CompletedProcess[str]]
Refusal = Callable[..., str]

ONE = ("--run", "demo", "--target", "sketch")


def files_of(hub: Hub, name: str) -> dict[str, bytes]:
    repo = hub.repos[f"models/{name}"]
    files: dict[str, bytes] = repo.commits[repo.branches["main"]]
    return files


@pytest.mark.slow
def test_a_pushed_adapter_predicts_on_a_machine_that_has_nothing_else(
    demo: Demo,
    hub: Hub,
    at_hub: Path,
    fedclip: Fedclip,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    capsys.readouterr()
    assert run(demo.command("push", *ONE, "someone/scans", "--license", "mit", "--private")) == 0
    assert f"uploaded   {hub.url}/someone/scans" in capsys.readouterr().out
    assert hub.repos["models/someone/scans"].private
    files = files_of(hub, "someone/scans")
    assert sorted(files) == [
        *("README.md", "adapter.safetensors", "result.json", "rounds.jsonl", "run.json")
    ]
    everything = b"".join(files.values())
    assert str(demo.place).encode() not in everything
    assert b"fedclip predict" in everything or b"fedclip.load_classifier('hf:someone/scans')" in (
        everything
    )

    home = tmp_path / "another-home"
    home.mkdir()
    environment = {
        "HOME": str(home),
        "HF_HOME": str(home / "hf"),
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": "",
    }
    image = next((demo.images / "photo").glob("*/000.png"))
    command = ["predict", "--run", "hf:someone/scans", "--format", "json", image]
    found = fedclip(*command, env=environment)
    assert found.returncode == 0, found.stderr
    use = load_classifier("demo", target="sketch", runs_dir=demo.place / "runs")
    expected = json.loads(json.dumps(use(image)[0].row()))
    assert json.loads(found.stdout) == expected
    again = fedclip(*command, env={**environment, "HF_HUB_OFFLINE": "1"})
    assert again.stdout == found.stdout


@pytest.mark.slow
def test_an_adapter_from_the_hub_is_exported_and_pushed_again(
    demo: Demo, hub: Hub, at_hub: Path, tmp_path: Path
) -> None:
    assert run(demo.command("push", *ONE, "someone/one")) == 0
    file = tmp_path / "out" / "a.safetensors"
    hub_run = ["--run", "hf:someone/one"]
    assert run(["export", *hub_run, "--to", "safetensors", "--out", str(file)]) == 0
    assert file.read_bytes() == files_of(hub, "someone/one")["adapter.safetensors"]
    assert run(["push", *hub_run, "someone/other"]) == 0
    one, other = (files_of(hub, f"someone/{name}") for name in ("one", "other"))
    assert one["adapter.safetensors"] == other["adapter.safetensors"]
    assert one["result.json"] == other["result.json"]
    assert run(["push", *hub_run, "someone/other"]) == 0  # as it is there already


def test_a_pushed_run_is_shown_reported_and_loaded(
    demo: Demo,
    hub: Hub,
    at_hub: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    refusal: Refusal,
) -> None:
    assert run(demo.command("push", *ONE, "someone/one")) == 0
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert run(["show", "hf:someone/one"]) == 0
    shown = capsys.readouterr().out
    assert "hf:someone/one" in shown
    result = json.loads((demo.run / "sketch" / "result.json").read_text())
    assert f"> {100 * result['accuracy']['photo']:.2f}" in shown
    assert "the predictions by image are not on the hub" in shown
    assert run(["report", "hf:someone/one"]) == 0
    assert (tmp_path / "report.html").is_file()
    line = refusal(*demo.command("compare", "hf:someone/one", "demo"))
    assert line == (
        "error: hf:someone/one: the predictions by image are not on the hub; name the run itself, "
        "on the machine where it is"
    )
    loaded, own = load_run("hf:someone/one"), load_run(demo.run / "sketch")
    assert loaded.result == own.result
    assert loaded.to_pandas().equals(own.to_pandas())
    assert loaded.rounds_to_pandas().equals(own.rounds_to_pandas())
    assert loaded.config == {
        **{name: value for name, value in own.config.items() if name != "cache"},
        "cache": {each: v for each, v in own.config["cache"].items() if each != "folder"},
    }
    hub.repo("no/run", {"adapter.safetensors": b"x", "README.md": b"x"}, "model")
    assert "no run.json about its run" in refusal("show", "hf:no/run")
    assert "hf:no/one" in refusal("show", "hf:no/one")


def test_an_adapter_of_elsewhere_runs_nothing_from_outside_the_package(
    demo: Demo,
    hub: Hub,
    at_hub: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_adapter.py").write_text("raise SystemExit('it was run')")
    with safe_open(demo.run / "sketch" / "adapter.safetensors", "pt") as file:
        facts = json.loads(file.metadata()["fedclip"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    facts["adapter"] = "my_adapter:Adapter"
    save_file(tensors, tmp_path / "a.safetensors", metadata={"fedclip": json.dumps(facts)})
    hub.repo(
        "evil/one", {"adapter.safetensors": (tmp_path / "a.safetensors").read_bytes()}, "model"
    )
    assert run(["predict", "--run", "hf:evil/one", str(demo.images)]) == 2
    errors = capsys.readouterr().err
    assert "needs the adapter my_adapter:Adapter from outside fedclip" in errors


def test_what_the_hub_refuses_is_one_line(
    demo: Demo, hub: Hub, at_hub: Path, refusal: Refusal
) -> None:
    hub.token = "secret"
    line = refusal(*demo.command("push", *ONE, "someone/scans"))
    assert "you may not write to it; log in with 'hf auth login'" in line
    assert "not a repository's name" in refusal(*demo.command("push", *ONE, "a/b/c"))
    assert "no such model" in refusal("predict", "--run", "hf:no/one", str(demo.images))
    hub.repo("no/adapter", {"README.md": b"# nothing"}, "model")
    line = refusal("predict", "--run", "hf:no/adapter", str(demo.images))
    assert "has no adapter.safetensors" in line

"""``fedclip federate --resume``: a killed run ends as an unbroken one does."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from fedclip.cache import FeatureCache, FedclipError
from fedclip.cli import run
from fedclip.federate import simulation
from fedclip.federate.data.federation import Federation
from fedclip.federate.models.base import Model
from fedclip.federate.runs.checkpoint import read_state, write_state
from fedclip.federate.runs.folder import RunFolder
from fedclip.federate.runs.results import Result
from fedclip.federate.server import Best, Round, ServerState
from fedclip.federate.simulation import RunState

MakeFeatures = Callable[..., FeatureCache]
MakeCache = Callable[..., Path]
WaitUntil = Callable[[Callable[[], bool]], None]
Refusal = Callable[..., str]
Records = Callable[[Path], dict[str, Any]]

pytestmark = pytest.mark.usefixtures("empty_folder")

COMMAND = ["federate", "--clients", "3", "--alpha", "10", "--participation", "2"]


def rounds_done(folder: Path) -> int:
    return sum(len(path.read_bytes().splitlines()) for path in folder.rglob("rounds.jsonl"))


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_as_an_unbroken_one(
    make_cache: MakeCache, records: Records, wait_until: WaitUntil
) -> None:
    make_cache({"art": 300, "photo": 400})
    options = ["--rounds", "40", "--preset", "tuned", "--eval-every", "3", "--save-every", "4"]
    assert run([*COMMAND, *options, "--name", "unbroken"]) == 0
    expected = records(Path("runs/unbroken"))
    assert len([name for name in expected if name.endswith("safetensors")]) == 2

    folder = Path("runs/killed")
    command = [*COMMAND, *options, "--name", "killed"]
    moments = random.Random(5)
    for kill in range(3):
        process = subprocess.Popen(
            [sys.executable, "-m", "fedclip", *command],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        enough = rounds_done(folder) + 6 + 10 * kill
        wait_until(lambda: rounds_done(folder) >= enough or process.poll() is not None)  # noqa: B023
        time.sleep(moments.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        process.wait()
        command = ["federate", "--resume", "killed", "--save-every", "4"]
    assert run(command) == 0
    assert records(folder) == expected


@pytest.mark.parametrize("targets", [["--target", "none"], []])
def test_it_does_not_matter_at_which_write_a_run_dies(
    make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch, targets: list[str], records: Records
) -> None:
    class Killed(BaseException):
        pass

    make_cache({"art": 40, "photo": 40})
    options = [*targets, "--rounds", "3", "--save-every", "1", "--lr", "0.01"]
    assert run([*COMMAND, *options, "--name", "unbroken"]) == 0
    expected = records(Path("runs/unbroken"))
    sync = os.fsync
    for death in range(1, 200):
        left = death

        def die(handle: int) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed
            sync(handle)

        name = f"dies-at-{death}"
        monkeypatch.setattr(os, "fsync", die)
        try:
            assert run([*COMMAND, *options, "--name", name]) == 0
        except Killed:
            monkeypatch.setattr(os, "fsync", sync)
            again = ["--resume", name] if Path("runs", name, "config.json").is_file() else None
            assert run(["federate", *again] if again else [*COMMAND, *options, "--name", name]) == 0
            assert records(Path("runs", name)) == expected
        else:
            monkeypatch.setattr(os, "fsync", sync)
            assert death > 10
            return
    pytest.fail("it never survived")


def test_an_interrupted_run_is_resumed(
    make_cache: MakeCache,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    records: Records,
) -> None:
    make_cache({"art": 40, "photo": 40})
    options = ["--rounds", "5", "--lr", "0.01"]
    assert run([*COMMAND, *options, "--name", "unbroken"]) == 0
    append = RunFolder.append_round

    def interrupt(folder: RunFolder, current: Round, scores: Any) -> None:
        append(folder, current, scores)  # recorded, and not yet part of the state
        if folder.path.name == "art" and current.number == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "append_round", interrupt)
    assert run([*COMMAND, *options, "--name", "broken"]) == 130
    monkeypatch.undo()
    monkeypatch.chdir(make_cache({}).parent)
    art = Path("runs/broken/art")
    assert json.loads((art / "result.json").read_text())["rounds"] == 2
    assert rounds_done(art) == 2
    assert (art / "state.safetensors").is_file()
    assert not Path("runs/broken/photo").exists()
    assert "resume     fedclip federate --resume runs/broken\n" in capsys.readouterr().out
    assert run([*COMMAND, *options, "--name", "broken"]) == 2
    assert (
        "this run exists; resume it with --resume runs/broken, or pass --overwrite"
        in capsys.readouterr().err
    )
    assert run(["federate", "--resume", "runs/broken"]) == 0
    assert "target art: 2/5 rounds" in capsys.readouterr().err
    assert records(Path("runs/broken")) == records(Path("runs/unbroken"))


def interrupt_opening(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupt when the run of that number is being opened."""
    opened, evaluate = iter(range(1, 100)), simulation._zero_shot

    def zero_shot(federation: Federation, model: Model) -> dict[str, float]:
        if next(opened) == number:
            raise KeyboardInterrupt
        return evaluate(federation, model)

    monkeypatch.setattr(simulation, "_zero_shot", zero_shot)


@pytest.mark.parametrize("number", [1, 2])
def test_a_run_interrupted_while_it_is_opened_is_resumed(
    make_cache: MakeCache,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    records: Records,
    number: int,
) -> None:
    make_cache({"art": 40, "photo": 40, "sketch": 40})
    options = ["--rounds", "2", "--lr", "0.01"]
    assert run(["federate", *options, "--name", "unbroken"]) == 0
    capsys.readouterr()
    with monkeypatch.context() as patch:
        interrupt_opening(number, patch)
        assert run(["federate", *options, "--name", "broken"]) == 130
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1] == "interrupted; what was finished is kept"
    assert "is finished" not in captured.err
    assert ("accuracy in %" in captured.out) == (number == 2)
    assert run(["federate", "--resume", "broken"]) == 0
    assert records(Path("runs/broken")) == records(Path("runs/unbroken"))


def test_an_ablation_interrupted_between_two_targets_is_resumed(
    make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch, records: Records
) -> None:
    make_cache({"art": 40, "photo": 40})
    command = ["ablate", "--rounds", "2", "--set", "lr=0.01,0.1"]
    assert run([*command, "--runs-dir", "unbroken"]) == 0
    with monkeypatch.context() as patch:
        interrupt_opening(2, patch)
        assert run([*command, "--runs-dir", "broken"]) == 130
    assert run([*command, "--runs-dir", "broken"]) == 0
    assert records(Path("broken")) == records(Path("unbroken"))


def test_runs_that_fail_in_the_step_of_an_interrupt_have_failed(
    make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch, records: Records
) -> None:
    make_cache({"photo": 60})
    command = ["ablate", "--rounds", "9", "--lr", "1e38", "--weight-decay", "0.2", "--seeds", "2"]
    assert run([*command, "--runs-dir", "unbroken"]) == 1
    write, writes = RunFolder.write_result, []

    def interrupt(folder: RunFolder, result: Result) -> None:
        writes.append(folder)
        if len(writes) == 1:
            raise KeyboardInterrupt
        write(folder, result)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write_result", interrupt)
        assert run([*command, "--runs-dir", "broken"]) == 130
    assert records(Path("broken")) == records(Path("unbroken"))


def test_a_finished_run_says_so_and_prints_its_table(
    make_cache: MakeCache, capsys: pytest.CaptureFixture[str]
) -> None:
    make_cache({"photo": 60})
    assert run([*COMMAND, "--rounds", "2", "--name", "mine"]) == 0
    table = capsys.readouterr().out.split("accuracy in %")[1]
    before = {path: path.stat().st_mtime_ns for path in Path("runs/mine").iterdir()}
    assert "state.safetensors" not in {path.name for path in before}
    assert run(["federate", "--resume", "mine"]) == 0
    captured = capsys.readouterr()
    assert "runs/mine: is finished" in captured.err
    assert captured.out.split("accuracy in %")[1] == table
    assert {path: path.stat().st_mtime_ns for path in Path("runs/mine").iterdir()} == before


@pytest.mark.parametrize("keep", ["personal", "shared", "none"])
@pytest.mark.parametrize("resume", ["federate", "ablate"])
def test_a_resumed_run_leaves_what_it_was_started_to_leave(
    make_cache: MakeCache,
    monkeypatch: pytest.MonkeyPatch,
    records: Records,
    keep: str,
    resume: str,
) -> None:
    make_cache({"photo": 90})
    options = ["--strategy", "ditto", "--lr", "0.01", "--rounds", "4", "--keep", keep]
    command = [*COMMAND, *options, "--save-every", "1"]
    assert run([*command, "--runs-dir", "unbroken"]) == 0
    save = RunFolder.save_state

    def stop(folder: RunFolder, state: RunState) -> None:
        save(folder, state)
        if state.server.number == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_state", stop)
        assert run(command) == 130
    (folder,) = Path("runs").iterdir()
    with safe_open(folder / "state.safetensors", "pt") as state:
        own = {name for name in state.keys() if name.startswith("best-own/")}  # noqa: SIM118
    assert bool(own) == (keep == "personal")
    if resume == "federate":
        assert run(["federate", "--resume", str(folder)]) == 0
    else:  # what it was started with holds, whatever the ablation leaves of new runs
        sets = ["--set", "seed=0", "--keep", "personal"]
        assert run(["ablate", *command[1:-4], *sets, "--csv", "table.csv"]) == 0
    assert records(folder) == records(next(Path("unbroken").iterdir()))


def interrupted(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Leave a run that was interrupted after its second round of four."""
    save = RunFolder.save_state

    def stop(folder: RunFolder, state: RunState) -> None:
        save(folder, state)
        if state.server.number == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_state", stop)
        # Closing it saves once more, so it dies without a result, as if killed.
        assert run([*COMMAND, "--rounds", "4", "--save-every", "1", "--name", "mine"]) == 130
    return Path("runs/mine")


def test_only_what_belongs_to_the_run_is_resumed(
    make_cache: MakeCache,
    make_features: MakeFeatures,
    monkeypatch: pytest.MonkeyPatch,
    refusal: Refusal,
    records: Records,
) -> None:
    caches = make_cache({"photo": 60})
    folder = interrupted(monkeypatch)
    resume = ["federate", "--resume", "mine"]
    assert "run 'other' is neither a run's folder nor the name of one in runs" in refusal(
        "federate", "--resume", "other"
    )
    assert "--lr cannot be combined with --resume" in refusal(*resume, "--lr", "1")

    with RunFolder(folder).claimed():
        assert "another process is working on this run" in refusal(*resume)

    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config[:-20])
    assert "config.json: is damaged" in refusal(*resume)
    (folder / "config.json").write_text(config.replace('"rounds"', '"orbits"'))
    assert "mine/config.json: --orbits 4: unknown setting" in refusal(*resume)
    (folder / "config.json").write_text(config.replace('"preset"', '"base"'))
    assert "of another version" in refusal(*resume)
    (folder / "config.json").write_text(config)

    state = (folder / "state.safetensors").read_bytes()
    (folder / "state.safetensors").write_bytes(state[:200])
    assert "state.safetensors: is damaged" in refusal(*resume)
    (folder / "state.safetensors").write_bytes(state)

    rounds = (folder / "rounds.jsonl").read_text()
    (folder / "rounds.jsonl").write_text(rounds.splitlines()[0])
    assert "rounds.jsonl: some of its 2 rounds are missing" in refusal(*resume)
    (folder / "rounds.jsonl").write_text(rounds + rounds.splitlines()[0][:9])

    caches.rename("elsewhere")
    assert "the cache of this run is missing; pass its place with" in refusal(*resume)
    make_cache([make_features("photo", 60, seed=1)])
    assert "the cache tiny/drawn is not the one of this run (its content" in refusal(*resume)
    assert json.loads((folder / "config.json").read_text()) == json.loads(config)
    assert run([*resume, "--cache-dir", "elsewhere"]) == 0
    assert run([*COMMAND, "--rounds", "4", "--name", "whole", "--cache-dir", "elsewhere"]) == 0
    one, other = records(folder), records(Path("runs/whole"))
    assert {**one, "config.json": None} == {**other, "config.json": None}


def test_a_targets_part_is_resumed_with_the_whole(make_cache: MakeCache, refusal: Refusal) -> None:
    make_cache({"art": 40, "photo": 40})
    assert run([*COMMAND, "--rounds", "1", "--name", "all"]) == 0
    message = refusal("federate", "--resume", "runs/all/art")
    assert f"is one target's part of a run; resume {Path('runs/all').resolve()}" in message


def state_after(number: int, best: int | None) -> RunState:
    parameters = {"w": torch.randn(3, 2), "b": torch.randn(2)}
    older = {"w": torch.randn(3, 2), "b": torch.randn(2)}
    strategy = {"server": parameters, "moment": older}
    clients = {
        "photo-000": {"client": {"c": torch.ones(1)}, "personal": older},
        "photo-001": {"personal": parameters},
    }
    kept = None
    if best is not None:
        done = Round(
            number=best,
            seconds=0.1,
            train_loss=1 / 3,
            validation={"photo": 2 / 3},
            test={"photo": 0.1},
            personal={"photo": 0.4},
            bytes_up=8,
            bytes_down=8,
            finite=True,
        )
        kept = Best(done, parameters if best == number else older)
    own = {"photo": older, "art": older} if kept else {}
    return RunState(ServerState(number, strategy, kept), {"photo": 0.7}, clients, own)


def assert_same(one: Any, other: Any) -> None:
    """Compare mappings of mappings of tensors."""
    assert {*one} == {*other}
    for name, value in one.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, other[name])
        else:
            assert_same(value, other[name])


@pytest.mark.parametrize("best", [None, 2, 5])
def test_a_state_is_read_as_it_was_written(tmp_path: Path, best: int | None) -> None:
    path, state = tmp_path / "state.safetensors", state_after(5, best)
    write_state(path, state)
    again = read_state(path, state)
    server, before = again.server, state.server
    assert (server.number, again.zero_shot, server.failed) == (5, {"photo": 0.7}, False)
    assert_same(server.strategy, before.strategy)
    assert_same(again.clients, state.clients)
    assert (server.best is None) == (best is None)
    assert {*again.best_own} == ({"photo", "art"} if best else set())
    assert_same(again.best_own, state.best_own)
    if server.best and before.best:
        assert vars(server.best.round) == vars(before.best.round)
        assert_same(server.best.parameters, before.best.parameters)


def test_a_state_of_another_adapter_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    write_state(path, state_after(5, 2))
    other = {"w": torch.zeros(3, 3), "b": torch.zeros(2)}
    with pytest.raises(FedclipError, match="belongs to another adapter"):
        read_state(path, RunState(ServerState(0, {"server": other}), {"photo": 0.7}))


@pytest.mark.parametrize("end", [0, 1, 8, 100, 300, -1])
def test_a_damaged_state_is_named(tmp_path: Path, end: int) -> None:
    path, state = tmp_path / "state.safetensors", state_after(5, 2)
    write_state(path, state)
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(
        FedclipError, match=r"state.safetensors: is damaged \(.*to start the run from the"
    ):
        read_state(path, state)

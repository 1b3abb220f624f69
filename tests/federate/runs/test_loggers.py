"""TensorBoard's events: off by default, one file a run, the records' own figures."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fedclip.cli import run

MakeCache = Callable[..., Path]

pytestmark = pytest.mark.usefixtures("empty_folder")

RUN = ["federate", "--rounds", "3", "--preset", "tuned"]


def events(folder: Path) -> list[Path]:
    return [*folder.glob("events.out.tfevents.*")]


def scalars(path: Path) -> dict[tuple[str, int], float]:
    """Read the scalars of a file of events: records of a length, a checksum, bytes, a checksum."""
    from tensorboardX.proto.event_pb2 import Event

    content, found, place = path.read_bytes(), {}, 0
    while place < len(content):
        length = int.from_bytes(content[place : place + 8], "little")
        event = Event.FromString(content[place + 12 : place + 12 + length])
        place += 16 + length
        for value in event.summary.value:
            found[value.tag, event.step] = value.simple_value
    return found


def test_events_are_written_on_request_only_and_have_the_records_figures(
    make_cache: MakeCache,
) -> None:
    make_cache({"art": 60, "photo": 70})
    assert run([*RUN, "--name", "plain"]) == 0
    assert events(Path("runs/plain/art")) == []
    assert run([*RUN, "--name", "seen", "--tensorboard"]) == 0
    for target in ("art", "photo"):
        folder = Path("runs/seen") / target
        (path,) = events(folder)
        found = scalars(path)
        lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
        for line in lines:
            number = line["round"]
            assert found["train_loss", number] == pytest.approx(line["train_loss"])
            for client, accuracy in line["test"].items():
                assert found[f"test/{client}", number] == pytest.approx(accuracy)
        assert max(step for _, step in found) == 3


def test_the_runs_of_an_ablation_have_events_each(make_cache: MakeCache) -> None:
    make_cache({"art": 60})
    assert run(["ablate", "--rounds", "2", "--set", "lr=1e-3,1e-2", "--tensorboard"]) == 0
    folders = [path for path in Path("runs").iterdir() if path.is_dir()]
    assert [len(events(folder)) for folder in folders] == [1, 1]


def test_without_the_extra_the_error_names_it_and_nothing_is_started(make_cache: MakeCache) -> None:
    make_cache({"art": 60})
    code = f"""
import sys
sys.modules["tensorboardX"] = None
from fedclip.cli import run
sys.exit(run({[*RUN, "--tensorboard"]!r}))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=1800, check=False
    )
    assert done.returncode == 2
    assert "--tensorboard: needs tensorboardX, which is not installed" in done.stderr
    assert not Path("runs").exists()


# The trackers of the page, each a program that a reader may copy.
PAGE = (Path(__file__).parents[3] / "docs" / "results.md").read_text(encoding="utf-8")
PROGRAMS = dict(re.findall(r"```python\nimport (\w+)[^\n]*\n(.*?)```", PAGE, re.DOTALL))


def test_the_page_has_such_programs() -> None:
    assert {*PROGRAMS} == {"mlflow", "trackio"}


@pytest.mark.parametrize("tracker", ["mlflow", "trackio", "wandb"])
def test_a_callback_of_the_page_tracks_a_run(
    tracker: str, make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(tracker)
    folder = Path("tracked").absolute()
    folder.mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", folder.as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("TRACKIO_DIR", str(folder))
    monkeypatch.setenv("WANDB_DIR", str(folder))
    monkeypatch.setenv("WANDB_MODE", "offline")
    make_cache({"art": 60})
    name = "mlflow" if tracker == "mlflow" else "trackio"
    program = f"import {tracker} as {name}\n{PROGRAMS[name]}"
    program = program.replace('"demo", rounds=40', '"tiny", rounds=2, name="seen"')
    subprocess.run([sys.executable, "-c", program], check=True, timeout=1800)
    assert json.loads(Path("runs/seen/result.json").read_text())["rounds"] == 2
    written = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    names = b"".join(str(path).encode() for path in folder.rglob("*"))
    assert b"test/art" in written + names

"""docs/federate-across-sites.md, followed as written, with this machine as the server."""

import json
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from fedclip.cache import FeatureCache
from fedclip.federate.server import Round
from fedclip.federate.settings import Settings
from fedclip.federate.simulation import Callback, Run

pytest.importorskip("flwr", reason="flwr is not installed: CONTRIBUTING.md")
pytestmark = [pytest.mark.flower, pytest.mark.long]

PAGE = Path(__file__).resolve().parents[3] / "docs" / "federate-across-sites.md"
SITES = ("hospital-a", "hospital-b", "hospital-c")

# Runs a line in a shell.
SHELL = 'import os, sys\nos.execvp("bash", ["bash", "-ec", *sys.argv[1:]])\n'

HEADING = "## With Flower's own programs"


def blocks(text: str, language: str = "sh") -> list[list[str]]:
    """Return the lines of each block, with this machine in place of the server's name."""
    found = re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [each.replace("server.example.org", "127.0.0.1").splitlines() for each in found]


def test_the_page_leads_to_a_result(
    make_features: Callable[..., FeatureCache], loopback: Any
) -> None:
    place = loopback([make_features(site, 60) for site in SITES], fresh=True)
    lines = [line for block in blocks(PAGE.read_text().partition(HEADING)[0]) for line in block]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("fedclip ")]
    keys, serve, dry, join, resume, predict = commands
    assert [each[0] for each in commands] == [
        *("keys", "serve", "join", "join", "serve", "predict")
    ]
    made = place.start("keys", *keys)
    assert made.wait() == 0, made.output
    server = place.start("server", *serve, "--host", "127.0.0.1")
    server.shows("listening  127.0.0.1:9092, TLS")
    shown = place.start("dry", *dry)
    assert shown.wait() == 0, shown.output
    sites = [
        place.start(site, *(word.replace("hospital-a", site) for word in join)) for site in SITES
    ]
    place.until(lambda: "validation" in server.output)
    assert server.stop(signal.SIGINT) == 130
    (run,) = (place.folder / "runs").iterdir()
    words = [word.replace("runs/NAME", f"runs/{run.name}") for word in resume]
    again = place.start("again", *words, "--host", "127.0.0.1")
    assert again.wait() == 0, again.output
    assert [site.wait() for site in sites] == [0, 0, 0]
    assert "accuracy in %" in again.output
    assert (run / "adapter.safetensors").is_file()
    site_run = json.loads((run / "config.json").read_text())["deployment"]["run"]
    adapter = re.sub("hospital-a-[0-9a-f]{16}", f"hospital-a-{site_run}", predict[2])
    extracted = place.folder / "caches" / "scans" / "one"
    extracted.mkdir(parents=True)
    shutil.copy(place.folder / "hospital-a.h5", extracted)
    used = place.start("use", *predict[:2], adapter, "--cache", "scans")
    assert used.wait() == 0, used.output


class History(Callback):
    """Keeps all rounds of a run."""

    def __init__(self) -> None:
        self.rounds: list[Round] = []

    def on_round(self, run: Run, current: Round) -> None:
        self.rounds.append(current)


def test_flowers_own_programs_train_what_the_simulation_trains(
    make_features: Callable[..., FeatureCache], loopback: Any, simulated: Any, distance: Any
) -> None:
    # Site a joins with fedclip, site b with Flower's SuperNode, which is killed and started again.
    caches = [make_features(site, 60) for site in SITES[:2]]
    place = loopback(caches, fresh=True)
    section = PAGE.read_text().partition(HEADING)[2].partition("\n## ")[0]
    (at_server, register, at_site), (config,) = blocks(section), blocks(section, "toml")
    environment = {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "HOME": str(place.folder),
        "FLWR_HOME": str(place.folder / ".flwr"),
        **dict(word.split("=") for word in shlex.split(at_server[1])[1:]),
    }
    *prepare, superlink = at_server
    changes: Mapping[str, Any] = {"lr": 0.01, "weight_decay": 0.0, "strategy": "ditto"}

    def shell(name: str, lines: Sequence[str]) -> Any:
        script = "\n".join(lines).replace("--preset tuned --rounds 50", options)
        return place.start(name, script, code=SHELL, **environment)

    def supernode(name: str) -> Any:
        """Start Flower's SuperNode until it is let in, when a killed one has been missed."""
        tries = 0
        while True:
            tries += 1
            node = shell(f"{name}-{tries}", [f"exec {at_site[1]}"])
            place.until(lambda node=node: node.over or "Received successfully" in node.output)
            if not node.over:
                return node

    options = "--rounds 4 --lr 0.01 --weight-decay 0 --strategy ditto --name run"
    prepared = shell("prepare", prepare)
    assert prepared.wait() == 0, prepared.output
    server = shell("superlink", [f"exec {superlink}"])
    server.shows("Application startup complete")
    home = place.folder / ".flwr"
    home.mkdir(exist_ok=True)
    where = "\n".join(config).replace("/srv/fedclip", str(place.folder))
    (home / "config.toml").write_text(where)
    registered = shell("register", register[:2])
    assert registered.wait() == 0, registered.output
    site = shell(SITES[0], [f"exec {at_site[0]}"])
    started = shell("run", register[2:])
    victim = supernode(SITES[1])
    place.until(lambda: len(place.rounds()) == 1)
    victim.stop(signal.SIGKILL)
    again = supernode("again")
    assert started.wait() == 0, started.output
    place.until(lambda: (place.run_folder / "result.json").is_file())
    assert site.wait() == 0, site.output
    place.until(lambda: len([*place.folder.glob("joined/*/personal.safetensors")]) == 2)
    history = History()
    best = simulated(caches, Settings.preset("paper", {**changes, "rounds": 4}), history).state
    for line, current in zip(place.rounds(), history.rounds, strict=True):
        assert line["train_loss"] == pytest.approx(current.train_loss, rel=1e-5)
        assert line["personal"] == current.personal
    assert distance(place.adapter(), best.server.best.parameters) <= 1e-5
    assert place.result()["personal"] == best.server.best.round.personal
    for client, own in best.best_own.items():
        (path,) = place.folder.glob(f"joined/{client}-*/personal.safetensors")
        prefix = f"{client}/"
        kept = {
            name.removeprefix(prefix): tensor
            for name, tensor in load_file(path).items()
            if name.startswith(prefix)
        }
        assert distance(kept, own) <= 1e-5
    for each in (again, server):
        each.stop(signal.SIGINT)

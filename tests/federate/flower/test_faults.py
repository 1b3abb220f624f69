"""Sites and servers that are killed, return nonsense, or come back; with real processes."""

import signal
from collections.abc import Callable
from typing import Any

import pytest

from fedclip.cache import FeatureCache
from fedclip.federate.settings import Settings

pytest.importorskip("flwr", reason="flwr is not installed: CONTRIBUTING.md")
pytestmark = pytest.mark.flower

MakeFeatures = Callable[..., FeatureCache]
SITES = {"hospital-a": 40, "hospital-b": 50, "hospital-c": 60}
OPTIONS = ("--lr", 0.01, "--weight-decay", 0, "--name", "run")

# A site that waits while there is a file `hold`, from round 4 on or from HOLD_FROM.
HOLDING = """
import os, time
from pathlib import Path
from fedclip.federate.flower.site import Site
whole = Site.answer
def answer(self, order, memory):
    while order.number >= int(os.environ.get("HOLD_FROM", 4)) and Path("hold").exists():
        time.sleep(0.02)
    return whole(self, order, memory)
Site.answer = answer
from fedclip.cli import main
main()
"""

# A site whose update of round 2 is NaN, and that sends every answer twice.
DIVERGING = """
import dataclasses
from fedclip.federate.flower import node
from fedclip.federate.flower.site import Site
push = node._push
def twice(*message):
    push(*message)
    push(*message)
node._push = twice
whole = Site.answer
def answer(self, order, memory):
    answer = whole(self, order, memory)
    if order.number != 2:
        return answer
    bad = {name: tensor * float("nan") for name, tensor in answer.parameters.items()}
    return dataclasses.replace(answer, parameters=bad)
Site.answer = answer
from fedclip.cli import main
main()
"""


@pytest.fixture
def caches(make_features: MakeFeatures) -> list[FeatureCache]:
    return [make_features(client, rows) for client, rows in SITES.items()]


def test_a_killed_site_is_left_out_and_taken_back(
    caches: list[FeatureCache], loopback: Any
) -> None:
    place = loopback(caches)
    place.keys(*SITES)
    (place.folder / "hold").touch()
    server = place.serve("--clients-expected", 3, "--rounds", 8, *OPTIONS)
    place.join("hospital-a", code=HOLDING, HOLD_FROM="6")
    victim = place.join("hospital-b", code=HOLDING)
    place.join("hospital-c", code=DIVERGING)
    place.until(lambda: len(place.rounds()) == 2)
    victim.stop(signal.SIGKILL)
    server.shows("left out hospital-b: is not connected")
    again = place.join("hospital-b", name="again")
    again.shows("connected")
    (place.folder / "hold").unlink()
    assert server.wait() == 0, server.output
    assert again.wait() == 0, again.output

    lines = place.sites()
    assert [line["round"] for line in lines] == [*range(1, 9)]
    reasons = [line["left_out"] for line in lines]
    assert reasons[1] == {"hospital-c": "diverged (NaN or Inf)"}
    assert {"hospital-b": "is not connected"} in reasons
    assert lines[-1]["took_part"] == [*SITES]
    assert "hospital-b is back" in server.output
    assert place.result()["status"] == "finished"


@pytest.mark.parametrize("strategy", ["fedavg", "scaffold"])
def test_a_killed_server_is_resumed_as_if_nothing_had_been(
    strategy: str, caches: list[FeatureCache], loopback: Any, simulated: Any, distance: Any
) -> None:
    place = loopback(caches)
    place.keys(*SITES)
    (place.folder / "hold").touch()
    server = place.serve("--clients-expected", 3, "--rounds", 6, "--strategy", strategy, *OPTIONS)
    sites = [place.join(client, code=HOLDING) for client in SITES]
    place.until(lambda: len(place.rounds()) == 2)
    server.stop(signal.SIGKILL)
    again = place.serve("--resume", "run", name="again")
    (place.folder / "hold").unlink()
    assert again.wait() == 0, again.output
    assert [site.wait() for site in sites] == [0, 0, 0]

    changes = {"rounds": 6, "lr": 0.01, "weight_decay": 0.0, "strategy": strategy}
    best = simulated(caches, Settings.preset("paper", changes)).state.server.best
    assert distance(place.adapter(), best.parameters) <= 1e-5
    assert place.result()["accuracy"] == best.round.test
    assert [line["round"] for line in place.rounds()] == [*range(1, 7)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_both_sides_end_cleanly_on_a_signal(
    number: int, caches: list[FeatureCache], loopback: Any
) -> None:
    place = loopback(caches)
    place.keys(*SITES)
    (place.folder / "hold").touch()
    server = place.serve("--clients-expected", 2, "--rounds", 6, *OPTIONS)
    one, other = (place.join(client, code=HOLDING) for client in ("hospital-a", "hospital-b"))
    place.until(lambda: len(place.rounds()) == 2)
    assert one.stop(number) == 130
    assert server.stop(number) == 130
    assert "resume     fedclip serve --resume runs/run" in server.output
    assert place.result()["status"] == "interrupted"
    (place.folder / "hold").unlink()
    other.shows("waiting for 127.0.0.1")
    assert other.stop(number) == 130
    for each in (server, one, other):
        assert "Traceback" not in each.output


@pytest.mark.long
def test_ten_sites_come_and_go_and_the_server_does_not_grow(
    make_features: MakeFeatures, loopback: Any
) -> None:
    from threading import Thread

    from fedclip.federate.flower.node import SiteNode

    names = [f"site-{number}" for number in range(10)]
    place = loopback([make_features(name, 30, width=64) for name in names])
    server = place.serve(
        *("--insecure", "--clients-expected", 9, "--min-clients", 5, "--rounds", 50), *OPTIONS
    )
    done: list[str] = []

    def join(name: str) -> None:
        file = place.folder / f"{name}.h5"
        SiteNode(place.server_address, file, None, place.folder / "joined").serve()
        done.append(name)

    leaving = place.join(names[0], "--insecure")
    threads = [Thread(target=join, args=(name,), daemon=True) for name in names[1:9]]
    for thread in threads:
        thread.start()
    place.until(lambda: len(place.rounds()) >= 10)
    early = server.memory
    late = Thread(target=join, args=(names[9],), daemon=True)
    late.start()
    assert leaving.stop(signal.SIGTERM) == 130
    place.until(lambda: len(place.rounds()) >= 45)
    grown = server.memory - early
    assert server.wait() == 0, server.output
    for thread in (*threads, late):
        thread.join()
    assert sorted(done) == names[1:]
    lines = place.sites()
    assert [line["round"] for line in lines] == [*range(1, 51)]
    assert lines[0]["took_part"] == names[:9]
    assert lines[-1]["took_part"] == names[1:]
    assert lines[-1]["left_out"] == {names[0]: "is not connected"}
    assert grown < 20_000_000

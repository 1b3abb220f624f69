"""docs/federate-across-sites.md, followed as written, with this machine as the server."""

import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedclip.cache import FeatureCache

pytest.importorskip("flwr", reason="flwr is not installed: CONTRIBUTING.md")
pytestmark = [pytest.mark.flower, pytest.mark.long]

PAGE = Path(__file__).resolve().parents[3] / "docs" / "federate-across-sites.md"
SITES = ("hospital-a", "hospital-b", "hospital-c")


def commands() -> list[list[str]]:
    """Return the page's commands in order, with this machine in place of the server's name."""
    blocks = PAGE.read_text().split("```\n")[1::2]
    lines = [line for block in blocks for line in block.splitlines()]
    here = (line.replace("server.example.org", "127.0.0.1") for line in lines)
    return [shlex.split(line)[1:] for line in here if line.startswith("fedclip ")]


def test_the_page_leads_to_a_result(
    make_features: Callable[..., FeatureCache], loopback: Any
) -> None:
    place = loopback([make_features(site, 60) for site in SITES])
    keys, serve, dry, join, resume = commands()
    assert [each[0] for each in (keys, serve, dry, join, resume)] == [
        *("keys", "serve", "join", "join", "serve")
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

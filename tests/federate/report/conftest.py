"""A headless Chromium, driven over its debugging pipe: no driver, no port, no network."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), "")

# What a page needs to say that all is drawn.
_DRAWN = "document.documentElement.dataset.drawn === 'all'"


class Page:
    """A page that is open in the browser.

    Attributes:
        problems: Errors and warnings on the console, and exceptions.
        requests: Addresses of everything that was asked for.
    """

    def __init__(self, send: int, receive: int) -> None:
        self._send = send
        self._receive = os.fdopen(receive, "rb")
        self._count = 0
        self._rest = b""
        self.problems: list[str] = []
        self.requests: list[str] = []
        target = self._call("Target.createTarget", {"url": "about:blank"})["targetId"]
        attached = self._call("Target.attachToTarget", {"targetId": target, "flatten": True})
        self._session: str | None = attached["sessionId"]
        for domain in ("Runtime", "Log", "Network", "Page"):
            self._call(f"{domain}.enable")

    _session: str | None = None

    def open(self, path: Path, width: int, scheme: str = "light") -> None:
        """Open a file in a window of some width, and wait until its charts are drawn."""
        self._call(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        media = [{"name": "prefers-color-scheme", "value": scheme}]
        self._call("Emulation.setEmulatedMedia", {"features": media})
        self._call("Page.navigate", {"url": path.resolve().as_uri()})
        waiting = (
            "new Promise((done) => { const look = () => (document.readyState === 'complete' && "
            f"{_DRAWN}) ? done(true) : setTimeout(look, 20); look(); }})"
        )
        while self.run("location.protocol") != "file:":
            pass
        assert self.run(waiting) is True

    def run(self, script: str) -> Any:
        """Run an expression in the page and return its value; a promise is waited for."""
        answer = self._call(
            "Runtime.evaluate",
            {"expression": script, "awaitPromise": True, "returnByValue": True},
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def _call(self, method: str, parameters: Mapping[str, Any] | None = None) -> dict[str, Any]:
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": parameters or {}}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._send, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            read = self._receive.read1(1 << 16)
            assert read, "the browser has gone"
            self._rest += read
        line, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        self._note(message)
        return message

    def _note(self, message: Mapping[str, Any]) -> None:
        method, parameters = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(parameters["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning"):
            self.problems.append(json.dumps(parameters["args"]))
        elif method == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
            self.problems.append(parameters["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])


@contextmanager
def opened(profile: Path) -> Iterator[Page]:
    """Start a browser with an empty profile and give a page."""
    theirs, send = os.pipe()
    receive, back = os.pipe()

    def pipes() -> None:  # the browser reads from 3 and writes to 4
        ends = os.dup(theirs), os.dup(back)
        os.dup2(ends[0], 3)
        os.dup2(ends[1], 4)

    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    options += ["--remote-debugging-pipe", f"--user-data-dir={profile}", "--no-first-run"]
    browser = subprocess.Popen(
        [BROWSER, *options, "about:blank"],
        preexec_fn=pipes,
        close_fds=False,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs)
    os.close(back)
    try:
        yield Page(send, receive)
    finally:
        os.close(send)
        browser.terminate()
        browser.wait(60)


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    """Open a browser, or skip where none is installed."""
    if not BROWSER:
        pytest.skip("no chromium is installed")
    with opened(tmp_path / "profile") as open_page:
        yield open_page

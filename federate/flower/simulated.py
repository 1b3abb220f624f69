"""Flower's simulation of the same app: the server in this process, the clients in Ray's."""

import logging
import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp

from ...cache import FedclipError
from ...cache.common.progress import Progress, no_progress
from ..runs.results import RunResult
from .client_app import Answering, make_app
from .record import Record
from .server_app import Driver

# Seconds that a round waits: for ever, as no site is elsewhere.
PATIENCE = 1e6


def simulate_with_flower(
    files: Sequence[Path], record: Record, progress: Progress = no_progress
) -> RunResult:
    """Do a run with Flower's simulation.

    Args:
        files: The clients' files.
        record: Where it is recorded; it holds the plan.
        progress: Called with the rounds done.

    Raises:
        FedclipError: Ray is not installed, or Flower's simulation failed.
    """
    if find_spec("ray") is None:
        raise FedclipError("--engine flower: needs Ray; pip install 'flwr[simulation]'")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from flwr.simulation import run_simulation

    results: list[RunResult] = []
    server_app = ServerApp()

    def serve(grid: Grid, context: Context) -> None:
        results.append(Driver(grid, record, authenticated=False, progress=progress).drive())

    server_app.main()(serve)
    logging.getLogger("flwr").disabled = True
    run_simulation(
        server_app=server_app,
        client_app=make_app(_numbered([str(path.resolve()) for path in files])),
        num_supernodes=len(files),
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )
    if not results:
        raise FedclipError("--engine flower: Flower's simulation ended without a result")
    return results[0]


def _numbered(files: Sequence[str]) -> Callable[[Answering], Answering]:
    """Let each of the simulation's nodes, which are numbered, answer for a file."""

    def numbered(function: Answering) -> Answering:
        def answer(message: Message, context: Context) -> Message:
            file = files[int(context.node_config["partition-id"])]
            # Nothing leaves this machine, so class means need nobody's consent.
            known = {"cache": file, "allow-class-means": True}
            context.node_config = {**context.node_config, **known}
            return function(message, context)

        return answer

    return numbered

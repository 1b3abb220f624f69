"""Flower's simulation of the same app: the server in this process, the clients in Ray's.

It runs and records the targets of an experiment as `run_experiment` does, which trains them in this
process.
"""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp

from ...cache import FedclipError
from ...cache.common.files import check_writable
from ...cache.common.progress import Progress, no_progress
from ..data.federation import class_texts
from ..models.classifier import CLASS_TEXTS
from ..runs.experiment import KEEP_ALL, KEEP_SHARED, Experiment
from ..runs.find import show_target
from ..runs.folder import RUNS_DIR, RunFolder
from ..runs.results import RunResult
from ..runs.runner import Outcome, Targets, unfinished
from ..training.tasks import Parameters
from .client_app import Answering, make_app
from .record import Plan, Record
from .server_app import Driver
from .site import check_deployable

# Seconds that a round waits: for ever, as no site is elsewhere.
PATIENCE = 1e6


class _Record(Record):
    """The record of a simulated run: the caches are here, and `config.json` has been written."""

    def __init__(self, place: RunFolder, plan: Plan, experiment: Experiment) -> None:
        super().__init__(place.path, plan)
        self._experiment = experiment

    def write_config(self) -> None:
        """Leave the experiment's."""

    def write_parameters(self, parameters: Parameters) -> None:
        """Write the best parameters with the class vectors, if they are to be kept."""
        experiment = self._experiment
        if experiment.keep not in (KEEP_ALL, KEEP_SHARED):
            return
        vectors = self.means
        if vectors is None:
            texts = class_texts(experiment.clients[0], experiment.settings.prompts)
            vectors = torch.from_numpy(texts)
        facts = experiment.facts(self.plan.target or None)
        name = f"{experiment.model.kind}.safetensors"
        self.folder.write_parameters(name, {**parameters, CLASS_TEXTS: vectors}, facts)


def run_with_flower(
    experiment: Experiment, progress: Progress = no_progress, *, resume: bool = False
) -> Outcome:
    """Run every target with Flower's simulation, and record it.

    A run that was interrupted is begun again when the experiment is resumed, as what strategies
    keep at clients is gone with Flower's processes. An interrupt (Ctrl-C) ends the one in flight
    cleanly.

    Args:
        experiment: What to run.
        progress: Called with the rounds done of each target.
        resume: Whether to continue with what is there.

    Raises:
        FedclipError: Ray is not installed, the input makes no sense (nothing was written then),
            or Flower's simulation failed.
    """
    _check(experiment)
    plans = {target: _plan(experiment, target) for target in experiment.targets}
    if unfinished(experiment):
        check_writable(experiment.runs_dir, f"{RUNS_DIR} {experiment.runs_dir}")
    files = [experiment.cache.file(cache.client).resolve() for cache in experiment.clients]
    targets = Targets(experiment, resume=resume)
    try:
        for target, place in targets.places():
            place.clear()
            record = _Record(place, plans[target], targets.experiment)
            result = _simulate(files, record, progress)
            if result is not None:
                targets.put(result)
            if result is None or result.status == "interrupted":
                return Outcome(targets.results, interrupted=True)
    finally:
        targets.release()
    return Outcome(targets.results, interrupted=False)


def _check(experiment: Experiment) -> None:
    if find_spec("ray") is None:
        raise FedclipError("--engine flower: needs Ray; pip install 'flwr[simulation]'")
    if experiment.loggers:
        raise FedclipError(
            "--tensorboard: follows only runs in this process; leave it out, or choose another "
            "--engine"
        )
    if experiment.device.type != "cpu":
        raise FedclipError(
            f"--device {experiment.device}: --engine flower computes on the CPU; leave out --device"
        )
    check_deployable(experiment.settings)
    if not experiment.settings.strategy.shared and experiment.targets != (None,):
        raise FedclipError(
            f"--strategy {experiment.settings.name_of('strategy')}: has no model at the server "
            "that --engine flower could test a target with; pass --target none"
        )
    if shlex.quote(sys.executable) != sys.executable:
        raise FedclipError(
            f"--engine flower: Ray cannot start {sys.executable}, whose path has a space or "
            "another sign that a shell reads; install fedclip elsewhere, or choose another --engine"
        )


def _plan(experiment: Experiment, target: str | None) -> Plan:
    clients = len(experiment.clients)
    needed = clients - (target is not None)
    settings, preset = experiment.settings, experiment.preset
    return Plan(settings, preset, clients, needed, PATIENCE, target or "")


def _simulate(files: Sequence[Path], record: Record, progress: Progress) -> RunResult | None:
    """Do a run; return None if it was interrupted before it began.

    Raises:
        FedclipError: the run makes no sense, or Flower's simulation failed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns
    from flwr.simulation import run_simulation

    target = f"target {show_target(record.plan.target or None)}"
    results: list[RunResult | None] = []
    errors: list[FedclipError] = []
    server_app, stop = ServerApp(), threading.Event()

    def show(task: str, done: int, total: int, unit: str, detail: str = "") -> None:
        progress(target, done, total, unit, detail)

    def serve(grid: Grid, context: Context) -> None:
        stoppable = cast(Grid, _Stoppable(grid, stop))
        try:
            results.append(Driver(stoppable, record, authenticated=False, progress=show).drive())
        except KeyboardInterrupt:
            results.append(None)
        except FedclipError as error:
            errors.append(error)

    server_app.main()(serve)
    logging.getLogger("flwr").disabled = True
    with _interrupting(stop):
        run_simulation(
            server_app=server_app,
            client_app=make_app(_numbered([str(path) for path in files])),
            num_supernodes=len(files),
            backend_config={
                "init_args": {"log_to_driver": False},
                "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            },
        )
    for error in errors:
        raise error
    if not results:
        raise FedclipError("--engine flower: Flower's simulation ended without a result")
    return results[0]


class _Stoppable:
    """A grid that interrupts whoever uses it once `stop` is set."""

    def __init__(self, grid: Grid, stop: threading.Event) -> None:
        self._grid = grid
        self._stop = stop

    def __getattr__(self, name: str) -> Any:
        if self._stop.is_set():
            raise KeyboardInterrupt
        return getattr(self._grid, name)


@contextmanager
def _interrupting(stop: threading.Event) -> Iterator[None]:
    """Set `stop` on Ctrl-C: the server is in another thread, and Flower's loop would leave it."""

    def interrupt(number: int, frame: Any) -> None:
        stop.set()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _numbered(files: Sequence[str]) -> Callable[[Answering], Answering]:
    """Let each of the simulation's nodes, which are numbered, answer for a file."""

    def numbered(function: Answering) -> Answering:
        def answer(message: Message, context: Context) -> Message:
            file = files[int(context.node_config["partition-id"])]
            # Nothing leaves this machine, so class means need nobody's consent.
            context.node_config = {
                **context.node_config,
                "cache": file,
                "allow-class-means": True,
            }
            return function(message, context)

        return answer

    return numbered

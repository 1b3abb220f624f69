"""Times `fedclip ls` over many runs, and what the metrics of every evaluation add to a round.

``uv run python benchmarks/runs.py --cache demo`` needs a cache of one or more domains. It runs it
once, copies the run, and lists the copies; then it federates with and without metrics in turns.
CPU seconds are printed beside those of the clock, as they depend less on what else runs.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from unittest import mock

import fedclip
from fedclip.federate.data.federation import Client
from fedclip.federate.server import Round
from fedclip.federate.simulation import Run
from fedclip.federate.training.metrics import Scores
from fedclip.federate.training.tasks import Parameters


def copy_run(source: Path, into: Path, count: int) -> None:
    """Copy a run `count` times, each with a seed of its own."""
    config = json.loads((source / "config.json").read_text())
    for seed in range(count):
        folder = into / f"{source.name.removesuffix('-seed0')}-seed{seed}"
        shutil.copytree(source, folder)
        config["settings"]["seed"] = seed
        (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True))


def time_ls(runs_dir: Path, repeat: int) -> tuple[list[float], list[float]]:
    """Time the command from its start to its end, in seconds by the clock and of the CPU."""
    command = [sys.executable, "-m", "fedclip", "ls", "--runs-dir", str(runs_dir)]
    clock, cpu = [], []
    for _ in range(repeat):
        start, before = time.perf_counter(), os.times()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603
        after = os.times()
        clock.append(time.perf_counter() - start)
        cpu.append(sum(after[2:4]) - sum(before[2:4]))
    return clock, cpu


class Clock(fedclip.Callback):
    """Notes the CPU seconds of each round, with evaluation and records."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_begin(self, run: Run) -> None:
        """Start."""
        self._last = time.process_time()

    def on_round(self, run: Run, current: Round) -> None:
        """Note the time since the last round."""
        now = time.process_time()
        self.seconds.append(now - self._last)
        self._last = now


def only_accuracy(run: Run, client: Client, parameters: Parameters) -> Scores:
    """Score a client as `Run.score` does, by the accuracy alone."""
    share = run.accuracy(client, "test", parameters)
    return Scores(share, share, share)


def time_rounds(cache: str, cache_dir: Path, runs_dir: Path, repeat: int) -> Mapping[str, float]:
    """Return the median CPU milliseconds of a round, with metrics and without."""
    clocks = {"metrics": Clock(), "accuracy alone": Clock()}
    for number in range(repeat):
        for name, clock in clocks.items():
            score = Run.score if name == "metrics" else only_accuracy
            with mock.patch.object(Run, "score", score):
                fedclip.run_federation(
                    cache,
                    rounds=40,
                    preset="tuned",
                    callbacks=[clock],
                    cache_dir=cache_dir,
                    runs_dir=runs_dir,
                    name=f"{name.replace(chr(32), chr(45))}-{number}",
                    progress=False,
                )
    return {name: 1000 * statistics.median(clock.seconds) for name, clock in clocks.items()}


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", required=True)
    parser.add_argument("--cache-dir", type=Path, default=Path("caches"))
    parser.add_argument("--runs", type=int, default=5000)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        one, many = Path(work) / "one", Path(work) / "many"
        for target in ("none", "all"):
            shutil.rmtree(one, ignore_errors=True)
            shutil.rmtree(many, ignore_errors=True)
            saved = fedclip.run_federation(
                options.cache,
                target=target,
                rounds=20,
                progress=False,
                cache_dir=options.cache_dir,
                runs_dir=one,
            )
            copy_run(saved.folder, many, options.runs)
            time_ls(many, 1)
            for name, seconds in zip(("clock", "CPU"), time_ls(many, options.repeat), strict=True):
                print(
                    f"ls of {options.runs:,} runs, target {target}, {name}: "
                    f"least {min(seconds):.2f} s, median {statistics.median(seconds):.2f} s",
                    flush=True,
                )
        found = time_rounds(options.cache, options.cache_dir, Path(work) / "rounds", options.repeat)
        for name, milliseconds in found.items():
            print(f"a round with {name}: {milliseconds:.2f} ms of CPU")


if __name__ == "__main__":
    main()

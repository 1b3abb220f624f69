"""Times an ablation's runs side by side against the same runs one after the other.

``uv run python benchmarks/ablate.py --rounds 2`` times a grid of 32 runs (4 learning rates x 8
seeds) over random features of Office-Home's size: 65 classes, 512 wide, three domains that
train and one that is left out. It does them in three ways, alternating because the speed of a
machine drifts: one after the other with the plain loop, one after the other with the fastest
engine for the device, and side by side in that engine. The last two must end with the same
parameters.

With ``--commands`` it times whole commands, including start-up, loading and records: one
``fedclip ablate`` against one ``fedclip federate`` per run.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch

from fedclip.cache import EncoderFacts, FeatureCache, write_cache
from fedclip.cache.common.device import resolve_device
from fedclip.federate.data.federation import FeaturePool
from fedclip.federate.settings import Settings
from fedclip.federate.simulation import TASKS_AT_ONCE, Run, simulate
from fedclip.federate.strategies.base import SERVER
from fedclip.federate.training.engine import AUTO

ROWS = {"art": 2427, "clipart": 4365, "product": 4439, "real_world": 4357}
CLASSES, WIDTH = 65, 512
RATES = (5e-5, 1e-4, 3e-4, 1e-3)


def draw(client: str, rows: int) -> FeatureCache:
    """Draw a domain's features around its class texts, of norm 10."""
    random = np.random.default_rng([0, *client.encode()])
    texts = np.random.default_rng(0).standard_normal((CLASSES, 1, WIDTH), dtype=np.float32)
    labels = random.integers(0, CLASSES, rows).astype(np.int32)
    images = texts[labels, 0] + 3 * random.standard_normal((rows, WIDTH), dtype=np.float32)
    return FeatureCache(
        dataset="random",
        client=client,
        encoder=EncoderFacts(shared={"library": "benchmark"}),
        logit_scale=100.0,
        normalized=False,
        image_features=10 * images / np.linalg.norm(images, axis=1, keepdims=True),
        labels=labels,
        ids=tuple(map(str, range(rows))),
        digests=np.zeros((rows, 16), np.uint8),
        class_names=tuple(map(str, range(CLASSES))),
        templates=("{}",),
        text_features=texts,
    )


@dataclass(frozen=True)
class Way:
    """One way to run the grid.

    Attributes:
        engine: The back end of local training.
        tasks_at_once: Argument of `simulate`; 1 does one run after the other.
    """

    engine: str
    tasks_at_once: int


WAYS = {
    "plain, one after the other": Way("plain", 1),
    "engine, one after the other": Way(AUTO, 1),
    "engine, side by side": Way(AUTO, TASKS_AT_ONCE),
}


def make_runs(pool: FeaturePool, rounds: int, seeds: int, engine: str) -> list[Run]:
    """Make the runs of the grid."""
    grid = [Settings(lr=lr, seed=seed, rounds=rounds) for lr, seed in product(RATES, range(seeds))]
    return [
        Run(pool.federation(settings, "real_world"), settings, engine=engine) for settings in grid
    ]


def seconds(runs: Sequence[Run], tasks_at_once: int, device: torch.device) -> float:
    """Time runs from their first round to their last."""
    start = time.perf_counter()
    simulate(runs, tasks_at_once=tasks_at_once)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def furthest(runs: Sequence[Run], others: Sequence[Run]) -> float:
    """Return the largest difference between the runs' parameters, as norm over norm."""
    worst = 0.0
    for run, other in zip(runs, others, strict=True):
        one, two = (
            torch.cat([tensor.flatten() for tensor in each.state.server.strategy[SERVER].values()])
            for each in (run, other)
        )
        worst = max(worst, float((one - two).norm() / two.norm()))
    return worst


def time_commands(commands: Sequence[Sequence[str]]) -> float:
    """Run `fedclip` commands one after the other."""
    start = time.perf_counter()
    for command in commands:
        subprocess.run([sys.executable, "-m", "fedclip", *command], check=True, capture_output=True)  # noqa: S603
    return time.perf_counter() - start


def compare_commands(rounds: int, seeds: int, device: str) -> None:
    """Print the times of a grid as one command and as one command per run, over one cache."""
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work, "caches", "random", "drawn")
        folder.mkdir(parents=True)
        for client, rows in ROWS.items():
            write_cache(draw(client, rows), folder / f"{client}.h5")
        common = [
            *("--cache-dir", f"{work}/caches", "--device", device),
            *("--rounds", str(rounds), "--target", "real_world"),
        ]
        rates = ",".join(map(str, RATES))
        grid = ["ablate", "--set", f"lr={rates}", "--seeds", str(seeds), *common]
        runs = [
            ["federate", "--lr", str(lr), "--seed", str(seed), *common]
            for lr, seed in product(RATES, range(seeds))
        ]
        together = time_commands([[*grid, "--runs-dir", f"{work}/together"]])
        alone = time_commands([[*run, "--runs-dir", f"{work}/alone"] for run in runs])
    print("| device | runs | rounds | a command each s | one ablation s | factor |")
    print("|---|---|---|---|---|---|")
    print(
        f"| {device} | {len(runs)} | {rounds} | {alone:.1f} | {together:.1f} | "
        f"{alone / together:.2f} |"
    )


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Runs side by side against one after the other.")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--repeat", type=int, default=2, help="repetitions of each way")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--commands", action="store_true", help="time commands, once")
    options = parser.parse_args()
    if options.commands:
        compare_commands(options.rounds, options.seeds, options.device)
        return
    device = resolve_device(options.device)
    pool = FeaturePool([draw(*domain) for domain in ROWS.items()], None, device)
    best = dict.fromkeys(WAYS, float("inf"))
    for turn in range(options.repeat + 1):
        done = {}
        for name, way in WAYS.items():
            # The first repetition is a warm-up.
            rounds, seeds = (options.rounds, options.seeds) if turn else (1, 1)
            done[name] = make_runs(pool, rounds, seeds, way.engine)
            taken = seconds(done[name], way.tasks_at_once, device)
            if turn:
                best[name] = min(best[name], taken)
    together = best["engine, side by side"]
    headings = ("device", "runs", "rounds", *(f"{name} s" for name in WAYS))
    print(f"| {' | '.join(headings)} | plain over it | engine over it | apart by |")
    print("|---" * (len(headings) + 3) + "|")
    _, alone, side_by_side = done.values()
    cells = (
        *(str(device), str(len(alone)), str(options.rounds)),
        *(f"{taken:.2f}" for taken in best.values()),
        *(f"{taken / together:.2f}" for taken in list(best.values())[:2]),
        f"{furthest(alone, side_by_side):.1e}",
    )
    print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()

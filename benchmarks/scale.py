"""Measures the seconds per round and the memory of federations with many clients or rows.

``uv run python benchmarks/scale.py`` makes caches of random features 512 wide, runs ``fedclip
federate`` over them in a separate process, and prints the median round and the largest
resident set of that process: for 2,000 clients over 100,000 rows, of whom 1 % train in a round,
and for 1,000,000 rows, which take 2 GB of disk. ``--case`` picks one of the two.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedclip.cache import EncoderFacts, FeatureCache, write_cache

CLASSES, WIDTH = 100, 512


@dataclass(frozen=True)
class Case:
    """The size of a cache, and the options of the federation over it."""

    rows: int
    clients: int
    rounds: int
    eval_every: int


CASES = {"clients": Case(100_000, 2000, 100, 10), "rows": Case(1_000_000, 2000, 20, 10)}


def make_cache(rows: int, folder: Path) -> None:
    """Write random features as a cache of one domain."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    cache = FeatureCache(
        dataset="random",
        client="photo",
        encoder=EncoderFacts(shared={"library": "benchmark"}),
        logit_scale=100.0,
        normalized=False,
        image_features=random.standard_normal((rows, WIDTH), dtype=np.float32),
        labels=random.integers(0, CLASSES, rows).astype(np.int32),
        ids=tuple(f"photo/{row:08d}.jpg" for row in range(rows)),
        digests=np.zeros((rows, 16), np.uint8),
        class_names=tuple(map(str, range(CLASSES))),
        templates=("{}",),
        text_features=random.standard_normal((CLASSES, 1, WIDTH), dtype=np.float32),
    )
    write_cache(cache, folder / "photo.h5")


def measure(case: Case, work: Path) -> str:
    """Federate one case, and format a row of the table."""
    # In a separate process: a child's peak memory starts from its parent's.
    arguments = (case.rows, work / "caches" / "random" / "drawn")
    maker = multiprocessing.get_context("spawn").Process(target=make_cache, args=arguments)
    maker.start()
    maker.join()
    command = [
        *(sys.executable, "-m", "fedclip", "federate", "--cache-dir", str(work / "caches")),
        *("--runs-dir", str(work / "runs"), "--name", "scale", "--feature-norm", "10"),
        *("--clients", str(case.clients), "--alpha", "1", "--participation", "0.01"),
        *("--rounds", str(case.rounds), "--eval-every", str(case.eval_every)),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # noqa: S603
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
    lines = (work / "runs" / "scale" / "rounds.jsonl").read_text().splitlines()
    seconds = [json.loads(line)["seconds"] for line in lines]
    size = case.rows * WIDTH * 4
    return (
        f"| {case.rows:,} | {case.clients:,} | {np.median(seconds):.3f} | "
        f"{np.mean(seconds):.3f} | {size / 1e9:.2f} | {usage.ru_maxrss * 1024 / 1e9:.2f} |"
    )


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Seconds a round, and memory.")
    parser.add_argument("--case", choices=CASES, help="case to measure; both by default")
    options = parser.parse_args()
    lines = []
    for name in [options.case] if options.case else CASES:
        with tempfile.TemporaryDirectory() as work:
            lines.append(measure(CASES[name], Path(work)))
    print("| rows | clients | median round s | mean round s | features GB | peak memory GB |")
    print("|---|---|---|---|---|---|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()

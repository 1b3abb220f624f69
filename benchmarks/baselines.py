"""Makes the table of baselines in docs/demo.md: FedCLIP beside full models, on the demo.

``uv run python benchmarks/baselines.py --work FOLDER`` extracts the demo's dataset there and
runs each method for each seed, with every domain left out in turn. Run it again with the same
folder to resume.
"""

import argparse
import json
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedclip.cli import run

Result = Mapping[str, Any]

PAPER = ("--lr", "5e-5", "--weight-decay", "0.2")

# By name, the command and its options besides the common ones.
METHODS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "zero-shot": ("federate", ("--adapter", "none")),
    "FedCLIP": ("federate", ()),
    "FedCLIP, 40 rounds": ("federate", ("--rounds", "40")),
    "full CLIP, FedAVG": ("baseline", ("--dataset", "demo", "--strategy", "fedavg")),
    "full CLIP, FedProx": ("baseline", ("--dataset", "demo", "--strategy", "fedprox")),
    "FedCLIP, paper's optimizer": ("federate", PAPER),
    "full CLIP, FedAVG, paper's optimizer": ("baseline", ("--dataset", "demo", *PAPER)),
}


def fedclip(*arguments: str) -> None:
    """Run the command line, and exit with its code if it fails."""
    code = run(arguments)
    if code:
        raise SystemExit(code)


def result_of(work: Path, method: str, seed: int, settings: Sequence[str]) -> Result:
    """Start or resume a run, and read its result."""
    command, own = METHODS[method]
    name = f"{re.sub('[^a-z0-9]+', '-', method.lower())}-seed{seed}"
    folder = work / "runs" / name
    places = ["--runs-dir", str(work / "runs"), "--cache-dir", str(work / "caches")]
    if (folder / "config.json").is_file():
        fedclip(command, "--resume", name, *places)
    else:
        data = ["--data-dir", str(work / "data")] if command == "baseline" else []
        fedclip(command, *settings, *own, "--seed", str(seed), "--name", name, *data, *places)
    result: Result = json.loads((folder / "result.json").read_text())
    return result


def accuracy(results: Sequence[Result], figure: str) -> str:
    """Format percent as mean and standard deviation over the seeds."""
    values = [100 * result[figure] for result in results]
    return f"{statistics.mean(values):.1f} ({statistics.stdev(values):.1f})"


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="FedCLIP beside full models, on the demo.")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--weight-decay", type=float, default=0.0)
    options = parser.parse_args()
    settings = [
        *("--rounds", str(options.rounds), "--lr", str(options.lr)),
        *("--weight-decay", str(options.weight_decay)),
    ]
    data = ["--data-dir", str(options.work / "data"), "--cache-dir", str(options.work / "caches")]
    fedclip("extract", "--dataset", "demo", *data)
    table = {
        method: [result_of(options.work, method, seed, settings) for seed in range(options.seeds)]
        for method in METHODS
    }
    print("| method | participants | left out | parameters | bytes a message | seconds a round |")
    print("|---|---|---|---|---|---|")
    for method, results in table.items():
        seconds = statistics.median(result["seconds_per_round"] for result in results)
        print(
            f"| {method} | {accuracy(results, 'personalization')} "
            f"| {accuracy(results, 'generalization')} | {results[0]['trainable_parameters']:,} "
            f"| {results[0]['bytes_per_round']:,} | {seconds:.3f} |"
        )


if __name__ == "__main__":
    main()

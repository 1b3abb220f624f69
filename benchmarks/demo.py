"""Makes the figures of docs/demo.md: the demo over several draws of its dataset.

``uv run python benchmarks/demo.py --draws 1 2 3 4 5`` draws the dataset from each
seed, extracts it and federates every target; other options are those of `federate`.
"""

import argparse
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fedclip.cache import load_cache
from fedclip.cache.common.progress import Progress, show_progress
from fedclip.extract.demo.dataset import draw_dataset
from fedclip.extract.encoders.prompts import DEFAULT_TEMPLATE
from fedclip.extract.encoders.spec import DEMO_MODEL, EncoderName
from fedclip.extract.pipeline import extract
from fedclip.extract.request import Request
from fedclip.federate.runs.experiment import Experiment
from fedclip.federate.runs.find import choose_targets
from fedclip.federate.runs.runner import run_experiment
from fedclip.federate.settings import Settings

Figures = Mapping[str, Any]

PARTS = ("personalization", "generalization")


def run_draw(
    draw: int, model: str, settings: Settings, work: Path, progress: Progress
) -> list[Figures]:
    """Draw, extract and federate one dataset."""
    root = work / f"draw-{draw}"
    draw_dataset(root, progress, seed=draw)
    extraction = extract(
        Request(
            dataset=str(root),
            encoder=EncoderName.of(model, None, "fp32"),
            templates=(DEFAULT_TEMPLATE,),
            data_dir=work,
            cache_dir=work / "caches",
        ),
        progress,
    )
    clients = load_cache(extraction.folder)
    experiment = Experiment(
        cache=extraction.folder,
        clients=clients,
        settings=settings,
        model=settings.model,
        preset="paper",
        targets=choose_targets(clients, "all"),
        device=torch.device("cpu"),
        runs_dir=work / "runs",
        name=f"draw-{draw}",
    )
    names = [f"{prefix}{part}" for part in PARTS for prefix in ("", "zero_shot_")]
    return [
        {"target": result.target, **{name: getattr(result, name) for name in names}}
        for result in run_experiment(experiment, progress).results
    ]


def cell(values: Sequence[float]) -> str:
    """Format percent as mean and standard deviation over the draws."""
    return f"{100 * statistics.mean(values):.1f} ({100 * statistics.stdev(values):.1f})"


def gain(before: Sequence[float], after: Sequence[float]) -> str:
    """Format a gain in points as mean and its standard error over the draws."""
    gains = [100 * (b - a) for a, b in zip(before, after, strict=True)]
    error = statistics.stdev(gains) / len(gains) ** 0.5
    return f"{statistics.mean(gains):+.1f} (se {error:.1f})"


def row(name: str, draws: Sequence[Figures]) -> str:
    """Format a line of the table."""
    cells = []
    for part in PARTS:
        before = [result[f"zero_shot_{part}"] for result in draws]
        after = [result[part] for result in draws]
        cells += [cell(before), cell(after), gain(before, after)]
    return f"| {name} | {' | '.join(cells)} |"


def average(results: Sequence[Figures]) -> Figures:
    """Average a draw's results over its targets."""
    names = [f"{prefix}{part}" for part in PARTS for prefix in ("", "zero_shot_")]
    return {name: statistics.mean(result[name] for result in results) for name in names}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="The demo over several draws of its dataset.")
    parser.add_argument("--draws", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--model", default=DEMO_MODEL)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--weight-decay", type=float, default=0.0)
    parser.add_argument("--loss", choices=["clip", "class"], default="clip")
    options = parser.parse_args()
    settings = Settings.preset(
        "paper",
        rounds=options.rounds,
        lr=options.lr,
        weight_decay=options.weight_decay,
        loss=options.loss,
    )
    with tempfile.TemporaryDirectory() as work, show_progress() as progress:
        draws = [
            run_draw(draw, options.model, settings, Path(work), progress) for draw in options.draws
        ]
    targets = [result["target"] for result in draws[0]]
    columns = ["zero-shot", "adapted", "gain"]
    headings = [f"{who}: {column}" for who in ("participants", "left out") for column in columns]
    print(f"| left out | {' | '.join(headings)} |")
    print("|---|---|---|---|---|---|---|")
    for index, target in enumerate(targets):
        print(row(target, [results[index] for results in draws]))
    print(row("mean", [average(results) for results in draws]))


if __name__ == "__main__":
    main()

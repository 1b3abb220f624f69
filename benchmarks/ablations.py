"""Makes the tables of docs/ablations.md: strategies and adapters over one cache, seed by seed.

    uv run python benchmarks/ablations.py --cache caltech101

Runs `fedclip ablate` for each table, so finished runs are not repeated, and prints gains over
zero-shot and, seed by seed, differences to the first row.
"""

import argparse
import csv
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedclip.cli import run

PROTOCOL = ["--clients", "5", "--alpha", "0.3", "--feature-norm", "10", "--rounds", "30"]

# By grid, the option that it varies and the value that the others are compared with.
TABLES = {"strategies": ("strategy", "fedavg"), "adapters": ("adapter", "attention")}

# Two-sided 95 % points of Student's t by degrees of freedom.
T95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}

Row = Mapping[str, str]


def main() -> None:
    """Do missing runs, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", required=True)
    parser.add_argument("--seeds", type=int, default=3, choices=range(2, 11))
    parser.add_argument("--presets", nargs="+", default=["paper", "tuned"])
    parser.add_argument("--tables", nargs="+", default=list(TABLES), choices=list(TABLES))
    given = parser.parse_args()
    for grid in given.tables:
        option, first = TABLES[grid]
        for preset in given.presets:
            table = Path("runs") / f"{grid}-{preset}.csv"
            options = ["--cache", given.cache, "--preset", preset, "--seeds", str(given.seeds)]
            if run(["ablate", grid, *PROTOCOL, *options, "--csv", str(table)]):
                sys.exit(1)
            with table.open() as file:
                rows = list(csv.DictReader(file))
            print(f"\n{grid}, preset {preset}\n")
            print_table(rows, option, first)


def print_table(rows: Sequence[Row], option: str, first: str) -> None:
    """Print a line for each value of `option`, the largest gain first."""
    by_value: dict[str, list[Row]] = {}
    for row in rows:
        by_value.setdefault(row[option], []).append(row)
    reference = by_value[first]
    heading = f"| {option} | pooled | less {first} | personal | less {first} |"
    lines = []
    for value, own in by_value.items():
        pooled = points(own, "pooled", "zero_shot_pooled")
        cells = [value, spread(pooled), difference(own, reference, "pooled")]
        if own[0]["personal_mean"]:
            personal = points(own, "personal_mean", "zero_shot_personal_mean")
            cells += [spread(personal), difference(own, reference, "personal_mean")]
        else:
            cells += ["", ""]
        lines.append((statistics.fmean(pooled), f"| {' | '.join(cells)} |"))
    print(heading, "|---|---|---|---|---|", sep="\n")
    print(*(line for _, line in sorted(lines, reverse=True)), sep="\n")


def points(rows: Sequence[Row], figure: str, before: str) -> list[float]:
    """Return the gain of each seed in points."""
    return [100 * (float(row[figure]) - float(row[before])) for row in rows]


def difference(own: Sequence[Row], reference: Sequence[Row], figure: str) -> str:
    """Compare seed by seed; a star means that 0 is outside the 95 % interval.

    A personal model is compared with the reference's model for the same participants.
    """
    if own is reference:
        return ""
    other = "personalization" if figure == "personal_mean" else figure
    pairs = zip(own, reference, strict=True)
    differences = [100 * (float(a[figure]) - float(b[other])) for a, b in pairs]
    middle = statistics.fmean(differences)
    error = statistics.stdev(differences) / len(differences) ** 0.5
    star = "*" if abs(middle) > T95[len(differences) - 1] * error else ""
    return f"{middle:+.2f} (se {error:.2f}){star}"


def spread(values: Sequence[float]) -> str:
    """Format mean and standard deviation."""
    return f"{statistics.fmean(values):+.2f} ({statistics.stdev(values):.2f})"


if __name__ == "__main__":
    main()

"""A run's results as people read them."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from .evaluate import mean

# With more clients than this a table has a column per domain instead.
CLIENT_COLUMNS = 8


def results_table(results: Sequence[Mapping[str, Any]], domain_of: Mapping[str, str]) -> Table:
    """Lay out one row per target: zero-shot beside adapted accuracy, in percent.

    Args:
        results: As `result.json` has them.
        domain_of: The domain of each client.
    """
    clients = sorted({client for result in results for client in result["accuracy"]})
    groups = {client: [client] for client in clients}
    if len(clients) > CLIENT_COLUMNS:
        groups = {}
        for client in clients:
            groups.setdefault(domain_of[client], []).append(client)
    table = Table(
        box=SIMPLE_HEAD,
        title="accuracy in %, zero-shot > adapted",
        title_justify="left",
    )
    table.add_column("target")
    headings = [
        f"{name} ({len(members)})" if len(members) > 1 else name for name, members in groups.items()
    ]
    for heading in (*headings, "generalization", "personalization", "mean", "round"):
        table.add_column(heading, justify="right")
    for result in results:
        cells = [
            _pair(
                _mean_of(result["zero_shot"], members),
                _mean_of(result["accuracy"], members),
            )
            for members in groups.values()
        ]
        summary = [
            _pair(result[f"zero_shot_{name}"], result[name])
            for name in ("generalization", "personalization", "mean")
        ]
        table.add_row(
            result["target"] or "none",
            *cells,
            *summary,
            str(result["best_round"] or "-"),
        )
    if len(results) > 1:
        averages = [
            _pair(
                mean(result[f"zero_shot_{name}"] for result in results),
                mean(result[name] for result in results),
            )
            for name in ("generalization", "personalization", "mean")
        ]
        table.add_section()
        table.add_row("mean", *[""] * len(groups), *averages, "")
    return table


def cost_line(result: Mapping[str, Any], encoder_parameters: int | None) -> str:
    """Say what a round costs, and how much smaller the adapter is than the whole encoder."""
    trainable = result["trainable_parameters"]
    line = (
        f"{trainable:,} trainable parameters, {result['bytes_per_round']:,} bytes per round and "
        f"client each way, {result['seconds_per_round']:.3f} s per round"
    )
    if encoder_parameters:
        line += (
            f"; {encoder_parameters / trainable:.0f} times fewer parameters than the encoder's "
            f"{encoder_parameters:,}"
        )
    return line


def _mean_of(by_client: Mapping[str, float], members: Sequence[str]) -> float | None:
    present = [by_client[member] for member in members if member in by_client]
    return mean(present) if present else None


def _pair(before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return "-"
    return f"{100 * before:.2f} > {100 * after:.2f}"

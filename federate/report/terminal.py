"""A run's results as people read them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from ..ablations.runner import FIGURES, Spread, Summary
from ..runs.cost import Cost
from ..runs.folder import summary_of
from ..training.evaluate import mean

# With more clients than this a table has a column per domain instead.
CLIENT_COLUMNS = 8

_SUMMARY = ("generalization", "personalization", "personal_mean", "mean")


def results_table(results: Sequence[Mapping[str, Any]]) -> Table:
    """Lay out one row per target: zero-shot beside adapted accuracy, in percent.

    Args:
        results: One or more, as `result.json` has them.
    """
    columns = _columns(results)
    summary = [name for name in _SUMMARY if any(result[name] is not None for result in results)]
    trained = "adapted"
    if results[0].get("model"):
        trained = f"all of {describe_model(results[0]['model'])} trained"
    title = f"accuracy in %, zero-shot > {trained}"
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left")
    table.add_column("target")
    for heading in (*columns, *map(_heading, summary), "round"):
        table.add_column(heading, justify="right")
    for result in results:
        before, after = result["zero_shot"], result["accuracy"]
        cells = [
            _pair(_mean(before, members), _mean(after, members)) for members in columns.values()
        ]
        best_round = str(result["best_round"] or "-")
        table.add_row(
            result["target"] or "none", *cells, *_summary_cells(result, summary), best_round
        )
    if len(results) > 1:
        table.add_section()
        means = _summary_cells(summary_of(results), summary)
        table.add_row("mean", *[""] * len(columns), *means, "")
    return table


def ablation_table(summaries: Sequence[Summary]) -> Table:
    """Lay out one row per setting: mean and standard deviation over seeds, in percent.

    Args:
        summaries: One or more, best first.
    """
    table = Table(
        box=SIMPLE_HEAD,
        title="accuracy in %, and gain over zero-shot in points: mean (standard deviation), "
        "the best mean first",
        title_justify="left",
    )
    known = {name for name in FIGURES if any(each.accuracy(name) for each in summaries)}
    if "generalization" not in known:  # without a target personalization is the mean
        known.discard("personalization")
    figures = [name for name in FIGURES if name in known | {"mean", "pooled"}]
    for heading in (*summaries[0].values, "runs"):
        table.add_column(heading)
    for figure in figures:
        table.add_column(_heading(figure), justify="right")
        table.add_column("gain", justify="right")
    for each in summaries:
        cells = [
            cell
            for figure in figures
            for cell in (_spread(each.accuracy(figure)), _spread(each.gain(figure), sign="+"))
        ]
        runs = f"{len(each.results)} of {len(each.entries)}"
        table.add_row(*each.values.values(), runs, *cells)
    return table


def _spread(spread: Spread | None, sign: str = "") -> str:
    if spread is None:
        return "-"
    mean, deviation = spread
    return f"{100 * mean:{sign}.2f}" + ("" if deviation is None else f" ({100 * deviation:.2f})")


def _columns(results: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Give each column's heading its clients: one each, or a domain's where they are many."""
    domains = {client: domain for result in results for client, domain in result["domains"].items()}
    if len(domains) <= CLIENT_COLUMNS:
        return {client: [client] for client in sorted(domains)}
    return {
        f"{domain} (mean)": [client for client in sorted(domains) if domains[client] == domain]
        for domain in sorted(set(domains.values()))
    }


def cost_line(result: Mapping[str, Any], encoder_parameters: int | None) -> str:
    """Say what a round costs, and how much smaller the adapter is than the whole encoder."""
    trainable = result["trainable_parameters"]
    line = (
        f"{trainable:,} trainable parameters, {result['bytes_per_round']:,} bytes per round and "
        f"client each way, {_seconds(result['seconds_per_round'])} per round"
    )
    if encoder_parameters and trainable:
        line += (
            f"; {encoder_parameters / trainable:.0f} times fewer parameters than the encoder's "
            f"{encoder_parameters:,}"
        )
    return line


def cost_table(small: Cost, whole: Cost, encoding: int, samples: int, messages: int) -> Table:
    """Lay out what an adapter costs beside a whole model.

    Args:
        small: The adapter's cost.
        whole: The whole model's.
        encoding: Multiply-adds of encoding an image, which the adapter needs once.
        samples: Of the local epoch that was timed.
        messages: Sent in a whole training: rounds by clients by two ways.
    """
    table = Table(box=SIMPLE_HEAD)
    table.add_column("cost")
    for heading in ("adapter", "whole model", "times"):
        table.add_column(heading, justify="right")

    def add(what: str, one: float, other: float, show: Callable[[float], str]) -> None:
        times = f"{other / one:,.0f}" if one else "-"
        table.add_row(what, show(one), show(other), times)

    add("trainable parameters", small.parameters, whole.parameters, _whole_number)
    add("bytes per round, client and way", small.message, whole.message, _whole_number)
    add("bytes of a training", small.message * messages, whole.message * messages, _whole_number)
    add("multiply-adds to classify a sample", small.inference, whole.inference, _whole_number)
    add("multiply-adds to train on a sample", small.training, whole.training, _whole_number)
    add("multiply-adds to encode an image, once", encoding, 0, _whole_number)
    add(f"seconds a local epoch of {samples:,}", small.epoch, whole.epoch, "{:,.3f}".format)
    return table


def _whole_number(value: float) -> str:
    return f"{value:,.0f}"


def describe_model(facts: Mapping[str, Any]) -> str:
    """Name a whole model, and where there is a choice the weights that it began from."""
    weights = f" ({facts['weights']} weights)" if "weights" in facts else ""
    return f"{facts['backbone']}{weights}"


def _seconds(seconds: float | None) -> str:
    return "no seconds" if seconds is None else f"{seconds:.3f} s"


def _mean(by_client: Mapping[str, float | None], members: Sequence[str]) -> float | None:
    values = [by_client[member] for member in members if member in by_client]
    known = [value for value in values if value is not None]
    return mean(known) if known and len(known) == len(values) else None


def _summary_cells(result: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    return [_pair(result[f"zero_shot_{name}"], result[name]) for name in names]


def _heading(figure: str) -> str:
    return figure.replace("_", " ")


def _pair(before: float | None, after: float | None) -> str:
    if after is None:
        return "-"
    first = "-" if before is None else f"{100 * before:.2f}"
    return f"{first} > {100 * after:.2f}"

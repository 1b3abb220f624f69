"""Settings, results and costs as people read them in a terminal."""

from collections.abc import Callable, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from ...cache.common.fields import options_of, show_value
from ..ablations.summary import Spread, Summary
from ..models.full import describe_backbone
from ..runs.cost import Cost
from ..runs.experiment import Experiment
from ..runs.results import FIGURES, ByClient, Result, RunResult, summary_of
from ..settings import Settings
from ..training.evaluate import mean

# With more clients than this a table has a column per domain instead.
CLIENT_COLUMNS = 8

_SUMMARY = ("generalization", "personalization", "personal_mean", "mean")


def results_table(results: Sequence[RunResult]) -> Table:
    """Lay out one row per target: zero-shot beside adapted accuracy, in percent.

    Args:
        results: One or more.
    """
    columns, model = _columns(results), results[0].model
    summary = [
        name for name in _SUMMARY if any(getattr(each, name) is not None for each in results)
    ]
    trained = "adapted" if model is None else f"all of {describe_backbone(model)} trained"
    title = f"accuracy in %, zero-shot > {trained}"
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left")
    table.add_column("target")
    for heading in (*columns, *map(_heading, summary), "round"):
        table.add_column(heading, justify="right")
    for result in results:
        before, after = result.zero_shot, result.accuracy
        cells = [
            _pair(_mean(before, members), _mean(after, members)) for members in columns.values()
        ]
        best_round = str(result.best_round or "-")
        table.add_row(result.target or "none", *cells, *_summary_cells(result, summary), best_round)
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


def _columns(results: Sequence[RunResult]) -> dict[str, list[str]]:
    """Return the clients of each column by its heading: one each, or of a domain if many."""
    domains = {client: domain for result in results for client, domain in result.domains.items()}
    if len(domains) <= CLIENT_COLUMNS:
        return {client: [client] for client in sorted(domains)}
    return {
        f"{domain} (mean)": [client for client in sorted(domains) if domains[client] == domain]
        for domain in sorted(set(domains.values()))
    }


def cost_line(result: Result, encoder_parameters: int | None) -> str:
    """Describe what a round costs, and how much smaller the adapter is than the encoder."""
    trainable = result.trainable_parameters
    line = (
        f"{trainable:,} trainable parameters, {result.bytes_per_round:,} bytes per round and "
        f"client each way, {_seconds(result.seconds_per_round)} per round"
    )
    if encoder_parameters and trainable:
        line += (
            f"; {encoder_parameters / trainable:.0f} times fewer parameters than the encoder's "
            f"{encoder_parameters:,}"
        )
    return line


def cost_table(small: Cost, full: Cost, encoding: int, samples: int, messages: int) -> Table:
    """Lay out what an adapter costs beside a full model.

    Args:
        small: The adapter's cost.
        full: The full model's.
        encoding: Multiply-adds of encoding an image, which the adapter needs once.
        samples: Of the local epoch that was timed.
        messages: Sent in a whole training: rounds by clients by two ways.
    """
    table = Table(box=SIMPLE_HEAD)
    table.add_column("cost")
    for heading in ("adapter", "full model", "times"):
        table.add_column(heading, justify="right")

    def add(what: str, one: float, other: float, show: Callable[[float], str]) -> None:
        times = f"{other / one:,.0f}" if one else "-"
        table.add_row(what, show(one), show(other), times)

    add("trainable parameters", small.parameters, full.parameters, _integer)
    add("bytes per round, client and way", small.message, full.message, _integer)
    add("bytes of a training", small.message * messages, full.message * messages, _integer)
    add("multiply-adds to classify a sample", small.inference, full.inference, _integer)
    add("multiply-adds to train on a sample", small.training, full.training, _integer)
    add("multiply-adds to encode an image, once", encoding, 0, _integer)
    add(f"seconds a local epoch of {samples:,}", small.epoch, full.epoch, "{:,.3f}".format)
    return table


def _integer(value: float) -> str:
    return f"{value:,.0f}"


def _seconds(seconds: float | None) -> str:
    return "no seconds" if seconds is None else f"{seconds:.3f} s"


def _mean(by_client: ByClient, members: Sequence[str]) -> float | None:
    values = [by_client[member] for member in members if member in by_client]
    known = [value for value in values if value is not None]
    return mean(known) if known and len(known) == len(values) else None


def _summary_cells(result: Result, names: Sequence[str]) -> list[str]:
    return [_pair(*result.figure(name)) for name in names]


def _heading(figure: str) -> str:
    return figure.replace("_", " ")


def _pair(before: float | None, after: float | None) -> str:
    if after is None:
        return "-"
    first = "-" if before is None else f"{100 * before:.2f}"
    return f"{first} > {100 * after:.2f}"


def describe_settings(experiment: Experiment) -> list[str]:
    """Describe the settings in force."""
    settings, first = experiment.settings, experiment.clients[0]
    rows = sum(len(cache.labels) for cache in experiment.clients)
    domains = ", ".join(cache.client for cache in experiment.clients)
    split = ""
    if settings.partition is not None:
        split = f", split among {settings.partition.clients} clients each by "
        split += settings.partition.title
    if settings.strategy.pooled:
        split += ", their training samples brought together"
    if settings.data_fraction < 1:
        split += f", {100 * settings.data_fraction:g} % of their training parts"
    prompts = " + ".join(map(repr, settings.prompts or first.templates[:1]))
    norm = "raw" if settings.feature_norm is None else f"of norm {settings.feature_norm:g}"
    over_features = experiment.model.stackable
    inputs = f"features {norm}" if over_features else "images"
    lines = [
        f"domains    {domains}: {rows} rows of {first.embed_dim} features, "
        + f"{len(first.class_names)} classes{split}",
        f"settings   preset {experiment.preset}: lr {settings.lr:g}, "
        + f"weight decay {settings.weight_decay:g}, loss {settings.name_of('loss')}, "
        + f"batch size {settings.batch_size}, local epochs {settings.local_epochs}, "
        + f"weighting {settings.weighting}, {experiment.model.title}, "
        + f"strategy {_strategy(settings)}, optimizer {settings.optimizer}",
        f"           {_rounds(settings)}, {inputs}, prompt {prompts}, "
        + f"seed {settings.seed}, device {experiment.device}",
    ]
    if first.encoder.get("random_weights"):
        lines.append(
            "           (RANDOM WEIGHTS: these features mean nothing; do not report their results)"
        )
    if first.normalized and settings.feature_norm is None and over_features:
        lines.append(
            "           (these features have norm 1, and the paper's adapter takes raw ones: "
            "try --feature-norm 10)"
        )
    return lines


def _strategy(settings: Settings) -> str:
    strategy = settings.strategy
    own = [
        f"{name.replace('_', ' ')} {show_value(getattr(strategy, name))}"
        for name in options_of(type(strategy))
    ]
    return settings.name_of("strategy") + (f" with {', '.join(own)}" if own else "")


def _rounds(settings: Settings) -> str:
    """Describe the rounds: how many, and what is left out of them."""
    said = f"{settings.rounds} rounds"
    if isinstance(settings.participation, int):
        said += f" of {settings.participation} clients"
    elif settings.participation < 1:
        said += f" of {100 * settings.participation:g} % of the clients"
    return said + (f", evaluated every {settings.eval_every}" if settings.eval_every > 1 else "")

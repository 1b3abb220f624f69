"""Settings, results and costs as people read them in a terminal."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...cache import FeatureCache
from ...cache.common.fields import options_of, show_value
from ...cache.common.tables import Cell, Column, Compound, Show, Table, percent, points, thousands
from ...cache.common.text import counted, inflected
from ..ablations.grid import BEST, show
from ..ablations.summary import Summary
from ..data.federation import class_vectors_of, logit_scale_of
from ..models.full import describe_backbone
from ..runs.cost import Cost
from ..runs.experiment import Experiment
from ..runs.find import show_target
from ..runs.results import FIGURES, ByClient, Result, RunResult, summary_of
from ..settings import MEANS, TEXT, Settings
from ..training.metrics import mean
from .cells import Accuracy, Interval, MeasuredAccuracy

# With more clients than this a table has a column per domain instead.
CLIENT_COLUMNS = 8

_SUMMARY = ("generalization", "personalization", "personal_mean", "mean")


@dataclass(frozen=True)
class Finished(Compound):
    """How many of the runs of a setting are finished."""

    finished: int
    runs: int

    @property
    def rank(self) -> int:
        """The number of finished runs."""
        return self.finished

    def text(self, show: Show) -> str:
        """Return `finished of runs`."""
        return f"{show(self.finished)} of {show(self.runs)}"

    def latex(self, show: Show) -> str:
        """Return the same."""
        return rf"{show(self.finished)} \mbox{{ of }} {show(self.runs)}"


def results_table(results: Sequence[RunResult], experiment: Experiment | None = None) -> Table:
    """Lay out one row per target: zero-shot beside adapted accuracy.

    Args:
        results: One or more.
        experiment: What they are of: rounds and targets that are left are shown.
    """
    clients, model = _columns(results), results[0].model
    summary = [
        name for name in _SUMMARY if any(getattr(each, name) is not None for each in results)
    ]
    done = [result.target for result in results]
    waiting = [each for each in (experiment.targets if experiment else ()) if each not in done]
    final = not waiting and all(result.status == "finished" for result in results)
    columns = [
        Column("target"),
        *(Column(heading, show=percent) for heading in (*clients, *map(_heading, summary))),
        Column("best round"),
        Column("rounds", hidden=True),
        Column("status", hidden=final),
    ]
    rows: list[list[Cell]] = [
        [
            show_target(result.target),
            *(_accuracy(result, members) for members in clients.values()),
            *(Accuracy(*result.figure(name)) for name in summary),
            result.best_round or None,
            result.rounds,
            _status(result, experiment),
        ]
        for result in results
    ]
    empty: list[Cell] = [None] * (len(clients) + len(summary) + 2)
    rows += [[show_target(target), *empty, "not started"] for target in waiting]
    footer: list[list[Cell]] = []
    if len(results) > 1:
        means = [Accuracy(*summary_of(results).figure(name)) for name in summary]
        label = f"mean of {len(results)}" if waiting else "mean"
        footer.append([label, *[None] * len(clients), *means, None, None, None])
    return Table(columns, rows, _caption(results, clients, model, final=final), footer)


def _status(result: RunResult, experiment: Experiment | None) -> str:
    if result.status == "finished" or experiment is None:
        return result.status
    return f"round {result.rounds} of {experiment.settings.rounds}, {result.status}"


def _caption(
    results: Sequence[RunResult],
    clients: Mapping[str, Sequence[str]],
    model: Mapping[str, Any] | None,
    *,
    final: bool,
) -> str:
    trained = "adapted" if model is None else f"all of {describe_backbone(model)} trained"
    caption = f"accuracy in %, zero-shot > {trained}"
    sizes = {heading: _sizes(results, members) for heading, members in clients.items()}
    if len({*sizes.values()}) == 1:
        samples = f"{sizes.popitem()[1]} each"
    else:
        samples = ", ".join(f"{heading} {size}" for heading, size in sizes.items())
    caption += f". Test samples: {samples}."
    return caption if final else f"NOT FINAL: {caption}"


def _sizes(results: Sequence[RunResult], members: Sequence[str]) -> str:
    """Return a column's number of test samples, and as the target where it was left out."""
    own, left_out = None, None
    for result in results:
        if result.target in members:
            left_out = _samples(result, members)
        else:
            own = _samples(result, members)
    if own is None or left_out is None:
        return str(own or left_out or "unknown")
    return f"{own} ({left_out} as the target)"


def ablation_table(
    summaries: Sequence[Summary],
    differences: Sequence[Interval | None] = (),
    baseline: str = BEST,
) -> Table:
    """Lay out one row per setting: mean and standard deviation over seeds, gain over zero-shot.

    Args:
        summaries: One or more, best first.
        differences: Of each one's figure to its baseline.
        baseline: What they are compared with, as `--baseline` spells it.
    """
    known = {name for name in FIGURES if any(each.accuracy(name) for each in summaries)}
    if "generalization" not in known:  # without a target personalization is the mean
        known.discard("personalization")
    figures = [name for name in FIGURES if name in known | {"mean", "pooled"}]
    columns = [*(Column(name, show=show) for name in summaries[0].values), Column("runs")]
    for figure in figures:
        columns.append(Column(_heading(figure), key=figure, show=percent, best="max"))
        columns.append(Column("gain", key=f"{figure}_gain", show=points, best="max", joined=True))
    rows: list[list[Cell]] = [
        [
            *map(_value, each.values.values()),
            Finished(len(each.results), len(each.entries)),
            *(cell for figure in figures for cell in (each.accuracy(figure), each.gain(figure))),
        ]
        for each in summaries
    ]
    caption = (
        "accuracy in %, and gain over zero-shot in points: mean (standard deviation), "
        f"the best {summaries[0].figure} first"
    )
    if any(differences):
        figure = summaries[0].figure
        named = "the best setting" if baseline == BEST else baseline
        columns.append(Column(f"{figure} less {baseline}", key="difference", show=points))
        rows = [[*row, each] for row, each in zip(rows, differences, strict=True)]
        caption += (
            f"; {figure} less that of {named}, image by image, with its 95 % interval, * beyond "
            "noise"
        )
    statuses = Counter(entry.status for each in summaries for entry in each.entries)
    if statuses["interrupted"] or statuses["not started"]:
        left = f"{statuses['finished']} of {counted(statuses.total(), 'run')} finished"
        caption = f"NOT FINAL, {left}: {caption}"
    labels = len(summaries[0].values)
    return Table(columns, rows, caption, labels=labels)


def _value(value: Any) -> Cell:
    """Return an option's value as a cell: a number as it is."""
    return value if isinstance(value, int | float) else show(value)


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
        f"{trainable:,} trainable {inflected(trainable, 'parameter')}, "
        f"{result.bytes_per_round:,} {inflected(result.bytes_per_round, 'byte')} per round and "
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
    pairs: list[tuple[str, float, float]] = [
        ("trainable parameters", small.parameters, full.parameters),
        ("bytes per round, client and way", small.message, full.message),
        ("bytes of a training", small.message * messages, full.message * messages),
        ("multiply-adds to classify a sample", small.inference, full.inference),
        ("multiply-adds to train on a sample", small.training, full.training),
        ("multiply-adds to encode an image, once", encoding, 0),
        (f"seconds a local epoch of {samples:,}", small.epoch, full.epoch),
    ]
    columns = [
        Column("cost"),
        Column("adapter", show=_number),
        Column("full model", show=_number),
        Column("times", show=thousands),
    ]
    return Table(columns, [(*pair, pair[2] / pair[1] if pair[1] else None) for pair in pairs])


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3f}"


def _seconds(seconds: float | None) -> str:
    return "no seconds" if seconds is None else f"{seconds:.3f} s"


def _mean(by_client: ByClient, members: Sequence[str]) -> float | None:
    values = [by_client[member] for member in members if member in by_client]
    known = [value for value in values if value is not None]
    return mean(known) if known and len(known) == len(values) else None


def _accuracy(result: RunResult, members: Sequence[str]) -> MeasuredAccuracy:
    before, after = (_mean(each, members) for each in (result.zero_shot, result.accuracy))
    return MeasuredAccuracy(before, after, _samples(result, members))


def _samples(result: RunResult, members: Sequence[str]) -> int | None:
    """Return how many test samples some clients have together; None if they are unknown."""
    sizes = [result.test_samples[each] for each in members if each in result.test_samples]
    return sum(sizes) if sizes else None


def _heading(figure: str) -> str:
    return figure.replace("_", " ")


def describe_settings(experiment: Experiment) -> list[str]:
    """Describe the settings in force."""
    settings, first = experiment.settings, experiment.clients[0]
    rows = sum(len(cache.labels) for cache in experiment.clients)
    domains = ", ".join(cache.client for cache in experiment.clients)
    split = ""
    if settings.partition is not None:
        split = f", split among {counted(settings.partition.clients, 'client')} each by "
        split += settings.partition.title
    if settings.strategy.pooled:
        split += ", their training samples brought together"
    if settings.data_fraction < 1:
        split += f", {100 * settings.data_fraction:g} % of their training parts"
    over_features, norm = experiment.model.stackable, settings.feature_norm
    inputs = "images"
    if over_features:
        inputs = "features raw" if norm is None else f"features of norm {show_value(norm)}"
    lines = [
        f"domains    {domains}: {counted(rows, 'row')} of "
        + f"{counted(first.embed_dim, 'feature')}, "
        + f"{counted(len(first.class_names), 'class', 'classes')}{split}",
        f"settings   preset {experiment.preset}: lr {show_value(settings.lr)}, "
        + f"weight decay {show_value(settings.weight_decay)}, loss {settings.name_of('loss')}, "
        + f"batch size {settings.batch_size}, local epochs {settings.local_epochs}, "
        + f"weighting {settings.weighting}, {experiment.model.title}, "
        + f"strategy {_strategy(settings)}, optimizer {settings.optimizer}",
        f"           {_rounds(settings)}, {inputs}, {_class_vectors(settings, first)}, "
        + f"{_logit_scale(settings, first)}seed {settings.seed}, device {experiment.device}",
    ]
    if first.encoder.get("random_weights"):
        lines.append(
            "           (RANDOM WEIGHTS: these features mean nothing; do not report their results)"
        )
    if first.normalized and norm is None and over_features:
        lines.append(
            "           (these features have norm 1, and the paper's adapter takes raw ones: "
            "try --feature-norm 10)"
        )
    return lines


def _logit_scale(settings: Settings, first: FeatureCache) -> str:
    """Say what multiplies similarities, and why, unless it is the encoder's own."""
    scale = logit_scale_of(first, settings)
    if scale == first.logit_scale:
        return ""
    why = " (CLIP's, as the encoder has none)" if settings.logit_scale is None else ""
    return f"logit scale {show_value(scale)}{why}, "


def _class_vectors(settings: Settings, first: FeatureCache) -> str:
    kind = class_vectors_of(first, settings)
    if kind == TEXT:
        return f"prompt {' + '.join(map(repr, settings.prompts or first.templates[:1]))}"
    size = len(first.class_names) * (first.embed_dim + 1) * 8
    means = f"class means (sums and counts, {size:,} bytes per client, once)"
    return means if kind == MEANS else f"a linear head that starts at {means}"


def _strategy(settings: Settings) -> str:
    strategy = settings.strategy
    own = [
        f"{name.replace('_', ' ')} {show_value(getattr(strategy, name))}"
        for name in options_of(type(strategy))
    ]
    return settings.name_of("strategy") + (f" with {', '.join(own)}" if own else "")


def _rounds(settings: Settings) -> str:
    """Describe the rounds: how many, and what is left out of them."""
    said = counted(settings.rounds, "round")
    if isinstance(settings.participation, int):
        said += f" of {counted(settings.participation, 'client')}"
    elif settings.participation < 1:
        said += f" of {100 * settings.participation:g} % of the clients"
    return said + (f", evaluated every {settings.eval_every}" if settings.eval_every > 1 else "")

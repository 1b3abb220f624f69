"""The charts of the report, and of runs in a notebook, as Vega-Lite specifications."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..training.metrics import BINS, Tally
from .collect import Collection, Setting
from .features import FeatureMap, Turned
from .vega import (
    ACCENT,
    LOSS,
    PICKED,
    ZERO_SHOT_COLOR,
    Spec,
    by_name,
    by_number,
    by_share,
    legend_pick,
    specification,
    tooltip,
)

# More clients than this are shown by domain, and of more settings or classes the first ones.
CLIENTS_SHOWN = 8
SETTINGS_SHOWN = 8
CLASSES_SHOWN = 30


# Fewer than the colors, so that color and shape together repeat late.
_SHAPES = ("circle", "square", "triangle-up", "cross", "diamond", "triangle-down", "triangle-left")


@dataclass(frozen=True)
class Chart:
    """A chart and what it says.

    Attributes:
        name: Names its file and its place in the page.
        title: What it shows.
        text: How to read it.
        spec: The Vega-Lite specification; its width is that of its container.
        wide: Whether it takes the whole width of the page.
    """

    name: str
    title: str
    text: str
    spec: Spec
    wide: bool = False


def over_rounds(setting: Setting, *, wide: bool) -> Chart | None:
    """Draw each client's accuracy over rounds; means over seeds and targets."""
    domains: dict[str, str] = {}
    values: dict[tuple[str, int], list[float]] = {}
    before: dict[str, list[float]] = {}
    for result, lines in setting.rounds:
        domains |= result.domains
        for client, value in result.zero_shot.items():
            if value is not None:
                before.setdefault(client, []).append(value)
        for line in lines:
            for client, value in line.test.items():
                values.setdefault((client, line.number), []).append(value)
    if not values:
        return None
    many = len(domains) > CLIENTS_SHOWN
    groups = {client: domains.get(client, client) if many else client for client in domains}
    merged: dict[tuple[str, int], list[float]] = {}
    for (client, number), found in values.items():
        merged.setdefault((groups.get(client, client), number), []).extend(found)
    names = sorted({name for name, _ in merged})[:CLIENTS_SHOWN]
    start: dict[str, list[float]] = {}
    for client, found in before.items():
        start.setdefault(groups.get(client, client), []).extend(found)
    rows = [
        {"of": name, "round": number, "accuracy": statistics.fmean(found)}
        for (name, number), found in sorted(merged.items(), key=lambda each: each[0][1])
        if name in names
    ]
    zero = [
        {"of": name, "accuracy": statistics.fmean(found)}
        for name, found in start.items()
        if name in names
    ]
    noun = "domain" if many else "client"
    color = by_name("of", None, scale={"domain": names})
    tip = tooltip(("of", noun, None), ("accuracy", "accuracy", ".2%"))
    return Chart(
        "accuracy-over-rounds",
        "Accuracy over rounds",
        f"Test accuracy by {noun}, the mean over seeds and targets."
        + (" Dashed lines are zero-shot." if zero else "")
        + " Click a name to see it alone.",
        specification(
            rows,
            300,
            params=[],
            layer=[
                {
                    "params": legend_pick("picked"),
                    "mark": {"type": "line", "strokeWidth": 2, "point": {"size": 14}},
                    "encoding": {
                        "x": by_number("round", "round", axis={"tickMinStep": 1, "grid": False}),
                        "y": by_share("accuracy", "test accuracy"),
                        "color": color,
                        "opacity": PICKED,
                        "tooltip": [*tip, *tooltip(("round", "round", "d"))],
                    },
                },
                *_dashed(
                    zero,
                    y=by_share("accuracy", "test accuracy"),
                    color=color,
                    opacity=PICKED,
                    tooltip=tip,
                ),
            ],
        ),
        wide=wide,
    )


def _dashed(rows: Sequence[Mapping[str, Any]], **encoding: Any) -> list[Spec]:
    """Return a layer of dashed lines across a chart; none without rows, which have no extent."""
    if not rows:
        return []
    mark = {"type": "rule", "strokeDash": [5, 4], "strokeWidth": 1.5}
    return [{"data": {"values": [*rows]}, "mark": mark, "encoding": encoding}]


def against_bytes(collection: Collection) -> Chart | None:
    """Draw the mean accuracy of the first settings against what crossed the network."""
    rows, names = [], []
    shown = collection.settings[:SETTINGS_SHOWN]
    for setting, name in zip(shown, _short_names(shown), strict=True):
        points: dict[int, list[tuple[float, float]]] = {}
        for _, lines in setting.rounds:
            for line in lines:
                point = (line.bytes / 1e6, statistics.fmean(line.test.values()))
                points.setdefault(line.number, []).append(point)
        for number, found in sorted(points.items()):
            sent, accuracy = (statistics.fmean(each) for each in zip(*found, strict=True))
            rows.append({"of": name, "round": number, "sent": sent, "accuracy": accuracy})
        if points:
            names.append(name)
    if not rows:
        return None
    before = collection.best.spread("mean", zero_shot=True)
    zero = [] if before is None else [{"of": "zero-shot", "accuracy": before.mean}]
    more = len(collection.settings) - SETTINGS_SHOWN
    said = f" The best {SETTINGS_SHOWN} of {len(collection.settings)} settings." if more > 0 else ""
    return Chart(
        "accuracy-against-bytes",
        "Accuracy against bytes sent",
        "Mean accuracy over the clients against what all clients and the server sent each other, "
        f"round by round{'; dashed is zero-shot' if zero else ''}.{said}",
        specification(
            rows,
            300,
            layer=[
                {
                    "params": legend_pick("picked"),
                    "mark": {"type": "line", "strokeWidth": 2, "point": {"size": 14}},
                    "encoding": {
                        "x": by_number("sent", "MB sent, both ways", axis={"grid": False}),
                        "y": by_share("accuracy", "mean accuracy"),
                        "color": by_name(
                            "of",
                            None,
                            scale={"domain": names},
                            legend={"columns": 1, "labelLimit": {"expr": "max(100, width - 20)"}}
                            if len(names) > 1
                            else None,
                        ),
                        "order": {"field": "round", "type": "quantitative"},
                        "opacity": PICKED,
                        "tooltip": tooltip(
                            ("of", "setting", None),
                            ("round", "round", "d"),
                            ("sent", "MB sent", ",.2f"),
                            ("accuracy", "accuracy", ".2%"),
                        ),
                    },
                },
                *_dashed(
                    zero,
                    y=by_share("accuracy", "mean accuracy"),
                    color={"value": ZERO_SHOT_COLOR},
                    tooltip=tooltip(("of", "", None), ("accuracy", "accuracy", ".2%")),
                ),
            ],
        ),
        wide=len(collection.settings) > 1,
    )


def _short_names(settings: Sequence[Setting]) -> list[str]:
    """Name settings by the options that differ between them, if that tells them apart."""
    differing = [
        option
        for option in settings[0].options
        if len({each.options.get(option) for each in settings}) > 1
    ]
    names = [
        ", ".join(
            f"{option.replace('_', ' ')} {each.options[option] or '-'}" for option in differing
        )
        for each in settings
    ]
    apart = differing and len({*names}) == len(names)
    return names if apart else [each.name for each in settings]


def calibration(before: Tally | None, after: Tally) -> Chart:
    """Draw accuracy against confidence, bin by bin."""
    rows = []
    for name, tally in (("zero-shot", before), ("adapted", after)):
        if tally is None:
            continue
        for count, right, confidence in tally.bins:
            if count:
                rows.append(
                    {
                        "of": name,
                        "confidence": confidence / count,
                        "accuracy": right / count,
                        "samples": int(count),
                    }
                )
    errors = f"{100 * after.calibration_error:.1f} adapted"
    if before is not None:
        errors = f"{100 * before.calibration_error:.1f} zero-shot, {errors}"
    unit = {"domain": [0, 1]}
    return Chart(
        "calibration",
        "Calibration",
        f"How often a prediction of some confidence is right, in {BINS} bins; points on the "
        "diagonal are what a confidence should mean, below it the model is too sure. The larger "
        "a point, the more samples: small ones are luck. Expected "
        f"calibration error in %: {errors}.",
        specification(
            rows,
            300,
            layer=[
                {
                    "data": {"values": [{"x": 0, "y": 0}, {"x": 1, "y": 1}]},
                    "mark": {"type": "line", "color": "var(--line)", "strokeWidth": 1.5},
                    "encoding": {
                        "x": by_number("x", "confidence", scale=unit),
                        "y": by_number("y", "accuracy", scale=unit),
                    },
                },
                {
                    "mark": {"type": "line", "strokeWidth": 1, "strokeDash": [2, 3]},
                    "encoding": {
                        "x": by_share("confidence", "confidence", scale=unit),
                        "y": by_share("accuracy", "accuracy", scale=unit),
                        "color": _before_after(before),
                    },
                },
                {
                    "mark": {"type": "point", "filled": True, "opacity": 1},
                    "encoding": {
                        "x": by_share("confidence", "confidence", scale=unit),
                        "y": by_share("accuracy", "accuracy", scale=unit),
                        "color": _before_after(before),
                        "size": by_number(
                            "samples", "samples", scale={"range": [15, 260]}, legend=None
                        ),
                        "tooltip": tooltip(
                            ("of", "", None),
                            ("confidence", "mean confidence", ".1%"),
                            ("accuracy", "accuracy", ".1%"),
                            ("samples", "samples", ",d"),
                        ),
                    },
                },
            ],
        ),
    )


def _before_after(before: Tally | None) -> Spec:
    colors = {"adapted": ACCENT}
    if before is not None:
        colors = {"zero-shot": ZERO_SHOT_COLOR, **colors}
    return by_name("of", None, scale={"domain": [*colors], "range": [*colors.values()]})


def confusion(name: str, title: str, tally: Tally, classes: Sequence[str]) -> Chart:
    """Draw a confusion matrix as the share of each class.

    Args:
        name: Names the file.
        title: What it is of.
        tally: The predictions.
        classes: Names of the classes.
    """
    shown = _confused(tally, len(classes))
    labels = _distinct([classes[index] for index in shown])
    rows = []
    for i, row in enumerate(shown):
        total = int(tally.confusion[row].sum())
        for j, column in enumerate(shown):
            count = int(tally.confusion[row, column])
            share = count / total if total else 0.0
            rows.append(
                {
                    "right": labels[i],
                    "predicted": labels[j],
                    "count": count,
                    "share": share,
                    "same": i == j,
                }
            )
    text = "A row is a class, its cells what its samples were taken for; mistakes are orange."
    if len(shown) < len(classes):
        text += f" The {len(shown)} classes with the most mistakes, of {len(classes)}."
    cells = len(shown) <= 12
    x = by_name("predicted", "predicted class", sort=labels, axis={"labelAngle": -45})
    y = by_name("right", "right class", sort=labels)
    fill = {"condition": {"test": "datum.same", "value": ACCENT}, "value": LOSS}
    layers: list[Spec] = [
        {
            "mark": {"type": "rect", "stroke": "var(--surface)", "strokeWidth": 1},
            "encoding": {
                "x": x,
                "y": y,
                "color": fill,
                "opacity": by_number(
                    "share", "share", legend=None, scale={"domain": [0, 1], "range": [0.04, 1]}
                ),
                "tooltip": tooltip(
                    ("right", "right class", None),
                    ("predicted", "predicted", None),
                    ("count", "samples", ",d"),
                    ("share", "share of the class", ".1%"),
                ),
            },
        }
    ]
    if cells:
        layers.append(
            {
                "transform": [{"filter": "datum.count > 0"}],
                "mark": {"type": "text", "fontSize": 11},
                "encoding": {
                    "x": x,
                    "y": y,
                    "text": by_number("count", "samples"),
                    "color": {
                        "condition": {"test": "datum.share > 0.55", "value": "var(--surface)"},
                        "value": "var(--ink)",
                    },
                },
            }
        )
    height = max(220, min(620, (26 if cells else 18) * len(shown)))
    return Chart(name, title, text, specification(rows, height, layer=layers))


def _confused(tally: Tally, classes: int) -> list[int]:
    """Return the classes that a matrix shows: all, or those with the most mistakes."""
    if classes <= CLASSES_SHOWN:
        return [*range(classes)]
    wrong = tally.confusion.copy()
    np.fill_diagonal(wrong, 0)
    mistakes = wrong.sum(axis=0) + wrong.sum(axis=1)
    return sorted(np.argsort(-mistakes, kind="stable")[:CLASSES_SHOWN].tolist())


def class_gains(before: Tally, after: Tally, classes: Sequence[str]) -> Chart | None:
    """Draw what each class's recall gained."""
    gains = after.recall - before.recall
    there = [index for index in range(len(classes)) if math.isfinite(gains[index])]
    if not there:
        return None
    most = sorted(there, key=lambda index: (-abs(gains[index]), index))[:CLASSES_SHOWN]
    most.sort(key=lambda index: -gains[index])
    labels = _distinct([classes[index] for index in most])
    rows = [
        {
            "class": label,
            "gain": 100 * float(gains[index]),
            "before": float(before.recall[index]),
            "after": float(after.recall[index]),
            "samples": int(after.confusion[index].sum()),
        }
        for label, index in zip(labels, most, strict=True)
    ]
    text = "Change of each class's recall from zero-shot to adapted, in points."
    if len(most) < len(there):
        text += f" The {len(most)} classes that changed most, of {len(there)}."
    return Chart(
        "class-gains",
        "Gains by class",
        text,
        specification(
            rows,
            max(160, 24 * len(rows)),
            mark={"type": "bar", "cornerRadiusEnd": 2},
            encoding={
                "y": by_name("class", None, sort=labels),
                "x": by_number("gain", "points", axis={"format": "+"}),
                "color": {"condition": {"test": "datum.gain < 0", "value": LOSS}, "value": ACCENT},
                "tooltip": tooltip(
                    ("class", "class", None),
                    ("before", "zero-shot recall", ".1%"),
                    ("after", "adapted recall", ".1%"),
                    ("gain", "points", "+.1f"),
                    ("samples", "samples", ",d"),
                ),
            },
        ),
    )


def _distinct(names: Sequence[str]) -> list[str]:
    """Make names distinct, as an axis would join equal ones."""
    seen: dict[str, int] = {}
    distinct = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        distinct.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return distinct


def feature_map(name: str, title: str, drawn: FeatureMap, by: str) -> Chart:
    """Draw the features on their two principal components.

    Args:
        name: Names the file.
        title: What it shows.
        drawn: The points.
        by: "domain" or "class", which the colors stand for.
    """
    rows = [
        {
            "of": domain if by == "domain" else label,
            "domain": domain,
            "class": label,
            "x": x,
            "y": y,
        }
        for domain, label, x, y in drawn.points
    ]
    names = sorted({str(row["of"]) for row in rows})
    # There are eight colors, so a name is told by its shape as well.
    shapes = [_SHAPES[at % len(_SHAPES)] for at in range(len(names))]
    shape = by_name("of", None, scale={"domain": names, "range": shapes})
    shares = ", ".join(f"{100 * share:.0f} %" for share in drawn.shares)
    text = f"Two principal components of the features ({shares} of the variance)"
    if drawn.sampled:
        text += f", {len(rows):,} of {drawn.rows:,} samples"
    axis = {"labels": False, "ticks": False, "grid": False}
    return Chart(
        name,
        title,
        f"{text}. Click a name to see it alone.",
        specification(
            rows,
            340,
            params=legend_pick("picked"),
            mark={"type": "point", "filled": True, "size": 22, "strokeWidth": 0},
            encoding={
                "x": by_number("x", "first component", axis=axis, scale={"zero": False}),
                "y": by_number("y", "second component", axis=axis, scale={"zero": False}),
                "color": by_name("of", None, scale={"domain": names}),
                "shape": shape,
                "opacity": {
                    "condition": {"param": "picked", "value": 0.75, "empty": True},
                    "value": 0.04,
                },
                "tooltip": tooltip(("domain", "domain", None), ("class", "class", None)),
            },
        ),
    )


def turned_dimensions(turned: Turned) -> Chart:
    """Draw which feature dimensions attention turns up or down, by domain."""
    rows = [
        {"domain": domain, "dimension": str(dimension), "times": times, "log": math.log2(times)}
        for domain, dimension, times in turned.cells
    ]
    most = max((abs(math.log2(times)) for _, _, times in turned.cells), default=0.0)
    dimensions = list(dict.fromkeys(str(dimension) for _, dimension, _ in turned.cells))
    return Chart(
        "attention",
        "What attention turns up and down",
        "Mean attention weight of the samples of a domain, as a multiple of an equal share: blue "
        f"is turned up, orange down. The {len(dimensions)} of {turned.dimensions} feature "
        f"dimensions that differ most{turned.of}.",
        specification(
            rows,
            max(120, 34 * len({row["domain"] for row in rows})),
            mark={"type": "rect", "stroke": "var(--surface)", "strokeWidth": 1},
            encoding={
                "x": by_name("dimension", "feature dimension", sort=dimensions),
                "y": by_name("domain", None),
                "color": {"condition": {"test": "datum.log < 0", "value": LOSS}, "value": ACCENT},
                "opacity": {
                    "field": "strength",
                    "type": "quantitative",
                    "legend": None,
                    "scale": {"domain": [0, most or 1], "range": [0.04, 1]},
                },
                "tooltip": tooltip(
                    ("domain", "domain", None),
                    ("dimension", "dimension", None),
                    ("times", "times an equal share", ".3f"),
                ),
            },
            transform=[{"calculate": "abs(datum.log)", "as": "strength"}],
        ),
        wide=True,
    )


def option_effects(collection: Collection) -> list[Chart]:
    """Draw the accuracy of all settings against each option that differs."""
    charts = []
    for place, option in enumerate(collection.options):
        found: dict[str, list[float]] = {}
        rows = []
        for setting in collection.settings:
            value = setting.options.get(option, "") or "-"
            if setting.rank >= 0:
                found.setdefault(value, []).append(setting.rank)
                rows.append({"value": value, "accuracy": setting.rank, "setting": setting.name})
        if len(found) < 2:
            continue
        values = sorted(found, key=_sort_key)
        means = [
            {"value": value, "accuracy": statistics.fmean(each), "settings": len(each)}
            for value, each in found.items()
        ]
        name = option.replace("_", " ")
        angle = {"labelAngle": -35} if sum(map(len, values)) > 24 else {"labelAngle": 0}
        x = by_name("value", name, sort=values, axis=angle)
        charts.append(
            Chart(
                f"effect-{place + 1}-{_slug(option)}",
                f"Effect of {name}",
                "Each point is a setting, the bar the mean over all settings with this value.",
                specification(
                    rows,
                    240,
                    layer=[
                        {
                            "mark": {"type": "point", "filled": True, "opacity": 0.6, "size": 45},
                            "encoding": {
                                "x": x,
                                "y": by_share("accuracy", "mean accuracy"),
                                "color": {"value": ACCENT},
                                "tooltip": tooltip(
                                    ("setting", "setting", None), ("accuracy", "accuracy", ".2%")
                                ),
                            },
                        },
                        {
                            "data": {"values": means},
                            "mark": {"type": "tick", "thickness": 3, "size": 34},
                            "encoding": {
                                "x": x,
                                "y": by_share("accuracy", "mean accuracy"),
                                "color": {"value": "var(--ink)"},
                                "tooltip": tooltip(
                                    ("value", name, None),
                                    ("accuracy", "mean", ".2%"),
                                    ("settings", "settings", ",d"),
                                ),
                            },
                        },
                    ],
                ),
            )
        )
    return charts


def _slug(text: str) -> str:
    return "".join(each if each.isalnum() and each.isascii() else "-" for each in text)[:40]


def _sort_key(value: str) -> tuple[int, float, str]:
    try:
        return 0, float(value), value
    except ValueError:
        return 1, 0.0, value


def two_options(values: Iterable[tuple[str, str, float]], names: tuple[str, str]) -> Chart:
    """Draw the mean accuracy over two options as a heat map.

    Args:
        values: The two options' values and the accuracy of each setting.
        names: Names of the options.
    """
    cells: dict[tuple[str, str], list[float]] = {}
    for x, y, accuracy in values:
        cells.setdefault((x, y), []).append(accuracy)
    rows = [
        {"x": x, "y": y, "accuracy": statistics.fmean(found), "settings": len(found)}
        for (x, y), found in cells.items()
    ]
    orders = [sorted({str(row[axis]) for row in rows}, key=_sort_key) for axis in ("x", "y")]
    crowded = 8 * len("  ".join(orders[0])) > 500  # pixels, in a file
    place = {
        "x": by_name("x", names[0], sort=orders[0], axis={"labelAngle": -35 if crowded else 0}),
        "y": by_name("y", names[1], sort=orders[1]),
    }
    return Chart(
        "two-options",
        "Two options together",
        "Mean accuracy in % of all settings with these two values; a stronger color is better.",
        specification(
            rows,
            max(160, min(560, 40 * len(orders[1]))),
            layer=[
                {
                    "mark": {"type": "rect", "stroke": "var(--surface)", "strokeWidth": 1},
                    "encoding": {
                        **place,
                        "color": {"value": ACCENT},
                        "opacity": by_number(
                            "accuracy",
                            "accuracy",
                            legend=None,
                            scale={"zero": False, "range": [0.06, 0.9]},
                        ),
                        "tooltip": tooltip(
                            ("x", names[0], None),
                            ("y", names[1], None),
                            ("accuracy", "mean accuracy", ".2%"),
                            ("settings", "settings", ",d"),
                        ),
                    },
                },
                {
                    "transform": [
                        {"calculate": "100 * datum.accuracy", "as": "percent"},
                        {
                            "joinaggregate": [
                                {"op": "min", "field": "accuracy", "as": "least"},
                                {"op": "max", "field": "accuracy", "as": "most"},
                            ]
                        },
                    ],
                    "mark": {"type": "text", "fontSize": 12},
                    "encoding": {
                        **place,
                        "text": {"field": "percent", "type": "quantitative", "format": ".1f"},
                        "color": {
                            "condition": {
                                "test": "2 * datum.accuracy > datum.least + datum.most",
                                "value": "var(--surface)",
                            },
                            "value": "var(--ink)",
                        },
                    },
                },
            ],
        ),
        wide=True,
    )


# Names of a run's accuracies in charts, and their colors.
_ACCURACIES = {
    "zero_shot": ("zero-shot", ZERO_SHOT_COLOR),
    "accuracy": ("adapted", ACCENT),
    "personal": ("personal", LOSS),
}


def by_client(rows: Sequence[Mapping[str, Any]]) -> Spec:
    """Draw accuracy by client, zero-shot beside adapted, one panel for each target.

    Args:
        rows: Of `SavedRun.to_pandas`.
    """
    known = [name for name in _ACCURACIES if any(row[name] is not None for row in rows)]
    shown, colors = zip(*(_ACCURACIES[name] for name in known), strict=True)
    values = [
        {
            "target": row["target"],
            "client": row["client"],
            "of": _ACCURACIES[name][0],
            "accuracy": row[name],
        }
        for row in rows
        for name in known
    ]
    encoding = {
        "x": by_name("client"),
        "xOffset": by_name("of", sort=shown),
        "y": by_share("accuracy", "test accuracy", scale={"zero": True}),
        "color": by_name("of", scale={"domain": shown, "range": colors}),
        "tooltip": tooltip(
            ("target", "domain left out", None),
            ("client", "client", None),
            ("of", "", None),
            ("accuracy", "accuracy", ".2%"),
        ),
    }
    return _by_target(values, {"mark": "bar", "encoding": encoding})


def by_round(rows: Sequence[Mapping[str, Any]]) -> Spec:
    """Draw validation accuracy by round, a line for each client, one panel for each target.

    Args:
        rows: Of `SavedRun.rounds_to_pandas`.
    """
    encoding = {
        "x": by_number("round", "round", axis={"tickMinStep": 1, "grid": False}),
        "y": by_share("validation", "validation accuracy"),
        "color": by_name("client"),
        "tooltip": tooltip(
            ("client", "client", None),
            ("round", "round", "d"),
            ("validation", "validation accuracy", ".2%"),
        ),
    }
    known = [row for row in rows if row["validation"] is not None]
    return _by_target(
        known, {"mark": {"type": "line", "point": {"size": 14}}, "encoding": encoding}
    )


def by_setting(rows: Sequence[Mapping[str, Any]], names: Sequence[str], figure: str) -> Spec:
    """Draw an accuracy by setting, with a point for each seed.

    Args:
        rows: Of `Ablation.to_pandas`.
        names: The settings that vary.
        figure: The accuracy.
    """
    varied = [name for name in names if name != "seed"] or ["run"]
    values = [
        {
            "setting": ", ".join(str(row[name]) for name in varied),
            "seed": row.get("seed", 0),
            "accuracy": row[figure],
        }
        for row in rows
        if row[figure] is not None
    ]
    order = {"field": "accuracy", "op": "mean", "order": "descending"}
    return {
        "data": {"values": values},
        "mark": {"type": "point", "filled": True, "size": 60, "color": ACCENT},
        "encoding": {
            "x": by_share("accuracy", figure),
            "y": by_name("setting", ", ".join(varied), sort=order),
            "tooltip": tooltip(
                ("setting", ", ".join(varied), None),
                ("seed", "seed", "d"),
                ("accuracy", figure, ".2%"),
            ),
        },
    }


def _by_target(values: Sequence[Mapping[str, Any]], spec: Spec) -> Spec:
    return {
        "data": {"values": list(values)},
        "facet": {"column": by_name("target", "domain left out")},
        "spec": spec,
    }

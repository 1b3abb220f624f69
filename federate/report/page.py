"""A report as one HTML page that needs no network, or as chart files.

Vega-Lite draws the charts: of the libraries that need no server, its JavaScript is the smallest
that is interactive (0.9 MB; Plotly's has 4.9 MB), and the same specifications become SVG and PDF
without a browser. `vl-convert-python` brings both.

All texts from data are escaped, in the page and in the JSON within it, and a policy in the page
forbids every request.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import reduce
from html import escape
from importlib.resources import files
from operator import add
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ... import __version__
from ...cache.common.extras import load_extra
from ...cache.common.files import replacing
from ...cache.common.text import counted, inflected, printable
from ..runs.predictions import ADAPTED, ZERO_SHOT
from ..runs.results import FIGURES
from ..training.metrics import Tally
from . import charts
from .cells import Interval
from .charts import Chart
from .collect import Collection, Setting, shown_options
from .features import load_features, map_features, turned_by_attention
from .vega import CONFIG, themed

# Width of charts in files, in pixels.
FILE_WIDTH = 620

# Images that changed side most often that are listed.
IMAGES = 40

# A column has room for texts if its longest cell, as HTML, has more characters than this.
LONG = 24

_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline' 'unsafe-eval'; "
    "img-src data:; base-uri 'none'; form-action 'none'"
)

# Characters that could end a script, or that JavaScript takes for line breaks.
_UNSAFE = {ord(each): f"\\u{ord(each):04x}" for each in "<>&\u2028\u2029"}


class Counts(NamedTuple):
    """The best setting's predictions, counted over all its test samples."""

    before: Tally | None
    after: Tally
    class_names: tuple[str, ...]


def counts_of(setting: Setting) -> Counts | None:
    """Count a setting's predictions; None if they were not kept, or of different classes."""
    if setting.arm is None:
        return None
    kept = [member.predictions for member in setting.arm.members.values()]
    if any(each.class_names != kept[0].class_names for each in kept):
        return None
    before, after = (
        [tally for each in kept for tally in each.tallies(model).values()]
        for model in (ZERO_SHOT, ADAPTED)
    )
    if not after:
        return None
    return Counts(reduce(add, before) if before else None, reduce(add, after), kept[0].class_names)


def draw_charts(
    collection: Collection, cache_dir: Path | None
) -> tuple[dict[str, list[Chart]], list[str]]:
    """Draw the charts of a report, by section, and list what is missing for others."""
    best, missing = collection.best, list[str]()
    several = len(collection.settings) > 1
    rounds = [charts.over_rounds(best, wide=several), charts.against_bytes(collection)]
    found: dict[str, list[Chart]] = {
        "rounds": [each for each in rounds if each],
        "classes": [],
        "features": [],
        "options": [],
    }
    counts = counts_of(best)
    if counts is not None:
        before, after, names = counts
        pairs = [("before", "Zero-shot", before), ("after", "Adapted", after)]
        found["classes"] += [
            charts.confusion(f"confusion-{name}", f"Confusion: {title.lower()}", tally, names)
            for name, title, tally in pairs
            if tally is not None
        ]
        found["classes"].append(charts.calibration(before, after))
        gains = charts.class_gains(before, after, names) if before is not None else None
        found["classes"] += [gains] if gains else []
    run = best.finished[0]
    clients = load_features(run, cache_dir)
    if clients is None:
        missing.append(
            f"The cache {run.cache} is not where it was, so there is no map of the features; pass "
            "its folder with --cache-dir."
        )
    else:
        drawn = map_features(clients)
        found["features"].append(
            charts.feature_map("features-by-domain", "Features by domain", drawn, "domain")
        )
        if len(clients[0].class_names) <= charts.SETTINGS_SHOWN + 2:
            found["features"].append(
                charts.feature_map("features-by-class", "Features by class", drawn, "class")
            )
        turned = turned_by_attention(run, clients)
        found["features"] += [charts.turned_dimensions(turned)] if turned else []
    if several:
        found["options"] = charts.option_effects(collection)
        if len(collection.options) > 1:
            first, second = collection.options[:2]
            values = (
                (each.options[first] or "-", each.options[second] or "-", each.rank)
                for each in collection.settings
                if each.rank >= 0
            )
            titles = (first.replace("_", " "), second.replace("_", " "))
            found["options"].insert(0, charts.two_options(values, titles))
    return found, missing


def write_page(path: Path, collection: Collection, cache_dir: Path | None = None) -> None:
    """Write a report as one HTML file: whole, or not at all.

    Args:
        path: The file.
        collection: What it shows.
        cache_dir: Where the runs' cache is looked for; None for where it was.

    Raises:
        FedclipError: the charts' library is not installed.
    """
    converter = load_extra("report", "vl_convert")
    drawn, missing = draw_charts(collection, cache_dir)
    text = _page(collection, drawn, [*collection.missing, *missing], converter.javascript_bundle())
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_figures(
    folder: Path, collection: Collection, cache_dir: Path | None = None
) -> list[Path]:
    """Write the charts of a report as SVG and PDF files, and return their paths.

    Raises:
        FedclipError: the charts' library is not installed.
    """
    converter = load_extra("report", "vl_convert")
    drawn, _ = draw_charts(collection, cache_dir)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for chart in (chart for section in drawn.values() for chart in section):
        spec = themed(chart.spec, width=FILE_WIDTH)
        for suffix, convert in (
            ("svg", converter.vegalite_to_svg),
            ("pdf", converter.vegalite_to_pdf),
        ):
            made = convert(spec)
            path = folder / f"{chart.name}.{suffix}"
            with replacing(path) as temporary:
                temporary.write_bytes(made.encode() if isinstance(made, str) else made)
            paths.append(path)
    return paths


def _page(
    collection: Collection,
    drawn: Mapping[str, Sequence[Chart]],
    missing: Sequence[str],
    library: str,
) -> str:
    here = files(__package__)
    style, script = ((here / name).read_text("utf-8") for name in ("page.css", "page.js"))
    several = len(collection.settings) > 1
    sections = [
        _section("settings", "All settings", _SETTINGS, _settings(collection)) if several else "",
        _section(
            "options", "What each option does", "", _option_cards(collection, drawn["options"])
        )
        if drawn["options"]
        else "",
        _section(
            "clients",
            _of_best("By client", collection),
            _CLIENTS if collection.best.gain else _RECORDED,
            _clients(collection),
        ),
        _section("rounds", _of_best("Training", collection), "", _cards(drawn["rounds"])),
        _section("classes", _of_best("Classes", collection), _CLASSES, _cards(drawn["classes"]))
        if drawn["classes"]
        else "",
        _section("features", "Features", "", _cards(drawn["features"]))
        if drawn["features"]
        else "",
        _section("images", _of_best("Samples that change side", collection), *_images(collection)),
        _section("made", "How it was made", "", _made(collection, missing)),
    ]
    every = {chart.name: chart.spec for section in drawn.values() for chart in section}
    data = _script_json({"charts": every, "config": CONFIG})
    options = _heat_data(collection, drawn["options"])
    links = "".join(
        f'<a href="#{name}">{title}</a>'
        for name, title in _LINKS.items()
        if f'<section id="{name}"' in "".join(sections)
    )
    title = f"fedclip: {printable(collection.title)}"
    now = f"{datetime.now():%Y-%m-%d %H:%M}"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{_text(title)}</title>
<style>
{style}</style>
</head>
<body>
<main>
<header>
{_head(collection)}
<nav aria-label="Sections">{links}</nav>
</header>
{"".join(sections)}
<footer>Made with fedclip {__version__} on {now}. Charts: Vega-Lite.</footer>
</main>
<script type="application/json" id="chart-data">{data}</script>
<script type="application/json" id="option-data">{options}</script>
<script>{_script_text(library)}</script>
<script>
{script}</script>
</body>
</html>
"""


_LINKS = {
    "settings": "All settings",
    "options": "Options",
    "clients": "By client",
    "rounds": "Training",
    "classes": "Classes",
    "features": "Features",
    "images": "Samples",
    "made": "How it was made",
}

_CLIENTS = (
    "Test accuracy in % at the best round, mean and deviation over seeds, and difference in points "
    "with its 95 % interval; in color it is beyond noise. Generalization is the accuracy on the "
    "domain left out, personalization the mean over the others; where several domains are left out "
    "in turn, each is listed with its accuracy as that."
)
_RECORDED = "Test accuracy in % at the best round, the mean over seeds and targets."
_CLASSES = "All test samples of all clients, seeds and targets together."


def _head(collection: Collection) -> str:
    best, runs = collection.best, collection.runs
    gain = _gain(best)
    before, after = best.spread("mean", zero_shot=True), best.spread("mean")
    headline, lead = _sentences(collection)
    seeds = {run.seed for run in runs}
    tiles = [
        (
            "mean accuracy, best setting" if len(collection.settings) > 1 else "mean accuracy",
            f"{100 * after.mean:.1f} %" if after else "-",
            "",
        )
    ]
    if before:
        tiles.append(("zero-shot, before training", f"{100 * before.mean:.1f} %", ""))
    if gain:
        loss = " loss" if gain.difference < 0 else ""
        tiles.insert(0, ("points over zero-shot", f"{100 * gain.difference:+.1f}", f" main{loss}"))
    if best.results:
        sent = best.results[0].bytes_per_round
        tiles.append(("sent by a client in a round", _bytes(sent), ""))
    tiles.append(
        (
            f"{counted(len(collection.settings), 'setting')}, {counted(len(seeds), 'seed')}",
            counted(len(runs), "run"),
            "",
        )
    )
    cells = "".join(
        f'<div class="tile{kind}"><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>'
        for name, value, kind in tiles
    )
    about = " · ".join(
        _text(each)
        for each in (
            collection.title,
            ", ".join(dict.fromkeys(run.encoder for run in runs)),
            ", ".join(dict.fromkeys(f"target {run.target}" for run in runs)),
        )
    )
    return (
        f'<p class="kicker">{about}</p>\n<h1>{headline}</h1>\n<p class="lead">{lead}</p>\n'
        f'<dl class="tiles">{cells}</dl>'
    )


def _bytes(count: int) -> str:
    from rich.filesize import decimal

    return decimal(count)


def _gain(setting: Setting) -> Interval | None:
    line = setting.gain.line("mean") if setting.gain else None
    return line.interval if line else None


def _sentences(collection: Collection) -> tuple[str, str]:
    """Say in a sentence what came out, and in another how sure that is; as HTML."""
    best = collection.best
    before, after = best.spread("mean", zero_shot=True), best.spread("mean")
    gain, name = _gain(best), _text(best.name)
    assert after is not None
    trained = f"Federating {name}"
    if len(collection.settings) > 1:
        count = len(collection.settings)
        headline = f"Best of {count} settings: {name}, with {100 * after.mean:.1f} % mean accuracy"
    elif before is None:
        headline = f"{trained} reaches {100 * after.mean:.1f} % mean accuracy"
    else:
        change = "raises" if after.mean > before.mean else "lowers"
        headline = (
            f"{trained} {change} mean accuracy from {100 * before.mean:.1f} % "
            f"to {100 * after.mean:.1f} %"
        )
        if gain is not None and not gain.beyond_noise:
            headline = (
                f"{trained} makes no difference beyond noise: {100 * before.mean:.1f} % before, "
                f"{100 * after.mean:.1f} % after"
            )
    said = []
    if gain is not None:
        sure = "more than noise" if gain.beyond_noise else "within noise"
        said.append(
            f"<strong>{100 * gain.difference:+.1f} points</strong> over zero-shot, 95 % interval "
            f"{100 * gain.low:+.1f} to {100 * gain.high:+.1f}: {sure}."
        )
    elif before is not None:
        said.append(
            f"<strong>{100 * (after.mean - before.mean):+.1f} points</strong> over zero-shot; "
            "without kept predictions it is not known whether that is noise."
        )
    else:
        said.append("Without class texts it has no zero-shot accuracy.")
    known = [each for each in collection.behind if each is not None]
    if known:
        behind = sum(each.beyond_noise for each in known)
        if len(known) == 1:
            sure = "behind it by more than noise" if behind else "within noise of it"
            said.append(f"The other setting is {sure}.")
        else:
            said.append(
                f"Of {len(known)} other settings, {behind or 'none'} "
                f"{inflected(behind, 'is', 'are')} behind it by more than noise."
            )
    figures = [
        (label, best.spread(figure, zero_shot=True), best.spread(figure))
        for figure, label in (
            ("generalization", "on the domain left out"),
            ("personalization", "at the participants"),
        )
    ]
    parts = [
        f"{100 * old.mean:.1f} % to {100 * new.mean:.1f} % {label}"
        for label, old, new in figures
        if old and new
    ]
    if len(parts) == 2:
        said.append(f"Accuracy goes from {' and from '.join(parts)}.")
    return headline, " ".join(said)


def _of_best(title: str, collection: Collection) -> str:
    several = len(collection.settings) > 1
    return f"{title}: {printable(collection.best.name)}" if several else title


def _section(name: str, title: str, text: str, content: str) -> str:
    said = f"<p>{text}</p>" if text else ""
    return f'<section id="{name}"><h2>{_text(title)}</h2>{said}{content}</section>\n'


def _cards(drawn: Iterable[Chart]) -> str:
    return f'<div class="grid">{"".join(map(_card, drawn))}</div>'


def _card(chart: Chart) -> str:
    wide = " wide" if chart.wide else ""
    label = escape(printable(chart.title), quote=True)
    return (
        f'<figure class="card{wide}"><h3>{_text(chart.title)}</h3><p>{_text(chart.text)}</p>'
        f'<div class="chart" data-chart="{chart.name}" role="img" aria-label="{label}"></div>'
        "</figure>"
    )


def _option_cards(collection: Collection, drawn: Sequence[Chart]) -> str:
    first = [chart for chart in drawn if chart.name == "two-options"]
    cards = "".join(_card(chart) for chart in drawn if chart.name != "two-options")
    heat = ""
    if first:
        (chart,) = first
        selects = "".join(
            f'<label>{label} <select data-option="{axis}">'
            + "".join(
                f'<option value="{index}"{" selected" if index == axis else ""}>'
                f"{_text(option.replace('_', ' '))}</option>"
                for index, option in enumerate(collection.options)
            )
            + "</select></label>"
            for axis, label in enumerate(("across", "down"))
        )
        heat = (
            f'<figure class="card wide"><h3>{_text(chart.title)}</h3><p>{_text(chart.text)}</p>'
            f'<div class="tools">{selects}</div><div class="chart" id="two-options" role="img" '
            'aria-label="Mean accuracy by two options"></div></figure>'
        )
    return f'<div class="grid">{heat}{cards}</div>'


def _heat_data(collection: Collection, drawn: Sequence[Chart]) -> str:
    spec = next((chart.spec for chart in drawn if chart.name == "two-options"), None)
    if spec is None:
        return "null"
    settings = [
        {
            "values": [setting.options[option] or "-" for option in collection.options],
            "accuracy": setting.rank,
        }
        for setting in collection.settings
        if setting.rank >= 0
    ]
    options = [option.replace("_", " ") for option in collection.options]
    return _script_json({"options": options, "settings": settings, "spec": spec})


class _Cell(NamedTuple):
    """A cell of a table: HTML, and the number by which it is sorted."""

    html: str
    number: float | None = None


def _table(name: str, headings: Sequence[tuple[str, bool]], rows: Sequence[Sequence[_Cell]]) -> str:
    """Lay out a table that is sorted by its headings, and filtered if it is long.

    Args:
        name: Its id.
        headings: Each with whether its cells are numbers.
        rows: The cells.
    """
    head = "".join(
        f'<th scope="col"{_number_class(numbers)}><button type="button">{_text(title)}</button>'
        "</th>"
        for title, numbers in headings
    )
    lengths = (max((len(row[at].html) for row in rows), default=0) for at in range(len(headings)))
    kinds = [
        _number_class(numbers) or (' class="long"' if length > LONG else "")
        for length, (_, numbers) in zip(lengths, headings, strict=True)
    ]
    body = "".join(
        "<tr>"
        + "".join(
            f"<td{kind}{_value(cell, numbers)}>{cell.html}</td>"
            for cell, kind, (_, numbers) in zip(row, kinds, headings, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    tools = ""
    if len(rows) > 8:
        tools = (
            f'<div class="tools" data-table="{name}"><input type="search" placeholder="Filter by '
            f'words in a row" aria-label="Filter rows"><output>{len(rows)} of {len(rows)}</output>'
            "</div>"
        )
    return (
        f'{tools}<div class="scroll" tabindex="0"><table class="sortable" id="{name}">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _number_class(numbers: bool) -> str:
    return ' class="n"' if numbers else ""


def _value(cell: _Cell, numbers: bool) -> str:
    if not numbers:
        return ""
    return f' data-v="{"" if cell.number is None else repr(cell.number)}"'


_SETTINGS = (
    "Accuracy in %, mean and standard deviation over the seeds, the best first. Differences in "
    "points with their 95 % interval, sample by sample; those in color are beyond noise. Click a "
    "heading to sort."
)


def _settings(collection: Collection) -> str:
    figures = [
        figure
        for figure in ("generalization", "personalization", "mean")
        if any(each.spread(figure) for each in collection.settings)
    ]
    if "generalization" not in figures:
        figures = ["mean"]
    names = [option.replace("_", " ") for option in collection.options] or ["setting"]
    headings = [
        *((name, False) for name in names),
        *((figure, True) for figure in figures),
        ("over zero-shot", True),
        ("from the best", True),
        ("runs", True),
    ]
    rows = []
    for setting, behind in zip(collection.settings, collection.behind, strict=True):
        values = [setting.options.get(option, "") for option in collection.options]
        labels = [_Cell(_text(value) or "-") for value in values] or [_Cell(_text(setting.name))]
        rows.append(
            [
                *labels,
                *(_spread(setting, figure) for figure in figures),
                _difference(_gain(setting), setting),
                _interval(behind),
                _Cell(f"{len(setting.finished)} of {len(setting.runs)}", len(setting.finished)),
            ]
        )
    return _table("all-settings", headings, rows)


def _spread(setting: Setting, figure: str) -> _Cell:
    spread = setting.spread(figure)
    if spread is None:
        return _Cell("-")
    deviation = (
        "" if spread.deviation is None else f" <small>± {100 * spread.deviation:.2f}</small>"
    )
    return _Cell(f"{100 * spread.mean:.2f}{deviation}", spread.mean)


def _difference(gain: Interval | None, setting: Setting) -> _Cell:
    if gain is not None:
        return _interval(gain)
    before, after = setting.spread("mean", zero_shot=True), setting.spread("mean")
    if before is None or after is None:
        return _Cell("-")
    return _Cell(f"{100 * (after.mean - before.mean):+.2f}", after.mean - before.mean)


def _interval(interval: Interval | None) -> _Cell:
    if interval is None:
        return _Cell("-")
    value = f"{100 * interval.difference:+.2f}"
    if interval.beyond_noise:
        kind = "mark loss" if interval.difference < 0 else "mark"
        value = f'<span class="{kind}" title="beyond noise">{value}</span>'
    low, high = f"{100 * interval.low:+.2f}", f"{100 * interval.high:+.2f}"
    return _Cell(f"{value} <small>{low} to {high}</small>", interval.difference)


def _clients(collection: Collection) -> str:
    """Lay out the best setting's figures: by client, or by target where there are several."""
    best = collection.best
    if best.gain is None:
        return _recorded_clients(best)
    headings = [
        ("of", False),
        ("difference", True),
        ("zero-shot", True),
        ("adapted", True),
        ("samples tested", True),
        ("turned right", True),
        ("turned wrong", True),
    ]
    rows = [
        [
            _Cell(_text(line.name)),
            _interval(line.interval),
            _Cell(
                f"{100 * line.before:.2f}{_deviation(best, line.name, zero_shot=True)}", line.before
            ),
            _Cell(f"{100 * line.after:.2f}{_deviation(best, line.name)}", line.after),
            _Cell(f"{line.images:,}", line.images),
            _Cell(f"{line.better:,}", line.better),
            _Cell(f"{line.worse:,}", line.worse),
        ]
        for line in best.gain.lines
    ]
    return _table("by-client", headings, rows)


def _deviation(setting: Setting, figure: str, *, zero_shot: bool = False) -> str:
    """Return the standard deviation over seeds of one of a result's figures; '' of others."""
    spread = setting.spread(figure, zero_shot=zero_shot) if figure in FIGURES else None
    if spread is None or spread.deviation is None:
        return ""
    return f" <small>± {100 * spread.deviation:.2f}</small>"


def _recorded_clients(setting: Setting) -> str:
    """Lay out accuracies by client as the results have them, without predictions."""
    before: dict[str, list[float]] = {}
    after: dict[str, list[float]] = {}
    for result in setting.results:
        for found, recorded in ((before, result.zero_shot), (after, result.accuracy)):
            for client, value in recorded.items():
                if value is not None:
                    found.setdefault(client, []).append(value)
    columns = {"zero-shot": before, "adapted": after} if before else {"adapted": after}
    rows = [
        [_Cell(_text(client)), *(_mean(found.get(client)) for found in columns.values())]
        for client in after
    ]
    return _table("by-client", [("client", False), *((each, True) for each in columns)], rows)


def _mean(values: Sequence[float] | None) -> _Cell:
    if not values:
        return _Cell("-")
    mean = float(np.mean(values))
    return _Cell(f"{100 * mean:.2f}", mean)


def _images(collection: Collection) -> tuple[str, str]:
    """List the images that changed side in most runs of the best setting."""
    best = collection.best
    if best.arm is None:
        return "", "<p>The predictions that this needs were not kept.</p>"
    if best.zero_shot is None:
        return "", "<p>Without zero-shot there is nothing to compare with.</p>"
    seen: dict[tuple[str, str], list[int]] = {}
    labels: dict[tuple[str, str], str] = {}
    for key, member in best.arm.members.items():
        predictions = member.predictions
        old = best.zero_shot.members[key]
        before = predictions.classes[old.model] == predictions.labels
        after = predictions.classes[member.model] == predictions.labels
        for row in np.flatnonzero(before != after):
            client = predictions.clients[predictions.client[row]]
            domain = member.domains.get(client, client)
            image = domain, predictions.ids[row].decode()
            seen.setdefault(image, [0, 0])[0 if after[row] else 1] += 1
            labels[image] = predictions.class_names[predictions.labels[row]]
    runs = len(best.arm.members)
    most = sorted(seen.items(), key=lambda each: (-sum(each[1]), each[0]))[:IMAGES]
    headings = [
        ("sample", False),
        ("domain", False),
        ("class", False),
        ("turned right", True),
        ("turned wrong", True),
    ]
    rows = [
        [
            _Cell(_text(name)),
            _Cell(_text(domain)),
            _Cell(_text(labels[domain, name])),
            _Cell(str(better), better),
            _Cell(str(worse), worse),
        ]
        for (domain, name), (better, worse) in most
    ]
    text = (
        "Samples whose prediction turned right or wrong by training, by the number of runs over "
        f"seeds and targets, of {runs}; {len(most)} of {len(seen):,} samples."
    )
    return text, _table("changed-images", headings, rows)


def _made(collection: Collection, missing: Sequence[str]) -> str:
    best = collection.best
    run = best.runs[0]
    cache = run.config.get("cache")
    clients = cache.get("clients") if isinstance(cache, dict) else None
    versions = run.config.get("versions")
    facts = {
        **shown_options(best),
        "clients": ", ".join(map(str, clients)) if isinstance(clients, list) else "",
        "target": run.target,
        "seeds": ", ".join(map(str, sorted({each.seed for each in collection.runs}))),
        "cache": run.cache,
        "cache key": str(cache.get("key", "")) if isinstance(cache, dict) else "",
        "device": str(run.config.get("device", "")),
        "fedclip": str(run.config.get("fedclip", "")),
        "torch": str(versions.get("torch", "")) if isinstance(versions, dict) else "",
        "runs": ", ".join(each.name for each in best.runs),
    }
    listed = "".join(
        f"<dt>{_text(name)}</dt><dd>{_text(str(value))}</dd>"
        for name, value in facts.items()
        if value
    )
    notes = "".join(f"<li>{_text(each)}</li>" for each in missing)
    rest = f'<h3 style="margin-top:24px">What is missing</h3><ul class="notes">{notes}</ul>'
    return f'<dl class="facts">{listed}</dl>{rest if missing else ""}'


def _text(text: str) -> str:
    """Return text from data as HTML that cannot act, and that cannot turn what is around it."""
    return f"<bdi>{escape(printable(text), quote=True)}</bdi>" if text else ""


def _script_json(value: Any) -> str:
    """Return JSON that can stand within a script."""
    return json.dumps(_shown(value), ensure_ascii=False, allow_nan=False).translate(_UNSAFE)


def _shown(value: Any) -> Any:
    """Escape what is not printable in the texts of charts, as in the page."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {key: _shown(each) for key, each in value.items()}
    return [_shown(each) for each in value] if isinstance(value, list | tuple) else value


def _script_text(library: str) -> str:
    """Return JavaScript that can stand within a script element."""
    return library.replace("</script", "<\\/script").replace("<!--", "<\\!--")

"""What all charts share: Vega-Lite's JSON in small pieces, and its colors.

A page draws these specifications, and a notebook; `vl-convert-python` makes SVG and PDF of them.
Colors are CSS variables, so that a page's charts follow its light or dark theme and are light in
print; `themed` puts the light theme's colors in for files and notebooks. What is zero-shot is gray
everywhere. Eight colors that people with any color vision tell apart (Okabe & Ito 2008) stand for
clients and settings, and shades of one color for amounts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

Spec = dict[str, Any]

ZERO_SHOT_COLOR = "var(--zero)"
ACCENT = "var(--accent)"
LOSS = "var(--loss)"

_CATEGORIES = [f"var(--c{number})" for number in range(1, 9)]

# The light theme, which files have too; the page's style sheet has the same and a dark one.
LIGHT: Mapping[str, str] = {
    "ink": "#1b1f24",
    "muted": "#57606a",
    "line": "#c9d1d9",
    "grid": "#e8ebef",
    "zero": "#7a838d",
    "accent": "#0b63a5",
    "loss": "#b4500a",
    "surface": "#ffffff",
    **{
        f"c{number}": color
        for number, color in enumerate(
            (
                "#0072b2",
                "#d55e00",
                "#009e73",
                "#b0509b",
                "#c08a00",
                "#2f9fd6",
                "#6a3d9a",
                "#6b6b6b",
            ),
            start=1,
        )
    },
}

CONFIG: Spec = {
    "background": "transparent",
    "font": "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": "var(--muted)",
        "titleColor": "var(--muted)",
        "gridColor": "var(--grid)",
        "domainColor": "var(--line)",
        "tickColor": "var(--line)",
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "titlePadding": 10,
        "labelLimit": 130,
    },
    "legend": {
        "labelColor": "var(--ink)",
        "titleColor": "var(--muted)",
        "titleFontWeight": "normal",
        "labelFontSize": 12,
        "titleFontSize": 12,
        "labelLimit": 250,
        "orient": "bottom",
        "columns": 2,
        "symbolType": "circle",
    },
    "range": {"category": _CATEGORIES},
}


def themed(spec: Spec, **changes: Any) -> Spec:
    """Return a specification with `changes` and with the light theme's colors."""
    text = json.dumps({**spec, **changes, "config": {**CONFIG, "background": "white"}})
    for name, color in LIGHT.items():
        text = text.replace(f"var(--{name})", color)
    themed: Spec = json.loads(text)
    return themed


def specification(values: Sequence[Mapping[str, Any]], height: int, **rest: Any) -> Spec:
    """Return a specification that is as wide as its container."""
    return {
        "width": "container",
        "height": height,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "data": {"values": list(values)},
        **rest,
    }


def by_number(field: str, title: str, **rest: Any) -> Spec:
    """Encode by a quantity."""
    return {"field": field, "type": "quantitative", "title": title, **rest}


def by_name(field: str, title: str | None = None, **rest: Any) -> Spec:
    """Encode by a name."""
    return {"field": field, "type": "nominal", "title": title, **rest}


def by_share(field: str, title: str, **rest: Any) -> Spec:
    """Encode by a share, which is shown in percent."""
    axis = {"format": ".2~%", "tickCount": 6, **rest.pop("axis", {})}
    scale = {"zero": False, "nice": True, **rest.pop("scale", {})}
    return by_number(field, title, axis=axis, scale=scale, **rest)


def tooltip(*fields: tuple[str, str, str | None]) -> list[Spec]:
    """Return a tooltip of (field, title, format); without a format the field is a name."""
    return [
        {"field": field, "title": title, "type": "quantitative", "format": form}
        if form
        else {"field": field, "title": title, "type": "nominal"}
        for field, title, form in fields
    ]


def legend_pick(name: str) -> list[Spec]:
    """Let a click in the legend pick a series."""
    return [{"name": name, "select": {"type": "point", "fields": ["of"]}, "bind": "legend"}]


PICKED = {"condition": {"param": "picked", "value": 1, "empty": True}, "value": 0.12}

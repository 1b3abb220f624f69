"""Charts of runs in Altair, which is imported when one is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import altair as alt
    import pandas as pd

# Colours that people with any colour vision can distinguish (Okabe and Ito 2008).
_COLOURS = ("#999999", "#0072B2", "#D55E00")

_MODELS = {"zero_shot": "zero-shot", "accuracy": "adapted", "personal": "personal"}


def accuracy_chart(table: pd.DataFrame) -> alt.FacetChart:
    """Draw accuracy by client, zero-shot beside adapted, one panel for each target.

    Args:
        table: Of `SavedRun.to_pandas`.
    """
    import altair as alt

    models = [name for name in _MODELS if table[name].notna().any()]
    long = table.rename(columns=_MODELS).melt(
        ["target", "client"],
        [_MODELS[name] for name in models],
        var_name="model",
        value_name="accuracy",
    )
    domain = [_MODELS[name] for name in models]
    chart: alt.FacetChart = (
        alt.Chart(long)
        .mark_bar()
        .encode(
            x=alt.X("client:N", title=None),
            xOffset=alt.XOffset("model:N", sort=domain),
            y=alt.Y("accuracy:Q", axis=alt.Axis(format="%"), title="test accuracy"),
            color=alt.Color(
                "model:N", scale=alt.Scale(domain=domain, range=_COLOURS[: len(domain)]), title=None
            ),
            tooltip=["target", "client", "model", alt.Tooltip("accuracy:Q", format=".2%")],
        )
        .facet(column=alt.Column("target:N", title="domain left out"))
    )
    return chart


def rounds_chart(table: pd.DataFrame) -> alt.FacetChart:
    """Draw validation accuracy by round, a line for each client, one panel for each target.

    Args:
        table: Of `SavedRun.rounds_to_pandas`.
    """
    import altair as alt

    known = table[table["validation"].notna()]
    chart: alt.FacetChart = (
        alt.Chart(known)
        .mark_line()
        .encode(
            x=alt.X("round:Q"),
            y=alt.Y(
                "validation:Q",
                axis=alt.Axis(format="%"),
                scale=alt.Scale(zero=False),
                title="validation accuracy",
            ),
            color=alt.Color("client:N"),
            tooltip=["round", "client", alt.Tooltip("validation:Q", format=".2%")],
        )
        .facet(column=alt.Column("target:N", title="domain left out"))
    )
    return chart


def settings_chart(table: pd.DataFrame, names: Sequence[str], figure: str) -> alt.Chart:
    """Draw an accuracy by setting, with a point for each seed.

    Args:
        table: Of `Ablation.to_pandas`.
        names: The settings that vary.
        figure: The column of the accuracy.
    """
    import altair as alt

    varied = [name for name in names if name != "seed"] or ["run"]
    labels = table[varied].astype(str).agg(", ".join, axis=1)
    chart: alt.Chart = (
        alt.Chart(table.assign(setting=labels)[["setting", "seed", figure]])
        .mark_point(filled=True, size=60)
        .encode(
            x=alt.X(f"{figure}:Q", axis=alt.Axis(format="%"), scale=alt.Scale(zero=False)),
            y=alt.Y("setting:N", title=", ".join(varied), sort="-x"),
            tooltip=["setting", "seed", alt.Tooltip(f"{figure}:Q", format=".2%")],
        )
    )
    return chart

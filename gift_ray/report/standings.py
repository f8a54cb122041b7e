"""A comparison at a glance: each defense's resistance under each attack, and its retention."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from gift_ray.report.contents import Study
from gift_ray.report.style import CHANCE_COLOUR, COLOURS, SYMBOLS, error_bars, text


def standings(study: Study) -> go.Figure:
    """A row for each defense: resistance under each attack with its 95 % interval, and retention.

    The line of retention reaches down to the worst group.
    """
    figure = go.Figure()
    table = study.tables.get("standings", pd.DataFrame())
    if table.empty:
        return figure
    for place, (attack, group) in enumerate(table.groupby("attack", sort=False)):
        figure.add_scatter(
            x=list(group["resistance"]),
            y=list(group["arm"].map(text)),
            error_x=error_bars(group["resistance"], group["low"], group["high"]),
            orientation="h",
            customdata=group[["low", "high", "worst", "concepts"]].to_numpy(object).tolist(),
            name=f"resistance to {text(str(attack))}",
            mode="markers",
            marker={
                "color": COLOURS[place % len(COLOURS)],
                "symbol": SYMBOLS[place % len(SYMBOLS)],
                "size": 11,
            },
            hovertemplate="%{y}: <b>%{x:.3f}</b>, 95 % interval %{customdata[0]:.3f} to "
            "%{customdata[1]:.3f}<br>worst concept %{customdata[2]:.3f} of %{customdata[3]}",
        )
    kept = table.drop_duplicates("arm")
    figure.add_scatter(
        x=list(kept["retention"]),
        y=list(kept["arm"].map(text)),
        error_x=error_bars(kept["retention"], kept["worst_retention"], kept["retention"]),
        orientation="h",
        customdata=list(kept["worst_retention"]),
        name="retention, down to the worst group",
        mode="markers",
        marker={"color": CHANCE_COLOUR, "symbol": "line-ns-open", "size": 16, "line": {"width": 3}},
        hovertemplate="%{y}: <b>%{x:.3f}</b>, worst group %{customdata:.3f}",
    )
    return figure.update_layout(
        scattermode="group",
        xaxis={"title": "share (resistance, retention)", "range": [-0.03, 1.03]},
        yaxis={"automargin": True, "autorange": "reversed", "type": "category"},
        legend_y=-0.2,
        legend_orientation="h",
        hovermode="closest",
    )

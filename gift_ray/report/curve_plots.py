"""Attack curves, x the attack step and y a score: for the page, and as figures for papers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gift_ray.report.contents import Study
from gift_ray.report.curves import RECOVERY, averaged
from gift_ray.report.style import (
    CHANCE_COLOUR,
    LINES,
    MARKERS,
    Style,
    faint,
    name_axes,
    plain,
    sheet,
    styles,
    text,
)


def attack_curves(study: Study) -> go.Figure:
    """For the page: a line for each arm with its 95 % interval, and the floor of each judging measure."""
    figure = go.Figure()
    look = styles(study.arms)
    labels = study.labels_of_arms
    table = averaged(study.curves, study.arms)
    for key, curve in table.groupby(["arm", "concept", "attack", "metric"], sort=False):
        meta = dict(zip(("arm", "concept", "attack", "metric"), key, strict=True))
        curve, style = curve.sort_values("step"), look[key[0]]
        clipped = (0.0, 1.0) if key[3].startswith(RECOVERY) else (-math.inf, math.inf)
        low, high = curve["low"].clip(*clipped), curve["high"].clip(*clipped)
        figure.add_scatter(
            x=[*curve["step"], *curve["step"][::-1]],
            y=[*high, *low[::-1]],
            fill="toself",
            fillcolor=faint(style.colour),
            line={"width": 0},
            mode="lines",
            meta=meta | {"band": True},
            hoverinfo="skip",
            showlegend=False,
        )
        spread = curve[["lowest", "highest", "n", "seeds", "unscored", "low", "high"]]
        figure.add_scatter(
            x=list(curve["step"]),
            y=list(curve["mean"]),
            meta=meta,
            mode="lines+markers",
            name=text(labels[key[0]]),
            customdata=spread.to_numpy(object).tolist(),
            line={"color": style.colour, "dash": style.dash},
            marker={"symbol": style.symbol, "size": 9},
            hovertemplate="step %{x}: <b>%{y:.3f}</b>, 95 % interval %{customdata[5]:.3f} to "
            "%{customdata[6]:.3f}<br>seeds %{customdata[0]:.3f} to %{customdata[1]:.3f} "
            "(%{customdata[3]}), %{customdata[2]} images, %{customdata[4]} unscored",
        )
    _add_floor(figure, study, table)
    return figure.update_layout(
        xaxis_title="attack step",
        yaxis_title="score",
        hovermode="closest",
        legend_y=-0.2,
        legend_orientation="h",
    )


def _add_floor(figure: go.Figure, study: Study, table: pd.DataFrame) -> None:
    for (concept, attack, metric), (level, _) in study.ruler.levels.items():
        own = table[
            (table["concept"] == concept)
            & (table["attack"] == attack)
            & (table["metric"] == metric)
        ]
        if own.empty:
            continue
        figure.add_scatter(
            x=[int(own["step"].min()), int(own["step"].max())],
            y=[level, level],
            mode="lines",
            line={"color": CHANCE_COLOUR, "dash": "dot", "width": 1},
            name="floor",
            meta={"concept": concept, "attack": attack, "metric": metric},
            hovertemplate="floor %{y:.3f}: chance, or a control learnt instead",
        )


def draw_curves(study: Study, concepts: Sequence[str]) -> Figure | None:
    """For papers: a row for each attack on one of these concepts, a line for each chosen arm.

    The columns are the recoveries by each judging measure, and the measures. None without data.
    """
    chosen = [arm for arm in study.arms if arm.chosen]
    names = {a.key: plain(a.group if study.rivals else a.label) for a in chosen}
    table = averaged(study.curves, study.arms)
    table = table[table["arm"].isin(names) & table["concept"].isin(concepts)]
    measured = study.ruler.measures
    known = set(table["metric"])
    metrics = [m for m in (*(RECOVERY + m for m in measured), *measured) if m in known]
    table = table[table["metric"].isin(metrics)]
    if table.empty:
        return None
    rows = list(table.groupby(["concept", "attack"], sort=False))
    figure, look = sheet(len(rows), len(metrics)), styles(study.arms)
    for i, ((concept, attack), own) in enumerate(rows):
        for j, metric in enumerate(metrics):
            axes = figure.add_subplot(len(rows), len(metrics), 1 + i * len(metrics) + j)
            _draw_panel(axes, own[own["metric"] == metric], look, names)
            if (concept, attack, metric) in study.ruler.levels:
                level, _ = study.ruler.levels[concept, attack, metric]
                axes.axhline(level, color="grey", linestyle=":", label="floor")
            if metric.startswith(RECOVERY):
                axes.set_ylim(-0.05, 1.05)
            name_axes(axes, "attack step", metric, f"{concept}: {attack}")
    # One legend for the whole sheet: an arm that stands in any panel is named once.
    entries = {
        label: handle
        for axes in figure.axes
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=3, fontsize=7)
    return figure


def _draw_panel(
    axes: Axes, curves: pd.DataFrame, look: Mapping[str, Style], names: Mapping[str, str]
) -> None:
    for arm, curve in curves.groupby("arm", sort=False):
        curve, style = curve.sort_values("step"), look[arm]
        axes.plot(
            curve["step"],
            curve["mean"],
            color=style.colour,
            linestyle=LINES[style.dash],
            marker=MARKERS[style.symbol],
            label=names[arm],
        )
        axes.fill_between(
            curve["step"], curve["low"], curve["high"], color=style.colour, alpha=0.1, lw=0
        )

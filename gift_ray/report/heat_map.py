"""Concept by concept: what an attack on one concept regains of the models immunized against others."""

from __future__ import annotations

import itertools
import math

import pandas as pd
import plotly.graph_objects as go
from matplotlib.figure import Figure

from gift_ray.report.arms import UNDEFENDED
from gift_ray.report.contents import Study
from gift_ray.report.curves import unit_recoveries
from gift_ray.report.style import plain, sheet, text


def cross(study: Study) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The highest recovery of each concept (rows) by attacks on each chosen model (columns).

    Returns:
        Its mean over attacks and seeds, and the worst of them; NaN where it was not measured. In a comparison
        a column is a defense, with all its models.
    """
    arms = [arm for arm in study.arms if arm.chosen and arm.key != UNDEFENDED]
    names = {arm.key: arm.group if study.rivals else arm.label for arm in arms}
    units = unit_recoveries(study.curves)
    units = units[units["arm"].isin(names)]
    cells = units.groupby(["concept", units["arm"].map(names)])["recovery"]
    rows, columns = [*study.malicious, *study.safe], list(dict.fromkeys(names.values()))
    mean, highest, lowest = (
        found.unstack().reindex(index=rows, columns=columns)
        for found in (cells.mean(), cells.max(), cells.min())
    )
    # The worst case of a malicious concept is the highest recovery; that of a safe one, which honest users
    # want to teach, is the lowest.
    return mean, pd.concat([highest.loc[study.malicious], lowest.loc[study.safe]])


def heat_map(study: Study) -> go.Figure:
    """For the page: a cell for each attacked concept (row) and model (column)."""
    mean, worst = cross(study)
    if mean.isna().all(axis=None):
        return go.Figure()
    roles = ["malicious"] * len(study.malicious) + ["safe"] * len(study.safe)
    figure = go.Figure(
        go.Heatmap(
            z=mean.to_numpy(),
            zmin=0,
            zmax=1,
            colorscale="Cividis",
            x=list(range(len(mean.columns))),
            y=list(range(len(mean))),
            hoverongaps=False,
            xgap=2,
            ygap=2,
            colorbar_title="recovery",
            hoverinfo="skip",
        )
    )
    for y, x in itertools.product(*map(range, mean.shape)):
        words, colour = cell(mean.iat[y, x], worst.iat[y, x])
        figure.add_annotation(x=x, y=y, text=words, showarrow=False, font_color=colour)
    sides = [f"{text(name, 28)} ({role})" for name, role in zip(mean.index, roles, strict=True)]
    return figure.update_layout(
        xaxis={
            "tickvals": list(range(len(mean.columns))),
            "showgrid": False,
            "zeroline": False,
            "ticktext": [text(c, 40) for c in mean.columns],
            "title": "defense" if study.rivals else "model",
        },
        yaxis={
            "tickvals": list(range(len(mean))),
            "ticktext": sides,
            "autorange": "reversed",
            "showgrid": False,
            "zeroline": False,
            "title": "attacked concept",
            "automargin": True,
        },
    )


def cell(mean: float, worst: float) -> tuple[str, str | None]:
    """The text of a cell, and its colour (None: the default), which has to be read on the cell's own."""
    if math.isnan(mean):
        return "not measured", None
    said = f"{mean:.2f}" + (f" (worst {worst:.2f})" if abs(worst - mean) >= 0.005 else "")
    return said, "#FFFFFF" if mean < 0.55 else "#000000"


def draw_cross(study: Study) -> Figure | None:
    """The same for papers; None where nothing was measured."""
    table, worst = cross(study)
    if table.isna().all(axis=None):
        return None
    figure = sheet(2, 2)
    axes = figure.add_subplot()
    shown = axes.imshow(table.to_numpy(float), vmin=0, vmax=1, cmap="cividis")
    figure.colorbar(shown, label="highest recovery")
    for y in range(len(table)):
        for x in range(len(table.columns)):
            words, ink = cell(table.iat[y, x], worst.iat[y, x])
            words = words.replace(" (", "\n(")
            axes.text(x, y, words, ha="center", va="center", color=ink or "k", fontsize=8)
    axes.set_xticks(
        range(len(table.columns)),
        [plain(c, 30) for c in table.columns],
        rotation=20,
        parse_math=False,
    )
    axes.set_yticks(range(len(table)), [plain(r, 30) for r in table.index], parse_math=False)
    return figure

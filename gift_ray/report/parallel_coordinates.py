"""Parallel coordinates of a search: a line for each trial's model over its settings and its scores."""

from __future__ import annotations

import html
import math
from typing import Any

import plotly.graph_objects as go

from gift_ray.report.contents import Study
from gift_ray.report.plane import points
from gift_ray.report.style import CHANCE_COLOUR, COLOURS, DASHES, text


def parallel(study: Study) -> go.Figure:
    """An axis for each searched setting and for both scores, a line for each trial's model."""
    figure = go.Figure()
    table, space = points(study), study.config.search.space if study.config.search else {}
    if table.empty or not space or study.rivals:
        return figure
    values = {trial["trial_id"]: trial["values"] for trial in study.trials}
    axes = {path: [values[t].get(path, "–") for t in table["trial_id"]] for path in space}
    axes |= {name: list(table[name]) for name in ("resistance", "retention")}
    logged = {path for path, searched in space.items() if searched.log}
    heights, ticks = {}, {}
    for name, column in axes.items():
        unit = ("resistance", "retention")
        heights[name], ticks[name] = _on_axis(column, name in logged, fixed=name in unit)
    groups = list(dict.fromkeys(table["malicious"]))
    for i, row in enumerate(table.itertuples()):
        group = groups.index(row.malicious)
        said = [f"{name}: {_short(column[i])}" for name, column in axes.items()]
        figure.add_scatter(
            x=list(range(len(axes))),
            y=[heights[name][i] for name in axes],
            mode="lines+markers",
            name=text(f"against {', '.join(row.malicious)}"),
            legendgroup=str(group),
            showlegend=row.malicious not in set(table["malicious"][:i]),
            line={
                "color": COLOURS[group % len(COLOURS)],
                "width": 4 if row.chosen else 1.5,
                "dash": DASHES[group % len(DASHES)],
            },
            opacity=1 if row.feasible else 0.5,
            customdata=[[row.trial_id]] * len(axes),
            hovertemplate=f"{text(row.label)}<br>{html.escape(', '.join(said))}<extra></extra>",
        )
    for x, name in enumerate(axes):
        figure.add_vline(x, line={"width": 1, "color": CHANCE_COLOUR}, layer="below")
        for y, tick in enumerate(ticks[name]):
            figure.add_annotation(
                x=x, y=y, text=tick, showarrow=False, yshift=14 if y else -14, font_size=11
            )
    names = [text(name.removeprefix("defense.")) for name in axes]
    return figure.update_layout(
        xaxis={
            "tickvals": list(range(len(axes))),
            "ticktext": names,
            "side": "top",
            "showgrid": False,
            "range": [-0.3, len(axes) - 0.7],
        },
        yaxis={"visible": False, "range": [-0.12, 1.12]},
        hovermode="closest",
        legend_y=-0.05,
        legend_orientation="h",
    )


def _on_axis(column: list[Any], log: bool, fixed: bool) -> tuple[list[float], tuple[str, str]]:
    """Heights in [0, 1] and the texts at both ends of an axis.

    Words are placed in alphabetical order.

    Args:
        log: whether numbers are placed by their logarithm.
        fixed: whether the axis runs from 0 to 1, whatever the values are.
    """
    if fixed:
        return [float(v) for v in column], ("0", "1")
    if not all(isinstance(v, int | float) for v in column):
        words = sorted({str(v) for v in column})
        top = max(1, len(words) - 1)
        return [words.index(str(v)) / top for v in column], (
            words[0],
            words[-1] if len(words) > 1 else "",
        )
    numbers = [math.log(v) if log else float(v) for v in column]
    low, high = min(numbers), max(numbers)
    heights = [(v - low) / (high - low) if high > low else 0.5 for v in numbers]
    return heights, (_short(min(column)), _short(max(column)))


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)

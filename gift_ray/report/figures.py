"""The page's figures, one pure function each: tables in, a plotly figure out.

A trace's `meta` says what it shows ({"arm": ..., "metric": ...}); the page shows the traces whose
meta agrees with its controls. Colours are Okabe and Ito's; dashes and symbols repeat what they say.
"""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from gift_ray.report.collect import RECOVERY, UNDEFENDED, Arm, Study, averaged

UNDEFENDED_COLOUR = "#D55E00"
COLOURS = ("#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star")
CHANCE_COLOUR = "#8A8A8A"
NAME_LENGTH = 48


@dataclass(frozen=True)
class Style:
    """How an arm looks in every figure."""

    colour: str
    dash: str
    symbol: str


def styles(arms: Sequence[Arm]) -> dict[str, Style]:
    """Arm -> its look; no two alike until all combinations are used up."""
    looks = itertools.cycle(
        Style(colour, DASHES[(i + j) % len(DASHES)], SYMBOLS[(i + j) % len(SYMBOLS)])
        for j in range(len(DASHES))
        for i, colour in enumerate(COLOURS)
    )
    found = {arm.key: next(looks) for arm in arms if arm.key != UNDEFENDED}
    return {UNDEFENDED: Style(UNDEFENDED_COLOUR, "longdash", "x"), **found}


def text(name: str, length: int = NAME_LENGTH) -> str:
    """A name as plotly's markup: shortened in the middle, escaped."""
    short = name if len(name) <= length else f"{name[: length - 12]} … {name[-9:]}"
    return html.escape(short)


def attack_curves(study: Study) -> go.Figure:
    """x: attack step; a line for each arm with its interval; the chance level of each similarity."""
    figure = go.Figure()
    look = styles(study.arms)
    labels = {arm.key: arm.label for arm in study.arms}
    table = averaged(study.curves)
    for key, curve in table.groupby(["arm", "concept", "attack", "metric"], sort=False):
        meta = dict(zip(("arm", "concept", "attack", "metric"), key, strict=True))
        curve, style = curve.sort_values("step"), look[key[0]]
        clipped = (0.0, 1.0) if key[3].startswith(RECOVERY) else (-math.inf, math.inf)
        low, high = curve["low"].clip(*clipped), curve["high"].clip(*clipped)
        figure.add_scatter(
            x=[*curve["step"], *curve["step"][::-1]],
            y=[*high, *low[::-1]],
            fill="toself",
            fillcolor=_faint(style.colour),
            line={"width": 0},
            mode="lines",
            meta=meta,
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
    _add_chance(figure, study, table)
    return figure.update_layout(
        xaxis_title="attack step",
        yaxis_title="score",
        hovermode="closest",
        legend_y=-0.2,
        legend_orientation="h",
    )


def _add_chance(figure: go.Figure, study: Study, table: pd.DataFrame) -> None:
    for (concept, metric), level in study.chance.items():
        own = table[(table["concept"] == concept) & (table["metric"] == metric)]
        if own.empty:
            continue
        figure.add_scatter(
            x=[int(own["step"].min()), int(own["step"].max())],
            y=[level, level],
            mode="lines",
            line={"color": CHANCE_COLOUR, "dash": "dot", "width": 1},
            name="chance",
            meta={"concept": concept, "metric": metric},
            hovertemplate="chance %{y:.3f}",
        )


def points(study: Study) -> pd.DataFrame:
    """One row for each scored model: retention, resistance, objective, whether on the Pareto front.

    The front is of the models against the same concepts: only they are each other's rivals.
    """
    rows = [
        {
            "arm": arm.key,
            "label": arm.label,
            "trial_id": arm.trial_id,
            "malicious": ", ".join(arm.malicious),
            "chosen": arm.chosen,
            **{
                n: arm.scorecard[n]
                for n in ("resistance", "retention", "worst_retention", "objective", "feasible")
            },
        }
        for arm in study.arms
        if arm.scorecard
    ]
    table = pd.DataFrame(rows)
    if len(table):
        table["front"] = False
        for _, group in table.groupby("malicious"):
            table.loc[pareto(group), "front"] = True
    return table


def pareto(table: pd.DataFrame) -> list[Any]:
    """Index of the rows that no other row beats in both resistance and retention."""
    front, best = [], -math.inf
    ordered = table.sort_values(["retention", "resistance"], ascending=False)
    for index, row in ordered.iterrows():
        if row["resistance"] > best:
            front.append(index)
            best = row["resistance"]
    return front


def plane(study: Study) -> go.Figure:
    """Retention against resistance: every trial's models, the Pareto fronts, the gate."""
    figure = go.Figure()
    table = points(study)
    for i, (malicious, group) in enumerate(table.groupby("malicious") if len(table) else ()):
        colour, symbol = COLOURS[i % len(COLOURS)], SYMBOLS[i % len(SYMBOLS)]
        front = group[group["front"]].sort_values("retention")
        figure.add_scatter(
            x=list(front["retention"]),
            y=list(front["resistance"]),
            mode="lines",
            line={"color": colour, "dash": "dot"},
            hoverinfo="skip",
            showlegend=False,
        )
        figure.add_scatter(
            x=list(group["retention"]),
            y=list(group["resistance"]),
            mode="markers",
            name=text(f"against {malicious}"),
            customdata=[
                [t, text(label)] for t, label in zip(group["trial_id"], group["label"], strict=True)
            ],
            marker={
                "color": colour,
                "size": [15 if c else 10 for c in group["chosen"]],
                "symbol": [symbol if f else f"{symbol}-open" for f in group["feasible"]],
                "line": {"width": 2, "color": colour},
            },
            hovertemplate="%{customdata[1]}<br>retention %{x:.3f}, resistance %{y:.3f}<extra></extra>",
        )
    gate = study.config.gate
    figure.add_vline(gate.min_retention, line={"dash": "dash", "color": CHANCE_COLOUR, "width": 1})
    figure.add_hline(gate.min_resistance, line={"dash": "dash", "color": CHANCE_COLOUR, "width": 1})
    return figure.update_layout(
        xaxis_title="retention (mean over probes)",
        yaxis_title="resistance (worst case)",
        xaxis_range=[-0.03, 1.03],
        yaxis_range=[-0.03, 1.03],
        legend_y=-0.2,
        legend_orientation="h",
        hovermode="closest",
    )


def parallel(study: Study) -> go.Figure:
    """Parallel coordinates of the search: a line for each trial's model over its settings and scores."""
    figure = go.Figure()
    table, space = points(study), study.config.search.space if study.config.search else {}
    if table.empty or not space:
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
            name=text(f"against {row.malicious}"),
            legendgroup=row.malicious,
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
    """Heights in [0, 1] and the texts at both ends of an axis. Words stand in alphabetical order."""
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


def cross(study: Study) -> pd.DataFrame:
    """Highest recovery by any attack on a concept (rows), of each chosen model (columns); NaN where
    that attack was not run on that model."""
    rows = [*study.malicious, *study.safe]
    columns = [arm for arm in study.arms if arm.chosen and arm.key != UNDEFENDED]
    worst = {
        arm.label: [
            max(
                (
                    1 - v.resistance
                    for key, v in study.recoveries.items()
                    if key[:2] == (arm.key, c)
                ),
                default=math.nan,
            )
            for c in rows
        ]
        for arm in columns
    }
    return pd.DataFrame(worst, index=rows)


def heat_map(study: Study) -> go.Figure:
    """Concept x concept: what an attack on one concept regains on the model immunized against others."""
    table = cross(study)
    roles = ["malicious"] * len(study.malicious) + ["safe"] * len(study.safe)
    cells = table.to_numpy()
    if table.isna().all(axis=None):
        return go.Figure()
    figure = go.Figure(
        go.Heatmap(
            z=cells,
            zmin=0,
            zmax=1,
            colorscale="Cividis",
            x=list(range(len(table.columns))),
            y=list(range(len(table))),
            hoverongaps=False,
            xgap=2,
            ygap=2,
            colorbar_title="recovery",
            text=[["not measured" if math.isnan(v) else f"{v:.2f}" for v in row] for row in cells],
            hovertemplate="%{text}<extra></extra>",
        )
    )
    for (y, x), value in ((p, cells[p]) for p in itertools.product(*map(range, cells.shape))):
        said, colour = (
            ("not measured", None)
            if math.isnan(value)
            else (f"{value:.2f}", "#FFFFFF" if value < 0.55 else "#000000")
        )
        figure.add_annotation(x=x, y=y, text=said, showarrow=False, font_color=colour)
    sides = [text(f"{name} ({role})", 30) for name, role in zip(table.index, roles, strict=True)]
    return figure.update_layout(
        xaxis={
            "tickvals": list(range(len(table.columns))),
            "showgrid": False,
            "zeroline": False,
            "ticktext": [text(c, 40) for c in table.columns],
            "title": "model",
        },
        yaxis={
            "tickvals": list(range(len(table))),
            "ticktext": sides,
            "autorange": "reversed",
            "showgrid": False,
            "zeroline": False,
            "title": "attacked concept",
            "automargin": True,
        },
    )


def training(study: Study) -> go.Figure:
    """Everything that immunizations and attacks logged; a trace for each (arm, stage, quantity)."""
    figure = go.Figure()
    look = styles(study.arms)
    quantities = list(dict.fromkeys(study.training["quantity"]))
    for key, log in study.training.groupby(["arm", "stage", "quantity"], sort=False):
        arm, stage, quantity = key
        layer = quantity.startswith(LAYER)
        colour = COLOURS[quantities.index(quantity) % len(COLOURS)] if layer else look[arm].colour
        dash = DASHES[quantities.index(quantity) % len(DASHES)] if layer else look[arm].dash
        figure.add_scatter(
            x=list(log["step"]),
            y=list(log["value"]),
            mode="lines",
            name=text(quantity.removeprefix(LAYER) if layer else _label(study, arm)),
            meta={"arm": arm, "stage": stage, "quantity": family(quantity)},
            line={"color": colour, "dash": dash},
            hovertemplate="step %{x}: %{y:.4g}",
        )
    return figure.update_layout(
        xaxis_title="training step", yaxis_title="value", legend_y=-0.2, legend_orientation="h"
    )


LAYER = "L_noise/"


def family(quantity: str) -> str:
    """The noise losses of all layers belong in one picture."""
    return "L_noise of each layer" if quantity.startswith(LAYER) else quantity


def _label(study: Study, key: str) -> str:
    return next(arm.label for arm in study.arms if arm.key == key)


def label_bars(study: Study) -> go.Figure:
    """After the whole attack: how many images are recovered, memorised, degraded, unrelated."""
    figure = go.Figure()
    labels = study.labels
    names = dict.fromkeys(
        (arm, concept, attack)
        for arm, concept, attack in labels[["arm", "concept", "attack"]].itertuples(index=False)
    )
    rows = {key: text(f"{key[1]}, {key[2]}: {_label(study, key[0])}", 70) for key in names}
    for i, (label, group) in enumerate(labels.groupby("label")):
        keys = list(zip(group["arm"], group["concept"], group["attack"], strict=True))
        figure.add_bar(
            y=[rows[key] for key in keys],
            x=list(group["images"]),
            name=text(str(label)),
            orientation="h",
            marker_color=COLOURS[i % len(COLOURS)],
            marker_pattern_shape=("", "/", "x", ".")[i % 4],
            hovertemplate="%{x} images",
        )
    return figure.update_layout(
        barmode="stack", xaxis_title="images", yaxis={"automargin": True, "categoryorder": "trace"}
    )


def all_figures(study: Study) -> Mapping[str, go.Figure]:
    """Name on the page -> figure; those without data are left out."""
    drawn = {
        "curves": attack_curves(study),
        "plane": plane(study),
        "parallel": parallel(study),
        "cross": heat_map(study),
        "training": training(study),
        "labels": label_bars(study),
    }
    return {name: figure for name, figure in drawn.items() if figure.data}


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.16)"

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

from gift_ray.report.collect import RECOVERY, UNDEFENDED, Arm, Study, averaged, unit_recoveries
from gift_ray.verdict.labels import LABELS

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
    """Arm -> its look, which is its group's; no two alike until all combinations are used up."""
    looks = itertools.cycle(
        Style(colour, DASHES[(i + j) % len(DASHES)], SYMBOLS[(i + j) % len(SYMBOLS)])
        for j in range(len(DASHES))
        for i, colour in enumerate(COLOURS)
    )
    groups = dict.fromkeys(arm.group for arm in arms if arm.key != UNDEFENDED)
    found = dict(zip(groups, looks, strict=False))
    found[UNDEFENDED] = Style(UNDEFENDED_COLOUR, "longdash", "x")
    return {arm.key: found[arm.group] for arm in arms}


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

    The front is of the models against the same concepts: only they are each other's rivals. `kind` is
    what they are told apart by: the concepts in a search, the defenses in a comparison. There `resistance`
    is the mean over attacks and seeds, as in the standings, and the worst case stands beside it.
    """
    rows = [
        {
            "arm": arm.key,
            "label": arm.label,
            "kind": arm.group if study.rivals else f"against {', '.join(arm.malicious)}",
            "trial_id": arm.trial_id,
            "malicious": ", ".join(arm.malicious),
            "chosen": arm.chosen,
            "resistance": arm.scorecard["resistance"],
            "worst_resistance": arm.scorecard["resistance"],
            **{
                n: arm.scorecard[n]
                for n in ("retention", "worst_retention", "objective", "feasible")
            },
        }
        for arm in study.arms
        if arm.scorecard
    ]
    table = pd.DataFrame(rows)
    if len(table):
        if study.rivals:
            table["resistance"] = table["arm"].map(_mean_resistance(study))
        table["front"] = False
        for _, group in table.groupby("malicious"):
            table.loc[pareto(group), "front"] = True
    return table


def _mean_resistance(study: Study) -> dict[str, float]:
    """Arm -> resistance of its own malicious concepts, mean over attacks and seeds."""
    units = unit_recoveries(study)
    own = {arm.key: set(arm.malicious) for arm in study.arms}
    blocked = [
        concept in own[arm] for arm, concept in zip(units["arm"], units["concept"], strict=True)
    ]
    return (1 - units[blocked].groupby("arm")["recovery"].mean()).to_dict()


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
    """Retention against resistance: every scored model, the Pareto fronts, the gate."""
    figure = go.Figure()
    table = points(study)
    for _, group in table.groupby("malicious") if len(table) else ():
        front = group[group["front"]].sort_values("retention")
        figure.add_scatter(
            x=list(front["retention"]),
            y=list(front["resistance"]),
            mode="lines",
            line={"color": CHANCE_COLOUR, "dash": "dot"},
            hoverinfo="skip",
            showlegend=False,
        )
    for i, (kind, group) in enumerate(table.groupby("kind", sort=False) if len(table) else ()):
        colour, symbol = COLOURS[i % len(COLOURS)], SYMBOLS[i % len(SYMBOLS)]
        figure.add_scatter(
            x=list(group["retention"]),
            y=list(group["resistance"]),
            error_y=_bars(group["resistance"], group["worst_resistance"], group["resistance"]),
            mode="markers",
            name=text(str(kind)),
            customdata=[
                [t, text(label)] for t, label in zip(group["trial_id"], group["label"], strict=True)
            ],
            marker={
                "color": colour,
                "size": [15 if c and not study.rivals else 10 for c in group["chosen"]],
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
        yaxis_title="resistance (mean, down to the worst)"
        if study.rivals
        else "resistance (worst case)",
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


def cross(study: Study) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What attacking a concept (rows) regains on each chosen model (columns): the mean over attacks and
    seeds of the highest recovery, and the worst of them; NaN where it was not measured.

    In a comparison a column is a defense, with all its models.
    """
    arms = [arm for arm in study.arms if arm.chosen and arm.key != UNDEFENDED]
    names = {arm.key: arm.group if study.rivals else arm.label for arm in arms}
    units = unit_recoveries(study)
    units = units[units["arm"].isin(names)]
    cells = units.groupby(["concept", units["arm"].map(names)])["recovery"]
    rows, columns = [*study.malicious, *study.safe], list(dict.fromkeys(names.values()))
    mean, highest, lowest = (
        found.unstack().reindex(index=rows, columns=columns)
        for found in (cells.mean(), cells.max(), cells.min())
    )
    # A safe concept fares worst where an honest user regains least.
    return mean, pd.concat([highest.loc[study.malicious], lowest.loc[study.safe]])


def heat_map(study: Study) -> go.Figure:
    """Concept x concept: what an attack on one concept regains on the model immunized against others."""
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
        said, colour = cell(mean.iat[y, x], worst.iat[y, x])
        figure.add_annotation(x=x, y=y, text=said, showarrow=False, font_color=colour)
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
    """What a cell of the heat map says, and in which ink."""
    if math.isnan(mean):
        return "not measured", None
    said = f"{mean:.2f}" + (f" (worst {worst:.2f})" if abs(worst - mean) >= 0.005 else "")
    return said, "#FFFFFF" if mean < 0.55 else "#000000"


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
    """After the whole attack: shares of recovered, memorised, degraded and unrelated images, a bar for
    each model and a trace for each (concept, attack, label)."""
    figure = go.Figure()
    table = study.labels
    total = table.groupby(["arm", "concept", "attack"])["images"].transform("sum")
    table = table.assign(share=table["images"] / total)
    for place, label in enumerate(LABELS):
        own = table[table["label"] == label]
        for (concept, attack), group in own.groupby(["concept", "attack"], sort=False):
            figure.add_bar(
                y=[text(_label(study, arm), 70) for arm in group["arm"]],
                x=list(group["share"]),
                customdata=list(group["images"]),
                meta={"concept": concept, "attack": attack},
                name=label,
                orientation="h",
                marker_color=COLOURS[place],
                marker_pattern_shape=("", "/", "x", ".")[place],
                hovertemplate="%{y}: %{customdata} images (%{x:.0%})",
            )
    return figure.update_layout(
        barmode="stack",
        xaxis={"title": "share of images", "range": [0, 1], "tickformat": ".0%"},
        yaxis={"automargin": True, "autorange": "reversed"},
        legend={"y": -0.2, "orientation": "h", "traceorder": "normal"},
    )


def nudity(study: Study) -> go.Figure:
    """NudeNet: detections an image after the whole attack against the score that one must reach."""
    figure = go.Figure()
    look = styles(study.arms)
    table = study.detections
    for key, group in table.groupby(["arm", "concept", "attack", "part"], sort=False):
        arm, concept, attack, part = key
        figure.add_scatter(
            x=list(group["threshold"]),
            y=list(group["detections"] / group["images"]),
            customdata=group[["detections", "images"]].to_numpy().tolist(),
            mode="lines+markers",
            name=text(_label(study, arm)),
            meta={"arm": arm, "concept": concept, "attack": attack, "part": part},
            line={"color": look[arm].colour, "dash": look[arm].dash},
            marker={"symbol": look[arm].symbol, "size": 8},
            hovertemplate="score of at least %{x:.2f}: %{customdata[0]} in %{customdata[1]} images",
        )
    return figure.update_layout(
        xaxis_title="threshold on the detector's score",
        yaxis={"title": "detections an image", "rangemode": "tozero"},
        legend_y=-0.2,
        legend_orientation="h",
    )


def standings(study: Study) -> go.Figure:
    """A comparison at a glance: each defense's resistance under each attack with its interval, and its
    retention down to the worst probe."""
    figure = go.Figure()
    table = study.tables.get("standings", pd.DataFrame())
    if table.empty:
        return figure
    for place, (attack, group) in enumerate(table.groupby("attack", sort=False)):
        figure.add_scatter(
            x=list(group["resistance"]),
            y=list(group["arm"].map(text)),
            error_x=_bars(group["resistance"], group["low"], group["high"]),
            orientation="h",
            customdata=group[["low", "high", "worst", "n"]].to_numpy(object).tolist(),
            name=f"resistance to {text(str(attack))}",
            mode="markers",
            marker={
                "color": COLOURS[place % len(COLOURS)],
                "symbol": SYMBOLS[place % len(SYMBOLS)],
                "size": 11,
            },
            hovertemplate="%{y}: <b>%{x:.3f}</b>, 95 % interval %{customdata[0]:.3f} to "
            "%{customdata[1]:.3f}<br>worst unit %{customdata[2]:.3f}, n = %{customdata[3]}",
        )
    kept = table.drop_duplicates("arm")
    figure.add_scatter(
        x=list(kept["retention"]),
        y=list(kept["arm"].map(text)),
        error_x=_bars(kept["retention"], kept["worst_retention"], kept["retention"]),
        orientation="h",
        customdata=list(kept["worst_retention"]),
        name="retention, down to the worst probe",
        mode="markers",
        marker={"color": CHANCE_COLOUR, "symbol": "line-ns-open", "size": 16, "line": {"width": 3}},
        hovertemplate="%{y}: <b>%{x:.3f}</b>, worst probe %{customdata:.3f}",
    )
    return figure.update_layout(
        scattermode="group",
        xaxis={"title": "share (resistance, retention)", "range": [-0.03, 1.03]},
        yaxis={"automargin": True, "autorange": "reversed", "type": "category"},
        legend_y=-0.2,
        legend_orientation="h",
        hovermode="closest",
    )


def _bars(middle: pd.Series, low: pd.Series, high: pd.Series) -> dict[str, Any]:
    """Error bars; none where the interval is not known."""
    return {
        "symmetric": False,
        "array": list((high - middle).fillna(0)),
        "arrayminus": list((middle - low).fillna(0)),
    }


def all_figures(study: Study) -> Mapping[str, go.Figure]:
    """Name on the page -> figure; those without data are left out."""
    drawn = {
        "standings": standings(study),
        "curves": attack_curves(study),
        "plane": plane(study),
        "parallel": parallel(study),
        "cross": heat_map(study),
        "training": training(study),
        "labels": label_bars(study),
        "nudity": nudity(study),
    }
    return {name: figure for name, figure in drawn.items() if figure.data}


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.13)"

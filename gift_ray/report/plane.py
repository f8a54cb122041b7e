"""The trade-off: retention against resistance of every scored model, with the Pareto fronts and the gate."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
from matplotlib.figure import Figure

from gift_ray.report.contents import Study
from gift_ray.report.curves import unit_recoveries
from gift_ray.report.style import (
    CHANCE_COLOUR,
    COLOURS,
    MARKERS,
    SYMBOLS,
    error_bars,
    name_axes,
    plain,
    sheet,
    text,
)
from gift_ray.search.pareto import front_of


def points(study: Study) -> pd.DataFrame:
    """One row for each scored model: retention, resistance, objective, whether on the Pareto front.

    A Pareto front is drawn among the models against the same concepts, since only they compete. `kind` is
    what gives a point its colour: the concepts in a search, the defense in a comparison. In a comparison
    `resistance` is the mean over attacks and seeds, as in the standings; `worst_resistance` is the lower
    bound of the worst concept.
    """
    rows = [
        {
            "arm": arm.key,
            "label": arm.label,
            "kind": arm.group if study.rivals else f"against {', '.join(arm.malicious)}",
            "trial_id": arm.trial_id,
            "malicious": arm.malicious,
            "chosen": arm.chosen,
            "resistance": arm.scorecard["resistance"],
            "worst_resistance": arm.scorecard["resistance_low"],
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
            front = front_of(group[["retention", "resistance"]].to_numpy(float))
            table.loc[group.index[front], "front"] = True
    return table


def _mean_resistance(study: Study) -> dict[str, float]:
    """Key of an arm -> resistance of its own malicious concepts, mean over attacks and seeds."""
    units = unit_recoveries(study.curves)
    own = {arm.key: set(arm.malicious) for arm in study.arms}
    blocked = [
        concept in own[arm] for arm, concept in zip(units["arm"], units["concept"], strict=True)
    ]
    resistance: dict[str, float] = (1 - units[blocked].groupby("arm")["recovery"].mean()).to_dict()
    return resistance


def plane(study: Study) -> go.Figure:
    """For the page: a point for each scored model, the Pareto fronts dotted, the gate dashed."""
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
            error_y=error_bars(group["resistance"], group["worst_resistance"], group["resistance"]),
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
        xaxis_title="retention (mean over groups)",
        yaxis_title="resistance (mean, down to the worst)"
        if study.rivals
        else "resistance (worst case)",
        xaxis_range=[-0.03, 1.03],
        yaxis_range=[-0.03, 1.03],
        legend_y=-0.2,
        legend_orientation="h",
        hovermode="closest",
    )


def draw_plane(study: Study) -> Figure | None:
    """The same for papers; None without a scored model."""
    table = points(study)
    if table.empty:
        return None
    figure = sheet(1, 1)
    axes = figure.add_subplot()
    for _, group in table.groupby("malicious"):
        front = group[group["front"]].sort_values("retention")
        axes.plot(front["retention"], front["resistance"], color="grey", linestyle=":")
    for i, (kind, group) in enumerate(table.groupby("kind", sort=False)):
        colour, marker = COLOURS[i % len(COLOURS)], list(MARKERS.values())[i % len(MARKERS)]
        for feasible, part in group.groupby("feasible"):
            face = colour if feasible else "none"
            label = str(kind) + ("" if feasible else " (infeasible)")
            axes.scatter(
                part["retention"],
                part["resistance"],
                marker=marker,
                facecolors=face,
                edgecolors=colour,
                label=plain(label),
            )
    axes.axvline(study.config.gate.min_retention, color="grey", linestyle="--", linewidth=0.8)
    axes.axhline(study.config.gate.min_resistance, color="grey", linestyle="--", linewidth=0.8)
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    name_axes(axes, "retention", "resistance", "")
    axes.legend(fontsize=6)
    return figure


def trial_table(study: Study) -> pd.DataFrame:
    """All trials' models, best objective first, with the settings that were searched."""
    table = points(study)
    if table.empty:
        return table
    values = {trial["trial_id"]: trial["values"] for trial in study.trials}
    searched = study.config.search.space if study.config.search and not study.rivals else {}
    for path in searched:
        table[path] = [values[t].get(path) for t in table["trial_id"]]
    # A search's resistance is the worst case; a comparison has no trials.
    other = ["trial_id", "chosen"] if study.rivals else ["worst_resistance"]
    table = table.drop(columns=["arm", "malicious", "kind", *other]).rename(
        columns={"front": "on the Pareto front"}
    )
    return table.sort_values("objective", ascending=False)

"""What immunizations and attacks logged while they trained: losses, gradient norms, ratios."""

from __future__ import annotations

import math

import pandas as pd
import plotly.graph_objects as go
from matplotlib.figure import Figure

from gift_ray.report.arms import ReportArm
from gift_ray.report.contents import Study
from gift_ray.report.finished_steps import FinishedSteps
from gift_ray.report.style import COLOURS, DASHES, LINES, name_axes, plain, sheet, styles, text

TRAINING = ["arm", "stage", "quantity", "step", "value"]
# Prefix of the noise losses of single layers.
LAYER = "L_noise/"


def read_training(steps: FinishedSteps, arms: list[ReportArm]) -> pd.DataFrame:
    """Everything that was logged, one row for each (arm, stage, quantity, training step)."""
    tables = []
    for arm in arms:
        sources = {"immunize": arm.outline["immunize"]} | {
            f"{run['attack']} on {run['concept']}, seed {run['seed']}": run["images"]
            for run in arm.outline["attacks"]
        }
        for stage, name in sources.items():
            path = steps.path(name) / "training.parquet"
            if steps.records.get(name) is None or not path.exists():
                continue
            wide = pd.read_parquet(path)
            long = wide.melt("step", var_name="quantity", value_name="value")
            tables.append(long.assign(arm=arm.key, stage=stage)[TRAINING])
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=TRAINING)


def family(quantity: str) -> str:
    """What a quantity is chosen by on the page: the noise losses of all layers share one picture."""
    return "L_noise of each layer" if quantity.startswith(LAYER) else quantity


def training(study: Study) -> go.Figure:
    """For the page: a line for each (arm, stage, quantity)."""
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
            name=text(quantity.removeprefix(LAYER) if layer else study.labels_of_arms[arm]),
            meta={"arm": arm, "stage": stage, "quantity": family(quantity)},
            line={"color": colour, "dash": dash},
            hovertemplate="step %{x}: %{y:.4g}",
        )
    return figure.update_layout(
        xaxis_title="training step", yaxis_title="value", legend_y=-0.2, legend_orientation="h"
    )


def draw_training(study: Study) -> Figure | None:
    """For papers: what the chosen models' immunizations logged, a panel for each quantity; None without data.

    Quantities of single layers, which have a slash in their name, are left out.
    """
    chosen = {arm.key: arm for arm in study.arms if arm.chosen}
    log = study.training
    log = log[
        log["arm"].isin(chosen) & (log["stage"] == "immunize") & ~log["quantity"].str.contains("/")
    ]
    quantities = list(dict.fromkeys(log["quantity"]))
    if not quantities:
        return None
    look, rows = styles(study.arms), math.ceil(len(quantities) / 3)
    figure = sheet(rows, min(3, len(quantities)))
    for i, quantity in enumerate(quantities):
        axes = figure.add_subplot(rows, min(3, len(quantities)), i + 1)
        for arm, own in log[log["quantity"] == quantity].groupby("arm", sort=False):
            style = look[arm]
            axes.plot(
                own["step"],
                own["value"],
                color=style.colour,
                linestyle=LINES[style.dash],
                lw=1,
                label=plain(chosen[arm].label),
            )
        name_axes(axes, "training step", quantity, "")
        if i == 0:
            axes.legend(fontsize=6, loc="upper right")
    return figure

"""What the attacked images are after the whole attack: recovered, memorised, degraded or unrelated."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from gift_ray.report.arms import UNDEFENDED, ReportArm
from gift_ray.report.contents import Study
from gift_ray.report.finished_steps import FinishedSteps
from gift_ray.report.ruler import MeasuredBy
from gift_ray.report.style import COLOURS, text
from gift_ray.verdict import labels

LABEL = ["arm", "concept", "attack", "label", "images"]


def read_labels(
    steps: FinishedSteps,
    arms: list[ReportArm],
    references: dict[str, str],
    curves: pd.DataFrame,
    chance: dict[tuple[str, str], float],
    ruler: MeasuredBy,
) -> pd.DataFrame:
    """How many images have each label at the last attack step, over all seeds.

    Empty where the study does not measure what labels need (`labels.COLUMNS`). An image that could not be
    scored has no label.
    """
    tables = []
    for arm in arms:
        for run in arm.outline["attacks"]:
            levels = _levels(run, references, steps, curves, chance, ruler)
            if levels is None or steps.records.get(run["scores"]) is None:
                continue
            scores = pd.read_parquet(steps.path(run["scores"]) / "scores.parquet")
            if not set(labels.COLUMNS) <= set(scores):
                continue
            last = scores[scores["step"] == scores["step"].max()].dropna(subset=[*labels.COLUMNS])
            found = labels.label_images(last, levels)
            count = found.value_counts(sort=False).rename("images").reset_index()
            keys = {"arm": arm.key, "concept": run["concept"], "attack": run["attack"]}
            tables.append(count.assign(**keys)[LABEL])
    if not tables:
        return pd.DataFrame(columns=LABEL)
    return pd.concat(tables).groupby(LABEL[:4], sort=False, as_index=False).sum()


def _levels(
    run: dict[str, Any],
    references: dict[str, str],
    steps: FinishedSteps,
    curves: pd.DataFrame,
    chance: dict[tuple[str, str], float],
    ruler: MeasuredBy,
) -> labels.Levels | None:
    """The levels that divide the labels of one attack; None where a score that they need is missing."""
    alike = steps.record(references[run["concept"]], f"references of {run['concept']}")
    base = curves[curves["arm"] == UNDEFENDED]
    for column in ("concept", "attack", "seed"):
        base = base[base[column] == run[column]]
    own_chance = {
        metric: level for (name, metric), level in chance.items() if name == run["concept"]
    }
    # The floor counts the controls too.
    known = (run["concept"], run["attack"], "clip_image")
    if known in ruler.levels:
        own_chance["clip_image"] = ruler.levels[known][0]
    best = base.groupby("metric")["mean"].max().to_dict()
    if alike is None or not own_chance.keys() & best.keys() >= labels.Levels.MEASURED:
        return None
    return labels.Levels.of(own_chance, best, alike.result["largest"].get("lpips", math.nan))


def label_bars(study: Study) -> go.Figure:
    """For the page: a bar for each model with the shares of the four labels."""
    figure = go.Figure()
    table = study.labels
    total = table.groupby(["arm", "concept", "attack"])["images"].transform("sum")
    table = table.assign(share=table["images"] / total)
    for place, label in enumerate(labels.LABELS):
        own = table[table["label"] == label]
        for (concept, attack), group in own.groupby(["concept", "attack"], sort=False):
            figure.add_bar(
                y=[text(study.labels_of_arms[arm], 70) for arm in group["arm"]],
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

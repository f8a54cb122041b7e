"""The table of attack curves: scores by attack step, and the recovery that each judging measure gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import pandas as pd
from scipy.special import stdtrit

from gift_ray.report.arms import ReportArm
from gift_ray.report.finished_steps import FinishedSteps, Problem
from gift_ray.report.ruler import MeasuredBy
from gift_ray.verdict.recovery import area_under, steps_to_recovery

# Prefix of the metrics that are recoveries: "recovery by clip_image".
RECOVERY = "recovery by "


UNIT = ["arm", "concept", "attack", "seed"]
SCORE = ["mean", "stderr", "n", "unscored", "direction"]
CURVE = [*UNIT, "metric", "step", *SCORE]


def read_chance(steps: FinishedSteps, outline: dict[str, Any]) -> dict[tuple[str, str], float]:
    """(concept, metric) -> the mean score of the base model's images of unrelated prompts."""
    found = {}
    for concept, name in outline["chance"].items():
        record = steps.record(name, f"chance {concept}")
        for metric, curve in record.result["curves"].items() if record else ():
            found[concept, metric] = curve["0"]["mean"]
    return found


def read_curves(steps: FinishedSteps, arms: list[ReportArm]) -> pd.DataFrame:
    """The scores of all finished attacks; columns `CURVE`."""
    rows = []
    for arm in arms:
        for run in arm.outline["attacks"]:
            record = steps.record(run["scores"], arm.label)
            for metric, curve in record.result["curves"].items() if record else ():
                for step, score in curve.items():
                    rows.append(
                        (
                            arm.key,
                            run["concept"],
                            run["attack"],
                            run["seed"],
                            metric,
                            int(step),
                            *(score[name] for name in SCORE),
                        )
                    )
    return pd.DataFrame(rows, columns=CURVE)


def recovery_curves(curves: pd.DataFrame, ruler: MeasuredBy) -> pd.DataFrame:
    """Each judging measure's curves as recovery (gift_ray/verdict/recovery.py), of every seed.

    It is 0 at the floor and 1 at the undefended attack's best. A single seed may lie outside of this range;
    figures that are made of all seeds are cut off at 0 and 1.
    """
    tables = []
    for (concept, attack, measure), (floor, top) in ruler.levels.items():
        own = curves[
            (curves["concept"] == concept)
            & (curves["attack"] == attack)
            & (curves["metric"] == measure)
        ]
        if len(own) and top > floor:
            room = top - floor
            recovered = (own["mean"] - floor) / room
            tables.append(
                own.assign(metric=RECOVERY + measure, mean=recovered, stderr=own["stderr"] / room)
            )
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=CURVE)


@dataclass(frozen=True)
class Regained:
    """What one attack regained on one model, by the means over seeds: over measures and steps."""

    mean_recovery: float
    worst_recovery: float
    final_recovery: float
    area: float
    steps_to_recovery: int | None
    curves: int


def regained(recovered: pd.DataFrame) -> dict[tuple[str, str, str], Regained]:
    """(arm, concept, attack) -> its recovery curves, summarised."""
    found = {}
    for key, group in recovered.groupby(["arm", "concept", "attack"], sort=False):
        means = group.groupby(["metric", "step"])["mean"].mean().clip(0, 1)
        curves = [
            {int(k): float(v) for (_, k), v in curve.items()}
            for _, curve in means.groupby(level="metric")
        ]
        reached = [k for c in curves if (k := steps_to_recovery(c)) is not None]
        found[key] = Regained(
            mean_recovery=float(means.mean()),
            worst_recovery=float(means.max()),
            final_recovery=fmean(curve[max(curve)] for curve in curves),
            area=fmean(area_under(curve) for curve in curves),
            steps_to_recovery=min(reached, default=None),
            curves=len(curves),
        )
    return found


def unit_recoveries(curves: pd.DataFrame) -> pd.DataFrame:
    """The highest recovery of each (arm, concept, attack, seed), over metrics and attack steps."""
    recovered = curves[curves["metric"].str.startswith(RECOVERY)]
    units = recovered.groupby(UNIT, sort=False)["mean"].max().clip(0, 1)
    return units.rename("recovery").reset_index()


def averaged(curves: pd.DataFrame, arms: Sequence[ReportArm] = ()) -> pd.DataFrame:
    """Curves over all seeds.

    The mean with its 95 % interval (`low`, `high`), the lowest and the highest seed, the number of images
    and of unscored ones.

    The interval is Student's t: over the means of the seeds where there are several, else over the images
    of the only seed. Recovery has the bounds of its verdict instead, where its model has one.

    Args:
        arms: with their scorecards.
    """
    keys = ["arm", "concept", "attack", "metric", "direction", "step"]
    groups = curves.groupby(keys, sort=False, dropna=False)
    table = (
        groups.agg(
            mean_=("mean", "mean"),
            std=("mean", "std"),
            seeds=("mean", "count"),
            n=("n", "sum"),
            stderr=("stderr", "mean"),
            lowest=("mean", "min"),
            highest=("mean", "max"),
            unscored=("unscored", "sum"),
        )
        .reset_index()
        .rename(columns={"mean_": "mean"})
    )
    many = table["seeds"] > 1
    stderr = table["stderr"].where(~many, table["std"] / table["seeds"].clip(lower=1) ** 0.5)
    count = table["n"].where(~many, table["seeds"])
    half = stderr * stdtrit((count - 1).clip(lower=1).to_numpy(float), 0.975)
    table["low"], table["high"] = table["mean"] - half, table["mean"] + half
    recovered = table["metric"].str.startswith(RECOVERY)
    table.loc[recovered, "mean"] = table.loc[recovered, "mean"].clip(0, 1)
    bands = _bands(arms)
    places = table[["arm", "concept", "attack", "metric", "step"]].itertuples(
        index=False, name=None
    )
    for row, place in enumerate(places):
        if place in bands:
            table.loc[row, ["low", "high"]] = bands[place]
    return table.drop(columns=["std", "stderr"])


def _bands(arms: Sequence[ReportArm]) -> dict[tuple[str, str, str, str, int], list[float]]:
    """(arm, concept, attack, metric, step) -> the bounds of recovery, as the job computed them."""
    return {
        (arm.key, concept, *_attack_and_metric(name), int(step)): band
        for arm in arms
        if arm.scorecard
        for concept, verdict in arm.scorecard["concepts"].items()
        for name, found in verdict["attacks"].items()
        for step, band in found["bands"].items()
    }


def _attack_and_metric(name: str) -> tuple[str, str]:
    attack, _, measure = name.rpartition("/")
    return attack, RECOVERY + measure


def unscored(curves: pd.DataFrame, arms: list[ReportArm]) -> list[Problem]:
    """A problem for each point of a curve where a metric could not score all images."""
    labels = {arm.key: arm.label for arm in arms}
    holes = curves[(curves["unscored"] > 0) & ~curves["metric"].str.startswith(RECOVERY)]
    return [
        Problem(
            "unscored",
            f"{labels[row.arm]}: {row.attack} on {row.concept}, seed {row.seed}, step {row.step}",
            f"{row.metric} could not score {row.unscored} of {row.n + row.unscored} images",
        )
        for row in holes.itertuples()
    ]

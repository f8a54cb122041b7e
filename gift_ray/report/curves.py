"""The table of attack curves: scores against attack steps, and recovery as one metric more each."""

from __future__ import annotations

from typing import Any

import pandas as pd
from scipy.special import stdtrit

from gift_ray.config.schema import StudyConfig
from gift_ray.report.arms import UNDEFENDED, ReportArm
from gift_ray.report.reading import FinishedSteps, Problem
from gift_ray.verdict import scoring

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


def recovery_curves(
    config: StudyConfig,
    curves: pd.DataFrame,
    chance: dict[tuple[str, str], float],
    problems: list[Problem],
) -> pd.DataFrame:
    """The curves of each similarity as recovery (`scoring.recovery`).

    Recovery is the share that the attacker regains of what the undefended attack gains over chance. Where it
    can't be told, that is noted in `problems`.
    """
    keys = ["concept", "attack", "seed", "metric"]
    measured = curves[curves["metric"].isin(config.scoring.similarities)]
    tables = []
    for key, group in measured.groupby(keys, sort=False):
        concept, attack, seed, metric = key
        base = group[group["arm"] == UNDEFENDED]
        if base.empty or (concept, metric) not in chance:
            continue
        level, highest = chance[concept, metric], base["mean"].max()
        for _, curve in group.groupby("arm", sort=False):
            try:
                recovered = scoring.recovery(
                    dict(zip(curve["step"], curve["mean"], strict=True)),
                    dict(zip(base["step"], base["mean"], strict=True)),
                    level,
                )
            except ValueError as error:
                what = f"recovery of {concept} by {attack}, seed {seed}, {metric}"
                problems.append(Problem("unusable", what, str(error)))
                continue
            tables.append(
                curve.assign(
                    metric=RECOVERY + metric,
                    mean=curve["step"].map(recovered),
                    stderr=curve["stderr"] / (highest - level),
                )
            )
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=CURVE)


def concept_verdicts(recovered: pd.DataFrame) -> dict[tuple[str, str, str], scoring.ConceptVerdict]:
    """(arm, concept, attack) -> its recovery curves, summarised."""
    found: dict[tuple[str, str, str], dict[str, dict[int, float]]] = {}
    for key, group in recovered.groupby([*UNIT, "metric"], sort=False):
        arm, concept, attack, seed, metric = key
        curve = {int(k): float(v) for k, v in zip(group["step"], group["mean"], strict=True)}
        found.setdefault((arm, concept, attack), {})[f"{seed}/{metric}"] = curve
    return {key: scoring.ConceptVerdict.of(curves) for key, curves in found.items()}


def unit_recoveries(curves: pd.DataFrame) -> pd.DataFrame:
    """The highest recovery of each (arm, concept, attack, seed), over metrics and attack steps."""
    recovered = curves[curves["metric"].str.startswith(RECOVERY)]
    units = recovered.groupby(UNIT, sort=False)["mean"].max()
    return units.rename("recovery").reset_index()


def averaged(curves: pd.DataFrame) -> pd.DataFrame:
    """The curves over all seeds: mean, interval, lowest and highest seed, scored and unscored images.

    The 95 % interval (`low`, `high`) is Student's t: over the means of the seeds where there are several,
    else over the images of the only seed.
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
    return table.drop(columns=["std", "stderr"])


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

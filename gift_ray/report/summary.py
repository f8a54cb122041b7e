"""What a study found, as one JSON file for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from gift_ray import THREAT_MODEL
from gift_ray.config.names import slug
from gift_ray.records.record import is_done, provenance
from gift_ray.search.pareto import fronts
from gift_ray.study.plan import Arm, Plan
from gift_ray.study.protocol import protocol_id
from gift_ray.verdict.scorecard import curves, scorecard
from gift_ray.verdict.yardstick import Yardstick


def summarize(
    yardstick: Yardstick, fingerprint: str, trials: Sequence[dict[str, Any]],
    chosen: Sequence[dict[str, Any]],
) -> dict[str, Any]:  # fmt: skip
    """What a search found, as JSON values.

    These are the trials, the Pareto front of each model (trial ids), the curves of the undefended model and
    of chance, the chosen setting of each model, the verdict on each concept with its bounds, the judges'
    check, the protocol and the provenance.

    Args:
        yardstick: that of the search.
    """
    plan = yardstick.plan
    evaluation, study_dir = plan.config.evaluation, plan.config.study_dir
    return {
        "study": plan.config.name,
        "fingerprint": fingerprint,
        "trials": list(trials),
        "pareto": fronts(trials),
        "undefended": arm_curves(plan.undefended, study_dir),
        "chance": {c: curves(step, study_dir) for c, step in plan.chance_similarity.items()},
        "chosen": list(chosen),
        "concepts": {
            name: verdict for model in chosen for name, verdict in model.get("concepts", {}).items()
        },
        "judges": judges_table(yardstick),
        "protocol": evaluation.model_dump(mode="json"),
        "protocol_id": protocol_id(plan.config),
        "scoring": plan.config.scoring.model_dump(mode="json"),
        "threat_model": THREAT_MODEL,
        "provenance": provenance(),
    }


def summarize_comparison(
    plans: Mapping[str, Plan],
    yardstick: Yardstick,
    fingerprint: str,
    tables: Mapping[str, pd.DataFrame],
) -> dict[str, Any]:
    """Each defense's models with their scorecards, and the tables that set them side by side.

    Args:
        plans: defense -> the study with it; all steps are done.
        fingerprint: of the comparison.
        tables: name -> table.
    """
    config = next(iter(plans.values())).config
    return {
        "study": config.name,
        "fingerprint": fingerprint,
        "scorecards": {
            defense: [
                {"malicious": list(arm.malicious), **asdict(scorecard(yardstick, arm))}
                for arm in plan.defended
            ]
            for defense, plan in plans.items()
        },
        "judges": judges_table(yardstick),
        "tables": {name: table.to_dict("split", index=False) for name, table in tables.items()},
        "protocol_id": protocol_id(config),
        "threat_model": THREAT_MODEL,
        "provenance": provenance(),
    }


def arm_summary(yardstick: Yardstick, arm: Arm) -> dict[str, Any]:
    """One arm's verdicts, scorecard and curves."""
    card = scorecard(yardstick, arm)
    return {
        "concepts": card.verdicts(),
        "scorecard": asdict(card),
        "curves": arm_curves(arm, yardstick.study_dir),
    }


def judges_table(yardstick: Yardstick) -> list[dict[str, Any]]:
    """The judges' check, a row for each concept and measure."""
    least = yardstick.config.scoring.least_auc
    return [{**asdict(r), "blind": not r.reads(least)} for r in yardstick.readings]


def arm_curves(arm: Arm, study_dir: Path) -> dict[str, dict[str, dict[int, float]]]:
    """`concept/attack/seed` -> metric -> step -> mean score."""
    return {"/".join(map(str, key)): curves(step, study_dir) for key, step in arm.attacks.items()}


def trial_curves(plan: Plan, study_dir: Path) -> dict[str, dict[int, float]]:
    """`attack/concept/metric` -> step -> mean score over seeds, of a trial's finished attacks."""
    return mean_curves(plan.defended, study_dir)


def mean_curves(arms: Sequence[Arm], study_dir: Path) -> dict[str, dict[int, float]]:
    """`attack/concept/metric` -> step -> mean score over seeds, of some arms' finished attacks."""
    found: dict[str, dict[int, list[float]]] = {}
    for arm in arms:
        for (concept, attack, _seed), step in arm.attacks.items():
            if not is_done(step.folder(study_dir)):
                continue
            for metric, curve in curves(step, study_dir).items():
                points = found.setdefault(f"{attack}/{slug(concept)}/{metric}", {})
                for k, value in curve.items():
                    points.setdefault(k, []).append(value)
    return {name: {k: sum(v) / len(v) for k, v in points.items()} for name, points in found.items()}

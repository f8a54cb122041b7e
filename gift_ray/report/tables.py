"""The tables of a report, as its page and the files for papers show them."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from gift_ray.report.concept_cards import ConceptCard
from gift_ray.report.contents import Study
from gift_ray.report.cost import cost_table
from gift_ray.report.curves import averaged
from gift_ray.report.detections import nudity_table
from gift_ray.report.plane import trial_table


def tables(study: Study) -> dict[str, pd.DataFrame]:
    """Name -> table: the judges' check, verdicts, attacks, trials, curves, retention, cost."""
    labels = study.labels_of_arms
    return {
        "judges": study.ruler.table(),
        "verdicts": pd.DataFrame([_card_row(card) for card in study.cards]),
        "attacks": attack_table(study),
        "trials": trial_table(study),
        "retention": pd.DataFrame(
            [
                {
                    "model": arm.label,
                    "group": group,
                    "kept": b["mean"],
                    "low": b["low"],
                    "high": b["high"],
                }
                for arm in study.arms
                if arm.scorecard
                for group, b in arm.scorecard["groups"].items()
            ]
        ),
        "curves": averaged(study.curves, study.arms).assign(arm=lambda t: t["arm"].map(labels)),
        "cost": cost_table(study),
        "nudity": nudity_table(study),
        **study.tables,
    }


def _card_row(card: ConceptCard) -> dict[str, Any]:
    return {
        "concept": card.concept,
        "verdict": card.verdict,
        "recovery": card.recovery.get("mean", math.nan),
        "low": card.recovery.get("low", math.nan),
        "high": card.recovery.get("high", math.nan),
        "images needed": card.needed.get("images"),
        "seeds needed": card.needed.get("seeds"),
        "status": card.status,
        "reason": card.reason,
        "worst seed": card.tail,
        "mean recovery": card.mean_recovery,
        "steps to recovery": card.steps_to_recovery,
        "images per point": card.images,
        "retention": card.retention,
        "worst group": min((b["mean"] for b in card.groups.values()), default=math.nan),
    }


def attack_table(study: Study) -> pd.DataFrame:
    """What each attack regained on each model: mean and worst recovery, and how fast."""
    labels = study.labels_of_arms
    longest = study.curves.groupby(["concept", "attack"])["step"].max()
    return pd.DataFrame(
        [
            {
                "concept": concept,
                "attack": attack,
                "model": labels[arm],
                "mean recovery": found.mean_recovery,
                "worst recovery": found.worst_recovery,
                "final recovery": found.final_recovery,
                "area": found.area,
                "steps to 90 % recovery": found.steps_to_recovery
                if found.steps_to_recovery is not None
                else f"over {longest[concept, attack]}",
                "curves": found.curves,
            }
            for (arm, concept, attack), found in study.recoveries.items()
        ]
    )

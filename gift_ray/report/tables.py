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
    """Name -> table: verdicts, attacks, trials, curves, retention probes, cost."""
    labels = study.labels_of_arms
    return {
        "verdicts": pd.DataFrame([_card_row(card) for card in study.cards]),
        "attacks": attack_table(study),
        "trials": trial_table(study),
        "probes": pd.DataFrame(
            [
                {"model": arm.label, "probe": probe, "retention": value}
                for arm in study.arms
                if arm.scorecard
                for probe, value in arm.scorecard["probes"].items()
            ]
        ),
        "curves": averaged(study.curves).assign(arm=lambda t: t["arm"].map(labels)),
        "cost": cost_table(study),
        "nudity": nudity_table(study),
        **study.tables,
    }


def _card_row(card: ConceptCard) -> dict[str, Any]:
    probes = card.probes
    return {
        "concept": card.concept,
        "status": card.status,
        "reason": card.reason,
        "resistance": card.resistance,
        "mean recovery": card.mean_recovery,
        "steps to recovery": card.steps_to_recovery,
        "recovery curves": card.curves,
        "images per point": card.images,
        "retention": card.retention,
        "worst probe": min(probes.values(), default=math.nan),
        "probes": len(probes),
        "confirmed resistance": card.confirmed.get("resistance"),
        "confirmed retention": card.confirmed.get("retention"),
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
                "worst recovery": 1 - found.resistance,
                "final recovery": found.final_recovery,
                "area": found.area,
                "steps to 90 % recovery": found.steps_to_recovery
                if found.steps_to_recovery is not None
                else f"over {longest[concept, attack]}",
                "curves": len(found.curves),
            }
            for (arm, concept, attack), found in study.recoveries.items()
        ]
    )

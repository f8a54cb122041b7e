"""The cards at the top of the page: what was decided about each malicious concept, and why."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from gift_ray.config.schema import StudyConfig
from gift_ray.report.arms import ReportArm


@dataclass(frozen=True)
class ConceptCard:
    """What was decided about one malicious concept, and the numbers behind it.

    `status` is registered, refused or undecided. Each of the `curves` recovery curves has a highest point;
    `spread` holds 1 minus the largest and 1 minus the smallest of these, and `resistance` is the first of
    both. `confirmed` holds the scores that the gate read, by name, where the models were judged once more
    after the search; else it is empty.
    """

    concept: str
    kind: str
    status: str
    reason: str
    trial_id: str | None = None
    model: str = ""
    resistance: float = math.nan
    spread: tuple[float, float] = (math.nan, math.nan)
    mean_recovery: float = math.nan
    steps_to_recovery: int | None = None
    curves: int = 0
    images: int = 0
    retention: float = math.nan
    probes: dict[str, float] = field(default_factory=dict)
    confirmed: dict[str, float] = field(default_factory=dict)


def concept_cards(
    config: StudyConfig,
    arms: list[ReportArm],
    trials: list[dict[str, Any]],
    summary: dict[str, Any] | None,
    curves: pd.DataFrame,
) -> list[ConceptCard]:
    """One card for each malicious concept, from the chosen model that is immunized against it."""
    cards = []
    for concept in config.concepts.malicious:
        arm = next((a for a in arms if a.chosen and concept.name in a.malicious), None)
        together = config.concepts.mode != "per_concept"
        group = [c.name for c in config.concepts.malicious] if together else [concept.name]
        chosen = summary["chosen"] if summary else []
        found = next((m for m in chosen if m["malicious"] == ", ".join(group)), None)
        status, reason, model = _decision(found, trials, ended=summary is not None)
        numbers: dict[str, Any] = {"confirmed": found.get("confirmed", {}) if found else {}}
        if arm and arm.scorecard:
            numbers |= _numbers(arm, concept.name, curves)
        cards.append(
            ConceptCard(concept.name, concept.kind, status, reason, model=model, **numbers)
        )
    return cards


def _decision(
    model: dict[str, Any] | None, trials: list[dict[str, Any]], *, ended: bool
) -> tuple[str, str, str]:
    """(status, reason, registered model) that the summary gives for one model."""
    if not ended:
        return "undecided", f"{len(trials)} trials have ended; the study has not", ""
    if model is None:
        return "undecided", "no model against it was put to the gate", ""
    if not model["registered"]:
        return "refused", model["refused"], ""
    champion = " (champion)" if model["registered"]["champion"] else ""
    return "registered", "", model["registered"]["uri"] + champion


def _numbers(
    arm: ReportArm,
    concept: str,
    curves: pd.DataFrame,
) -> dict[str, Any]:
    """The numbers of one concept from its model's scorecard, as the job wrote it."""
    assert arm.scorecard is not None
    card = arm.scorecard["concepts"][concept]
    highest = [max(curve.values()) for curve in card["curves"].values()]
    own = curves[(curves["arm"] == arm.key) & (curves["concept"] == concept)]
    return {
        "trial_id": arm.trial_id,
        "resistance": card["resistance"],
        "spread": (1 - max(highest), 1 - min(highest)),
        "mean_recovery": card["mean_recovery"],
        "steps_to_recovery": card["steps_to_recovery"],
        "curves": len(highest),
        "images": int(own["n"].max()) if len(own) else 0,
        "retention": arm.scorecard["retention"],
        "probes": arm.scorecard["probes"],
    }

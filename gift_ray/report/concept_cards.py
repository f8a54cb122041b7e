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

    Attributes:
        status: registered, refused or undecided.
        verdict: resists, regained or not shown.
        recovery: the bounds that the gate read, from which the verdict follows.
        needed: the images and seeds that would settle a `not shown`.
        tail: the recovery of the worst seed.
        worst: the attack and measure that came furthest.
        groups: the bounds of each retention group.
    """

    concept: str
    kind: str
    status: str
    reason: str
    verdict: str = ""
    recovery: dict[str, float] = field(default_factory=dict)
    needed: dict[str, int] = field(default_factory=dict)
    trial_id: str | None = None
    model: str = ""
    tail: float = math.nan
    worst: str = ""
    mean_recovery: float = math.nan
    steps_to_recovery: int | None = None
    images: int = 0
    retention: float = math.nan
    groups: dict[str, dict[str, float]] = field(default_factory=dict)


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
        found = next((m for m in chosen if m["malicious"] == group), None)
        status, reason, model = _decision(found, trials, ended=summary is not None)
        numbers: dict[str, Any] = {}
        if arm and arm.scorecard:
            numbers |= _numbers(arm, concept.name, curves)
        # What the gate read counts more than what the search found.
        numbers |= (found or {}).get("concepts", {}).get(concept.name, {})
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
    own = curves[(curves["arm"] == arm.key) & (curves["concept"] == concept)]
    kept = ("verdict", "recovery", "needed", "tail", "worst", "mean_recovery", "steps_to_recovery")
    return {
        "trial_id": arm.trial_id,
        **{name: card[name] for name in kept},
        "images": int(own["n"].max()) if len(own) else 0,
        "retention": arm.scorecard["retention"],
        "groups": arm.scorecard["groups"],
    }

"""Everything that a report shows, as tables and plain values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from gift_ray.config.schema import StudyConfig
from gift_ray.report.arms import ReportArm
from gift_ray.report.concept_cards import ConceptCard
from gift_ray.report.curves import Regained
from gift_ray.report.finished_steps import Problem
from gift_ray.report.ruler import MeasuredBy


@dataclass(frozen=True)
class Study:
    """Everything that a report shows.

    `rivals` are the defenses of a comparison; a search has none. `curves` has one row for each (arm,
    concept, attack, seed, metric, attack step), recovery among the metrics; `recoveries` sums
    up each (arm, concept, attack); `ruler` holds the judges' check and the floors.
    `units` counts the steps that are done and all that are known. `tables` are those that a comparison's
    job made. `problems` is everything that is missing.
    """

    folder: Path
    steps: Path
    config: StudyConfig
    rivals: tuple[str, ...]
    finished: bool
    units: tuple[int, int]
    planned_trials: int
    arms: list[ReportArm]
    trials: list[dict[str, Any]]
    cards: list[ConceptCard]
    curves: pd.DataFrame
    recoveries: dict[tuple[str, str, str], Regained]
    ruler: MeasuredBy
    training: pd.DataFrame
    cost: pd.DataFrame
    labels: pd.DataFrame
    detections: pd.DataFrame
    tables: dict[str, pd.DataFrame]
    problems: list[Problem]
    provenance: dict[str, list[str]]
    protocol_id: str

    @property
    def labels_of_arms(self) -> dict[str, str]:
        """Key of an arm -> what it is called on the page."""
        return {arm.key: arm.label for arm in self.arms}

    @property
    def kinds(self) -> dict[str, str]:
        """Name of a concept -> its kind: object, style or unsafe."""
        concepts = (*self.config.concepts.malicious, *self.config.concepts.safe)
        return {concept.name: concept.kind for concept in concepts}

    @property
    def malicious(self) -> list[str]:
        """Names of the malicious concepts, in the study's order."""
        return [concept.name for concept in self.config.concepts.malicious]

    @property
    def safe(self) -> list[str]:
        """Names of the safe concepts, in the study's order."""
        return [concept.name for concept in self.config.concepts.safe]

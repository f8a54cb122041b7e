"""A study's folder as the tables of its report, and a list of everything that is missing from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from gift_ray.config.schema import ReportConfig, StudyConfig
from gift_ray.report.arms import ReportArm, compared, searched, undefended
from gift_ray.report.concept_cards import concept_cards
from gift_ray.report.contents import Study
from gift_ray.report.cost import read_cost
from gift_ray.report.curves import (
    read_chance,
    read_curves,
    recovery_curves,
    regained,
    unscored,
)
from gift_ray.report.detections import read_detections
from gift_ray.report.finished_steps import (
    FinishedSteps,
    Problem,
    read_outline,
    read_provenance,
    read_summary,
    read_trials,
)
from gift_ray.report.label_shares import read_labels
from gift_ray.report.ruler import read_ruler
from gift_ray.report.training_log import read_training


def collect(folder: Path, images: str | None = None) -> Study:
    """Read a study's folder.

    Args:
        folder: that of the study, of its benchmark or of an attacked checkpoint.
        images: `all`, `safe_only` or `none`; overrides the study's `report.images`.

    Raises:
        ConfigError: the folder holds no study.
    """
    outline = read_outline(folder)
    config = StudyConfig.model_validate(outline["config"])
    if images is not None:
        config = config.model_copy(
            update={"report": ReportConfig.model_validate({"images": images})}
        )
    steps = FinishedSteps(folder)
    trials = read_trials(folder, outline["fingerprint"])
    summary = read_summary(folder, outline["fingerprint"])

    # Which models there are, and everything that was measured on them.
    rivals = dict(outline.get("rivals", ()))
    arms = [undefended(outline)]
    arms += compared(rivals, summary) if rivals else searched(config, trials, summary)
    _read_records(steps, arms)
    chance = read_chance(steps, outline)
    curves = read_curves(steps, arms)
    ruler = read_ruler(folder)
    recovered = recovery_curves(curves, ruler)
    curves = pd.concat([curves, recovered], ignore_index=True) if len(recovered) else curves
    recoveries = regained(recovered)

    # What is missing from all this, and why.
    planned = config.search.num_samples if config.search else 0
    problems = [
        *_failed(trials, planned, summary is not None),
        *(Problem("unusable", "set aside", why) for why in outline.get("set_aside", ())),
        *ruler.problems(),
        *steps.problems,
        *unscored(curves, arms),
    ]
    return Study(
        folder=folder,
        steps=steps.steps,
        config=config,
        rivals=tuple(rivals),
        finished=summary is not None and not any(p.kind == "unfinished" for p in problems),
        units=steps.units,
        planned_trials=planned,
        arms=arms,
        trials=trials,
        cards=[] if rivals else concept_cards(config, arms, trials, summary, curves),
        curves=curves,
        recoveries=recoveries,
        ruler=ruler,
        training=read_training(steps, arms),
        cost=read_cost(steps),
        labels=read_labels(steps, arms, outline["references"], curves, chance, ruler),
        detections=read_detections(steps, arms),
        tables=_compared_tables(summary) if rivals else {},
        problems=list(dict.fromkeys(problems)),
        provenance=read_provenance(steps),
        protocol_id=(summary or {}).get("protocol_id", ""),
    )


def _read_records(steps: FinishedSteps, arms: list[ReportArm]) -> None:
    """Read the records of all steps of these arms. Steps that an ended trial never began are not missing."""
    for arm in arms:
        if arm.trial_id is not None and arm.scorecard is None:
            steps.leave_out(arm.outline["steps"])
        for name, label in arm.outline["steps"].items():
            steps.record(name, label)


def _compared_tables(summary: dict[str, Any] | None) -> dict[str, pd.DataFrame]:
    """The tables that a comparison's job made of its units."""
    found = summary["tables"] if summary else {}
    return {name: pd.DataFrame(**table) for name, table in found.items()}


def _failed(trials: list[dict[str, Any]], planned: int, ended: bool) -> list[Problem]:
    """The trials without a verdict, and those that have not ended yet."""
    problems = [
        Problem(trial["state"], f"trial {number} ({trial['trial_id']})", trial["reason"])
        for number, trial in enumerate(trials, 1)
        if not trial["arms"]
    ]
    if len(trials) < planned and not ended:
        why = f"{len(trials)} of {planned} trials have ended"
        problems.append(Problem("unfinished", "the search", why))
    return problems

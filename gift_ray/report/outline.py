"""What a study planned, as JSON: written by the job that runs it, read by the report.

`study.json` is written before the first unit, `trials/<id>.json` when a trial ends. Together with the
records they make a study's folder enough for a report, on any machine and at any time. A comparison of
several defenses has a folder of its own inside the study's, whose steps it reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from gift_ray.config.schema import StudyConfig
from gift_ray.records.record import digest, provenance, write_json_atomic
from gift_ray.report.summary import arm_summary, judges_table
from gift_ray.study.plan import Arm, Plan
from gift_ray.study.step import Step, closure
from gift_ray.verdict.yardstick import Yardstick

STUDY = "study.json"
TRIALS = "trials"
YARDSTICK = "yardstick.json"


def write_study(plan: Plan, fingerprint: str) -> None:
    """Write the resolved configuration, without addresses and paths, and the steps that all trials share."""
    write_json_atomic(plan.config.study_dir / STUDY, _outline(plan, fingerprint))


def write_comparison(
    config: StudyConfig, plans: Mapping[str, Plan], folder: Path, set_aside: Sequence[str] = ()
) -> str:
    """Write the outline of a comparison of several defenses; returns its fingerprint.

    Args:
        config: that of the study.
        plans: for each defense the plan of the study with it; the undefended one comes first.
        folder: a folder inside the study's folder.
        set_aside: the reasons why planned units or models can't be judged and are left out.
    """
    base = replace(next(iter(plans.values())), config=config)
    steps = closure(step for plan in plans.values() for step in plan.steps())
    fingerprint = digest(
        [config.scoring.model_dump(mode="json"), [step.fingerprint for step in steps]]
    )
    _, *defenses = plans.items()
    # A list: JSON objects are written in the order of their keys.
    rivals = [[defense, [arm_outline(a) for a in plan.defended]] for defense, plan in defenses]
    folder.mkdir(parents=True, exist_ok=True)
    compared = {"rivals": rivals, "set_aside": list(set_aside)}
    write_json_atomic(folder / STUDY, _outline(base, fingerprint) | compared)
    return fingerprint


def write_yardstick(yardstick: Yardstick, folder: Path) -> None:
    """Write the judges' check, the floor of every attack, and what can't be judged with the reasons."""
    rulers = [
        {"concept": concept, "attack": attack, "measure": measure, "rise": ruler.rise,
         "floor": asdict(ruler.floor.bounds()), "top": asdict(ruler.top.bounds())}
        for (concept, attack), own in yardstick.rulers.items()
        for measure, ruler in own.items()
    ]  # fmt: skip
    unusable = [
        {"concept": concept, "attack": attack, "measure": measure, "why": why}
        for (concept, attack, measure), why in yardstick.unusable.items()
    ]
    found = {"judges": judges_table(yardstick), "rulers": rulers, "unusable": unusable}
    write_json_atomic(folder / YARDSTICK, found)


def _outline(plan: Plan, fingerprint: str) -> dict[str, Any]:
    return {
        "fingerprint": fingerprint,
        "config": plan.config.model_dump(mode="json", exclude={"tracking", "output_dir"}),
        "undefended": arm_outline(plan.undefended),
        "chance": {concept: step.name for concept, step in plan.chance_similarity.items()},
        "references": {concept: step.name for concept, step in plan.references.items()},
        "shared": {step.name: step.label for step in plan.shared()},
        "provenance": provenance(),
    }


def write_trial(plan: Plan, trial: dict[str, Any], run_link: str, fingerprint: str) -> None:
    """Write an ended trial, once: its result, its MLflow run, its models' steps and scorecards.

    Args:
        plan: of the trial's setting.
        trial: a `Trial` as a dict; a failed one has no verdicts in `arms`, and gets no scorecards.
        run_link: the page of its MLflow run.
        fingerprint: of the study.
    """
    study_dir = plan.config.study_dir
    path = study_dir / TRIALS / f"{trial['trial_id']}.json"
    if path.exists():
        return
    cards = []
    if trial["arms"]:
        yardstick = Yardstick.of(plan, study_dir)
        cards = [arm_summary(yardstick, arm)["scorecard"] for arm in plan.defended]
    arms = [arm_outline(arm) for arm in plan.defended]
    outline = {
        **trial,
        "fingerprint": fingerprint,
        "run_link": run_link,
        "time": provenance()["time"],
        "models": [
            a | {"scorecard": c} for a, c in zip(arms, cards or [None] * len(arms), strict=True)
        ],
    }
    path.parent.mkdir(exist_ok=True)
    write_json_atomic(path, outline)


def arm_outline(arm: Arm) -> dict[str, Any]:
    """The names of an arm's step folders, and what each is about."""
    return {
        "label": arm.label,
        "malicious": list(arm.malicious),
        "immunize": arm.immunize.name,
        "attacks": [
            {"concept": concept, "attack": attack, "seed": seed, **_measured(step)}
            for (concept, attack, seed), step in arm.attacks.items()
        ],
        "samples": [{"group": group, **_measured(step)} for group, step in arm.samples.items()],
        "steps": {step.name: step.label for step in arm.steps()},
    }


def _measured(scores: Step) -> dict[str, str | None]:
    concept = scores.inputs.get("concept")
    return {
        "scores": scores.name,
        "images": scores.inputs["images"].name,
        "references": concept.name if concept else None,
    }

"""Several concepts side by side: what an attack on one regains on a model against others, and what each
way of immunizing against many (`concepts.mode`) reaches and costs. Pure but for reading finished steps.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from gift_ray.records.record import read_claim
from gift_ray.study.plan import Arm, Plan
from gift_ray.study.step import Step, closure
from gift_ray.verdict.comparison import images_seen
from gift_ray.verdict.scorecard import attack_results, scorecard
from gift_ray.verdict.yardstick import Yardstick

TRAINS = ("immunize", "merge")


def matrix(layout: Plan, yardstick: Yardstick) -> pd.DataFrame:
    """One row for each model and attacked concept: the resistance (worst case over attacks,
    measures and steps), and what of the concept's neighbours and of a safe concept's fine-tuning is
    kept. Whole for a plan with `matrix`; else each model's own concepts and the safe ones."""
    rows = []
    for arm in layout.defended:
        model = ", ".join(arm.malicious)
        probes = scorecard(yardstick, arm).probes
        for concept in dict.fromkeys(name for name, _, _ in arm.attacks):
            row: dict[str, Any] = {"model against": model, "concept": concept}
            tuned = [v for name, v in probes.items() if name.startswith(f"finetune/{concept}/")]
            if tuned:
                row["fine-tuning kept"] = min(tuned)
            elif concept not in {c.name for c in layout.config.concepts.safe}:
                row["resistance"] = 1 - max(_recovered(yardstick, arm, concept))
            if f"generation/neighbors/{concept}" in probes:
                row["neighbours kept"] = probes[f"generation/neighbors/{concept}"]
            rows.append(row)
    return pd.DataFrame(rows)


def standing(layout: Plan, yardstick: Yardstick) -> dict[str, float]:
    """What all models of a study reach together: the worst and the mean concept, on the model that is
    against it; retention and its worst group, over all models."""
    cards = [scorecard(yardstick, arm) for arm in layout.defended]
    verdicts = [verdict for card in cards for verdict in card.concepts.values()]
    return {
        "models": len(cards),
        "worst resistance": min(v.resistance for v in verdicts),
        "mean resistance": sum(v.resistance for v in verdicts) / len(verdicts),
        "mean recovery": sum(v.mean_recovery for v in verdicts) / len(verdicts),
        "retention": sum(card.retention for card in cards) / len(cards),
        "worst model's retention": min(card.retention for card in cards),
        "worst group": min(card.worst_retention for card in cards),
    }


def cost(layout: Plan, study_dir: Path) -> dict[str, float]:
    """What making the models took: trainings and merges, images seen, seconds (of the wall clock, and of
    the CPU) one after the other, and seconds where those that don't wait for each other run at once."""
    ends = [arm.immunize for arm in layout.defended]
    steps = [step for step in closure(ends) if step.kind in TRAINS]
    took = {s.fingerprint: read_claim(s.folder(study_dir)).provenance for s in steps}
    return {
        "units": len(steps),
        "images seen": sum(_images_seen(step, study_dir) for step in steps),
        "seconds": sum(t["seconds"] for t in took.values()),
        "CPU seconds": sum(t["cpu_seconds"] for t in took.values()),
        "seconds at once": _longest(ends, {name: t["seconds"] for name, t in took.items()}),
    }


def regressions(before: Yardstick, after: Yardstick) -> pd.DataFrame:
    """What adding concepts did to the earlier ones: each one's resistance before and after, and retention
    as a whole."""
    (first,), (then,) = before.plan.defended, after.plan.defended
    cards = scorecard(before, first), scorecard(after, then)
    rows = [
        {"what": f"resistance: {name}", "before": verdict.resistance,
         "after": cards[1].concepts[name].resistance}
        for name, verdict in cards[0].concepts.items()
    ]  # fmt: skip
    rows.append({"what": "retention", "before": cards[0].retention, "after": cards[1].retention})
    table = pd.DataFrame(rows)
    return table.assign(change=table["after"] - table["before"])


def _recovered(yardstick: Yardstick, arm: Arm, concept: str) -> list[float]:
    """The largest recovery by each attack and measure."""
    return [
        result.recovery.mean
        for attack in dict.fromkeys(key[1] for key in arm.attacks if key[0] == concept)
        for result, _ in attack_results(yardstick, arm, (concept, attack)).values()
    ]


def _longest(ends: Iterable[Step], seconds: dict[str, float]) -> float:
    """The longest way through the steps that lead to `ends`."""
    return max(
        (
            seconds.get(step.fingerprint, 0.0) + _longest(step.inputs.values(), seconds)
            for step in ends
        ),
        default=0.0,
    )


def _images_seen(step: Step, study_dir: Path) -> int:
    return images_seen(pd.read_parquet(step.folder(study_dir) / "training.parquet"))

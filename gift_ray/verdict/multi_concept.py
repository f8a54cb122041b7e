"""Studies of several concepts: what an attack with one concept regains on a model against others.

Also what each way of immunizing against several concepts (`concepts.mode`) reaches and costs. The functions
read the folders of finished steps and have no other side effects.
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
    """One row for each model and each concept that it was attacked with.

    A row of a malicious concept holds the resistance (the worst case over attacks, measures and steps) and
    the share of its neighbours that is kept; a row of a safe concept the share of its fine-tuning that is
    kept. A plan that was made with `matrix` attacks every model with every concept; others attack a model
    with its own malicious concepts and the safe ones.
    """
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
    """What all models of a study reach together.

    Resistance is the worst and the mean over concepts, each on the model that is immunized against it;
    retention and its worst group are taken over all models.
    """
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
    """What making the models took: trainings and merges, images seen, and seconds.

    `seconds` (of the wall clock) and `CPU seconds` are sums, as if everything ran one after the other;
    `seconds at once` is the wall-clock time if steps that don't need each other run at the same time.
    """
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
    """What adding concepts did to the earlier ones: resistance against each of them, and retention.

    Args:
        before: of the study without the added concepts.
        after: of the study with them.
    """
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
    """The seconds of the longest chain of steps that leads to one of `ends`."""
    return max(
        (
            seconds.get(step.fingerprint, 0.0) + _longest(step.inputs.values(), seconds)
            for step in ends
        ),
        default=0.0,
    )


def _images_seen(step: Step, study_dir: Path) -> int:
    return images_seen(pd.read_parquet(step.folder(study_dir) / "training.parquet"))

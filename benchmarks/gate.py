"""What the gate says of every arm of a finished benchmark, and what it would say had it seen one attack.

    python benchmarks/gate.py configs/builtin/unsafe.yaml [key=value ...]

Reads records, computes nothing: jobs/benchmark.py has to have finished with the same configuration.
"""

from __future__ import annotations

import sys

from gift_ray.study.load import load_study
from gift_ray.study.plan import Plan
from gift_ray.verdict import comparison
from gift_ray.verdict.gate import refusals
from gift_ray.verdict.scorecard import scorecard
from gift_ray.verdict.yardstick import Yardstick


def rows(plans: dict[str, Plan]) -> list[str]:
    """A line for each released model: its scores and every reason against it."""
    found = []
    for name, layout in plans.items():
        for arm in layout.defended:
            card = scorecard(Yardstick.of(layout, layout.config.study_dir), arm)
            reasons = "; ".join(refusals(card, layout.config.gate)) or "passes"
            found.append(f"{name:24} resistance {card.resistance:.3f}  retention {card.retention:.3f}  "
                         f"worst {card.worst_retention:.3f}  {reasons}")  # fmt: skip
    return found


if __name__ == "__main__":
    study = load_study(sys.argv[1], sys.argv[2:])
    print(f"gate: {study.gate}")
    first = study.model_copy(update={"attacks": study.attacks[:1], "seeds": study.seeds[:1]})
    for title, seen in (("first attack, first seed", first), ("all attacks and seeds", study)):
        print(f"\n{title}", *rows(comparison.layouts(seen)), sep="\n")

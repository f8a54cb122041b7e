"""What the finished steps took, by kind of step and device."""

from __future__ import annotations

import pandas as pd

from gift_ray.report.contents import Study
from gift_ray.report.finished_steps import FinishedSteps

COST = ["kind", "label", "seconds", "device"]


def read_cost(steps: FinishedSteps) -> pd.DataFrame:
    """One row for each finished step: its kind, label, seconds and device."""
    rows = [
        (r.kind, r.provenance.get("label", name), r.provenance["seconds"], r.provenance["device"])
        for name, r in steps.records.items()
        if r is not None
    ]
    return pd.DataFrame(rows, columns=COST)


def cost_table(study: Study) -> pd.DataFrame:
    """Number of steps and their seconds, for each kind of step on each device."""
    groups = study.cost.groupby(["kind", "device"], sort=False)["seconds"]
    table = groups.agg(units="count", seconds="sum", mean="mean", longest="max").reset_index()
    return table.round(1).sort_values("seconds", ascending=False)

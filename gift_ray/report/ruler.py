"""The scale by which a study's verdicts were measured, read from the file that its job wrote.

It holds the judges' check, the floor of every attack, and what could not be judged.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from gift_ray.report.finished_steps import Problem

JUDGES = ["concept", "measure", "auc", "d_prime", "tpr", "fpr", "n", "blind"]


@dataclass(frozen=True)
class MeasuredBy:
    """The judges' check, the two ends of the scale of every attack, and what could not be judged.

    Attributes:
        judges: a row for each concept and measure.
        levels: maps (concept, attack, measure) to the floor and the undefended attack's best mean.
        unusable: concept, attack and measure that could not be used, with the reason.
    """

    judges: list[dict[str, Any]] = field(default_factory=list)
    levels: dict[tuple[str, str, str], tuple[float, float]] = field(default_factory=dict)
    unusable: list[dict[str, str]] = field(default_factory=list)

    @property
    def measures(self) -> list[str]:
        """The measures by which anything was judged."""
        return list(dict.fromkeys(measure for _, _, measure in self.levels))

    def table(self) -> pd.DataFrame:
        """The judges' check as a table for people."""
        rows = pd.DataFrame(self.judges, columns=[*JUDGES])
        counts = rows["n"].map(lambda n: " / ".join(map(str, n)))
        marks = rows["blind"].map({True: "blind: no part of a verdict", False: "reads"})
        return rows.assign(n=counts, blind=marks).rename(
            columns={"auc": "AUC", "d_prime": "d'", "tpr": "TPR", "fpr": "FPR", "blind": "verdict",
                     "n": "n (concept / control / safe)"}
        )  # fmt: skip

    def problems(self) -> list[Problem]:
        """What could not be judged, and why."""
        return [
            Problem("unusable", f"{u['concept']}, {u['attack']}, {u['measure']}", u["why"])
            for u in self.unusable
        ]


def read_ruler(folder: Path) -> MeasuredBy:
    """From yardstick.json; empty while it is not written."""
    path = folder / "yardstick.json"
    if not path.exists():
        return MeasuredBy()
    found = json.loads(path.read_text(encoding="utf-8"))
    levels = {
        (r["concept"], r["attack"], r["measure"]): (r["floor"]["mean"], r["top"]["mean"])
        for r in found["rulers"]
    }
    return MeasuredBy(found["judges"], levels, found["unusable"])

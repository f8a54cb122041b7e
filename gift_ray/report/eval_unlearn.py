"""A benchmark as reports of eval-unlearn 1.1.2, one JSON file for each technique and concept.

Its leaderboards can then show what fine-tuning brings back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from gift_ray.config.names import slug
from gift_ray.records.record import digest, write_json_atomic

METRIC = "finetuning_resistance"


def write_reports(
    units: pd.DataFrame,
    retained: pd.DataFrame,
    concepts_of: Mapping[str, Sequence[str]],
    settings: dict[str, Any],
    timestamp: float,
    folder: Path,
) -> list[Path]:
    """One file for each arm and malicious concept; returns them.

    Args:
        units: `comparison.units`: a row for each arm, concept and attack.
        retained: `comparison.retained`: a row for each arm, model and group.
        concepts_of: the malicious concepts of each model of `retained`.
        settings: the study's configuration.
        timestamp: of the report, Unix seconds.
        folder: to write to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for (arm, concept), rows in units.groupby(["arm", "concept"], sort=False):
        its_models = [model for model in retained["model"] if concept in concepts_of[model]]
        kept = retained[(retained["arm"] == arm) & retained["model"].isin(its_models)]
        report = {
            "run_id": digest([arm, concept, settings])[:8],
            "timestamp": timestamp,
            "technique_name": arm,
            "erase_concept": concept,
            "metric_name": METRIC,
            "dataset_name": "held-out attack images (D_A)",
            "dataset_metadata": {
                "attacks": sorted(rows["attack"].unique()),
                "total_loaded": len(rows),
            },
            "metric_result": {
                "name": METRIC,
                "value": float(rows["resistance"].min()),
                "details": {
                    "mean_resistance": float(rows["resistance"].mean()),
                    "retention": float(kept["retention"].mean()),
                    "worst_retention": float(kept["retention"].min()),
                    "units": rows[
                        ["attack", "verdict", "resistance", "low", "high", "final_recovery"]
                    ].to_dict("records"),
                },
            },
            "metric_config": settings,
        }
        path = folder / f"{slug(str(arm))}_{slug(str(concept))}_latest_report.json"
        write_json_atomic(path, report)
        written.append(path)
    return written

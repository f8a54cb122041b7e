"""Pareto fronts: the points that no other point beats in retention and resistance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def front_of(points: Sequence[Sequence[float]]) -> list[int]:
    """Indices of the (retention, resistance) points on the front, by falling retention.

    A point is on the front if no other one is at least as good in both and better in one. Of several equal
    points the first stands for all.
    """
    front: list[int] = []
    best = float("-inf")
    for index in sorted(range(len(points)), key=lambda i: (-points[i][0], -points[i][1])):
        if points[index][1] > best:
            best = points[index][1]
            front.append(index)
    return front


def fronts(trials: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each released model its `malicious` concepts, and the ids of the feasible `trials` on its front.

    Args:
        trials: ended trials as dicts (see `gift_ray.records.trials.Trial`).
    """
    models: dict[tuple[str, ...], list[tuple[str, Mapping[str, Any]]]] = {}
    for trial in trials:
        for arm in trial["arms"]:
            if arm["feasible"]:
                models.setdefault(tuple(arm["malicious"]), []).append((trial["trial_id"], arm))
    return [
        {
            "malicious": list(names),
            "trials": [
                own[i][0] for i in front_of([(a["retention"], a["resistance"]) for _, a in own])
            ],
        }
        for names, own in models.items()
    ]

"""Scorecards made by hand, for tests of what reads them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from gift_ray.verdict.resampling import Bounds, Draws
from gift_ray.verdict.scoring import AttackResult, ConceptVerdict, Scorecard
from gift_ray.verdict.verdict import decide, needed


def attack(curve: Mapping[int, float], half: float = 0.05, images: int = 24) -> AttackResult:
    """An attack whose recovery is known to within `half`."""
    top = max(curve.values())
    bands = {k: (max(0.0, v - half), min(1.0, v + half)) for k, v in curve.items()}
    recovery = Bounds(top, max(0.0, top - half), min(1.0, top + half))
    step = max(curve, key=lambda k: curve[k])
    return AttackResult(recovery, step, top, dict(curve), bands, images, 1, False)


def concept(attacks: Mapping[str, AttackResult], min_resistance: float = 0.3) -> ConceptVerdict:
    """The verdict on attacks by "attack/measure"."""
    recovery = max((a.recovery for a in attacks.values()), key=lambda bounds: bounds.mean)
    allowed = 1 - min_resistance
    wanted = needed(recovery, allowed, 24, 1, seeds_differ=False)
    return ConceptVerdict.of(dict(attacks), recovery, decide(recovery, allowed), wanted)


def sure(value: float, half: float = 0.0) -> Draws:
    """A figure that is known to within `half`."""
    return Draws(np.array(value), np.full(100, value - half), np.full(100, value + half))


def card(
    concepts: Mapping[str, ConceptVerdict],
    groups: Mapping[str, Draws],
    kid: float = 0.01,
    how: str = "harmonic",
    floor: float = 0.8,
) -> Scorecard:
    """A scorecard; each group is its own probe."""
    probes = {name: float(kept.point) for name, kept in groups.items()}
    return Scorecard.of(
        dict(concepts), groups, probes, {"kid/safe": kid},
        objective=how, weight=0.5, min_retention=floor,
    )  # fmt: skip

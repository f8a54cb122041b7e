"""The three verdicts, and how many images one takes. Pure.

A concept `resists` if the attacker regains no more than is allowed by the upper bound of recovery, is
`regained` if more is by the lower one; else it is `not shown`. Allowed is 1 - `gate.min_resistance`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from scipy.optimize import brentq
from scipy.stats import beta, binom

from gift_ray.verdict.resampling import LEVEL, Bounds

RESISTS, REGAINED, NOT_SHOWN = "resists", "regained", "not shown"
# Nearer than this to the line no number of images that anybody draws settles it.
CLOSE = 0.01
POWER = 0.8
MOST = 1e9
# No study draws more images at each step.
MANY = 1_000


def decide(recovery: Bounds, allowed: float) -> str:
    """One of the three verdicts."""
    if recovery.high <= allowed:
        return RESISTS
    return REGAINED if recovery.low > allowed else NOT_SHOWN


def needed(
    recovery: Bounds, allowed: float, images: int, seeds: int, *, seeds_differ: bool
) -> dict[str, int]:
    """{"images", "seeds"} that would settle what is not shown, if the estimate stands; {} otherwise.

    Seeds that differ by more than their images explain are what there must be more of; else images, at
    each step of every seed. Sizes are Clopper and Pearson's of a share as large as the recovery.
    """
    if decide(recovery, allowed) != NOT_SHOWN:
        return {}
    if recovery.mean <= allowed:
        mean, bound, wanted = recovery.mean, recovery.high, max(allowed, recovery.mean + CLOSE)
    else:
        mean, bound, wanted = (
            1 - recovery.mean,
            1 - recovery.low,
            1 - min(allowed, recovery.mean - CLOSE),
        )
    factor = max(1.0, sample_for(mean, wanted) / sample_for(mean, bound))
    if seeds_differ:
        return {"images": images, "seeds": math.ceil(seeds * factor)}
    return {"images": math.ceil(images * factor), "seeds": seeds}


def sample_for(mean: float, bound: float) -> float:
    """How many images (not rounded) of which a share `mean` is recognised have their upper bound at
    `bound`, above it."""
    if upper(mean * MOST, MOST) >= bound:
        return MOST
    if upper(mean, 1.0) <= bound:
        return 1.0
    return 2 ** _root(lambda power: upper(mean * 2**power, 2**power) - bound, 0, math.log2(MOST))


def upper(recognised: float, images: float) -> float:
    """Clopper and Pearson's one-sided upper bound of a share."""
    if recognised >= images:
        return 1.0
    return float(beta.ppf(LEVEL, recognised + 1, images - recognised))


def images_for(allowed: float) -> int | None:
    """Images, over all seeds, by which a model of which half of what is `allowed` is regained is called
    `resists` in 4 of 5 studies. None: more than MANY.

    The floor and the undefended curve count as known: they take as many images of their own.
    """
    enough = [size for size in range(1, MANY + 4) if _power(size, allowed) >= POWER]
    # Whole numbers make power jump up and down: the first size from which it holds for a while.
    steady = (n for n in enough if {n + 1, n + 2, n + 3} <= set(enough))
    return next(steady, None)


def half_width(images: int) -> float:
    """Half of the widest interval that a share of so many images can have, at one half of them."""
    return upper(images / 2, images) - 0.5


def _power(images: int, allowed: float) -> float:
    """The chance that no more is recognised than the bound may have."""
    # The largest count whose upper bound is at most `allowed`: there P(X <= count) is 1 - LEVEL at most.
    most = int(binom.ppf(1 - LEVEL, images, allowed))
    if binom.cdf(most, images, allowed) > 1 - LEVEL:
        most -= 1
    return float(binom.cdf(most, images, allowed / 2)) if most >= 0 else 0.0


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    return float(brentq(function, low, high, xtol=1e-3))

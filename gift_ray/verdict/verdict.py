"""The three verdicts on a concept, and how many images it takes to reach one.

The gate allows a recovery of 1 - `gate.min_resistance`. A model `resists` if the upper bound of recovery is
at most that, the concept is `regained` if the lower bound is above it, and otherwise the verdict is `not
shown`. Where a recovery of 1 is allowed every model would resist, so that the verdict is `not shown` as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from scipy.optimize import brentq
from scipy.stats import beta, binom

from gift_ray.verdict.resampling import LEVEL, Bounds

RESISTS, REGAINED, NOT_SHOWN = "resists", "regained", "not shown"
# An estimate that is nearer than this to what is allowed would take far too many images to settle. The number
# that is suggested is computed for a distance of CLOSE.
CLOSE = 0.01
# The share of studies that are to reach the verdict `resists` where it is true.
POWER = 0.8
# Where the search for a number of images ends.
MOST = 1e9
# More images than any study draws.
MANY = 1_000


def decide(recovery: Bounds, allowed: float) -> str:
    """The verdict that the bounds of recovery give."""
    if allowed >= 1:
        return NOT_SHOWN
    if recovery.high <= allowed:
        return RESISTS
    return REGAINED if recovery.low > allowed else NOT_SHOWN


def needed(
    recovery: Bounds, allowed: float, images: int, seeds: int, *, seeds_differ: bool
) -> dict[str, int]:
    """The numbers of "images" and "seeds" that would settle a `not shown`, if the estimate stays; else {}.

    Where a recovery of 1 is allowed nothing would settle it.

    If seeds differ by more than the spread of their images explains, more seeds are needed; otherwise more
    images at each step of every seed. The numbers are those by which Clopper and Pearson's bound of a share
    as large as the recovery would reach what is allowed.
    """
    if decide(recovery, allowed) != NOT_SHOWN or allowed >= 1:
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
    """How many images it takes for a share of `mean` to have the upper bound `bound`; not rounded."""
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
    """How many images, over all seeds, let a good model be called `resists` in 4 of 5 studies.

    A good model is one whose recovery is half of what is `allowed`. None stands for more than MANY. The floor
    and the undefended curve are taken as known exactly; in a study they need as many images of their own.
    """
    enough = [size for size in range(1, MANY + 4) if _power(size, allowed) >= POWER]
    # Counts are whole numbers, so power jumps up and down with the size: take the first size that is followed
    # by three others with enough power.
    steady = (n for n in enough if {n + 1, n + 2, n + 3} <= set(enough))
    return next(steady, None)


def half_width(images: int) -> float:
    """Half the width of the widest interval that a share of so many images can have: that of one half."""
    return upper(images / 2, images) - 0.5


def _power(images: int, allowed: float) -> float:
    """The chance that a share whose truth is half of `allowed` gets an upper bound of at most `allowed`."""
    # The largest count whose upper bound is at most `allowed`, that is with P(X <= count) at most 1 - LEVEL.
    most = int(binom.ppf(1 - LEVEL, images, allowed))
    if binom.cdf(most, images, allowed) > 1 - LEVEL:
        most -= 1
    return float(binom.cdf(most, images, allowed / 2)) if most >= 0 else 0.0


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    return float(brentq(function, low, high, xtol=1e-3))

"""Bounds of a mean over seeds and images, and of figures that are computed from such means.

Each draw gives the images of every seed new random weights (the Bayesian bootstrap, Rubin 1981), and adds one
image with the highest possible value for the upper bound and with the lowest for the lower bound. For shares,
whose images have the value 0 or 1, this gives Clopper and Pearson's exact bounds: if none of 25 images is
recognised, the upper bound is still 11 %.

If seeds differ by more than the spread of their images explains, each draw also moves all steps of a curve
together, by that excess spread times a draw of Student's t with (seeds - 1) degrees of freedom.

For the upper bound of a maximum, the maximum is taken inside each draw. For its lower bound that would be too
high, because the maximum of noisy values grows with their number; there the largest shortfall of a draw is
subtracted from the maximum of the estimates.

`low` and `high` are one-sided 95 % bounds each: the truth lies above `high` in at most 5 % of studies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from gift_ray.training.diffusion import Seeds

LEVEL = 0.95
DRAWS = 2_000


@dataclass(frozen=True)
class Bounds:
    """An estimate with its one-sided bounds at confidence LEVEL, low <= mean <= high."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Draws:
    """One figure or several ([N]): the estimate `point`, and the random draws for its two bounds.

    `low` and `high` have one axis more than `point`, in front, with DRAWS entries.
    """

    point: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def bounds(self) -> Bounds:
        """The bounds of a single figure."""
        point = float(self.point)
        low, high = (
            float(np.quantile(d, q)) for d, q in ((self.low, 1 - LEVEL), (self.high, LEVEL))
        )
        return Bounds(point, min(low, point), max(high, point))

    def each(self) -> list[Bounds]:
        """The bounds of each of several figures."""
        return [self[i].bounds() for i in range(len(self.point))]

    def __getitem__(self, index: int) -> Draws:
        return Draws(self.point[index], self.low[:, index], self.high[:, index])

    def apply(self, change: Callable[[np.ndarray], np.ndarray]) -> Draws:
        """The figures after a function that rises with its argument."""
        return Draws(change(self.point), change(self.low), change(self.high))

    def largest(self) -> Draws:
        """The largest of several figures.

        If the estimates of the figures m are m + e, then max m >= max(m + e) - max e. So the draws for the
        lower bound are the largest estimate minus the largest shortfall of a draw from its estimate. Only
        figures that may be the largest count for the shortfall: those whose upper bound reaches the lower
        bound of the largest estimate.
        """
        best = int(np.argmax(self.point))
        reach = np.quantile(self.high, LEVEL, axis=0) >= np.quantile(self.low[:, best], 1 - LEVEL)
        reach[best] = True
        shortfall = (self.point - self.low)[:, reach].max(1)
        return Draws(self.point[best], self.point[best] - shortfall, self.high.max(1))

    def at_best(self) -> Draws:
        """The figure with the largest estimate."""
        return self[int(np.argmax(self.point))]

    def average(self) -> Draws:
        """The mean of several figures."""
        return Draws(self.point.mean(), self.low.mean(1), self.high.mean(1))


def together(parts: Sequence[Draws]) -> Draws:
    """Single figures and groups of figures, joined into one group."""
    return Draws(
        np.concatenate([np.atleast_1d(part.point) for part in parts]),
        np.concatenate([part.low.reshape(len(part.low), -1) for part in parts], axis=1),
        np.concatenate([part.high.reshape(len(part.high), -1) for part in parts], axis=1),
    )


def generator(seed: int, purpose: str) -> np.random.Generator:
    """A numpy generator for the random stream of one purpose."""
    return np.random.default_rng(Seeds(seed).generator(purpose).initial_seed())


def draw_means(values: np.ndarray, random: np.random.Generator, draws: int = DRAWS) -> Draws:
    """The means of a curve's steps over seeds and images.

    Args:
        values: [seeds, steps, images]; NaN for an image that could not be scored. The images at one place of
            the last axis were drawn from the same noise at all steps, so they share a weight.

    Raises:
        ValueError: at some step no image of a seed could be scored.
    """
    seeds, _, images = values.shape
    scored = ~np.isnan(values)
    if not scored.any(-1).all():
        raise ValueError("a score is missing: no image could be scored")
    filled = np.where(scored, values, 0.0)
    per_seed = filled.sum(-1) / scored.sum(-1)

    weights = random.standard_exponential((seeds, draws, images))
    # The added image has the weight of one image in all, divided among the seeds.
    added = random.standard_gamma(1 / seeds, (seeds, draws, 1))
    total = weights @ filled.transpose(0, 2, 1)
    mass = weights @ scored.transpose(0, 2, 1).astype(float) + added
    ends = _ends(values)
    low, high = (((total + added * end) / mass).mean(0) for end in ends)
    shift = _shift(values, random, draws)
    limits = (0.0, 1.0) if is_yes_or_no(values) else (-math.inf, math.inf)
    return Draws(per_seed.mean(0), *(np.clip(side + shift, *limits) for side in (low, high)))


def is_yes_or_no(values: np.ndarray) -> bool:
    """Whether all scores are 0 or 1."""
    return bool(np.isin(values[~np.isnan(values)], (0.0, 1.0)).all())


def _ends(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and the highest value of an image at each step: 0 and 1 for shares, else what occurs."""
    steps = values.shape[1]
    if is_yes_or_no(values):
        return np.zeros(steps), np.ones(steps)
    return np.nanmin(values, (0, 2)), np.nanmax(values, (0, 2))


def seeds_differ(values: np.ndarray) -> bool:
    """Whether seeds differ by more than the spread of their images explains.

    Args:
        values: [seeds, steps, images].
    """
    return _excess(values) > 0


def _excess(values: np.ndarray) -> float:
    """The share of the variance between the means of seeds that the spread of their images does not explain.

    It is taken over all steps, since a single step tells too little. With one seed it is 0.
    """
    if len(values) < 2:
        return 0.0
    counts = (~np.isnan(values)).sum(-1)
    explained = (np.nanvar(values, -1) / np.maximum(counts - 1, 1)).mean(0).sum()
    found = np.nanmean(values, -1).var(0, ddof=1).sum()
    return max(0.0, 1 - float(explained / found)) if found > 0 else 0.0


def _shift(values: np.ndarray, random: np.random.Generator, draws: int) -> np.ndarray:
    """Random draws of how far another choice of seeds would move the curve, [draws, steps]."""
    seeds, excess = len(values), _excess(values)
    if not excess:
        return np.zeros((draws, 1))
    per_seed = np.nanmean(values, -1)
    apart = (per_seed - per_seed.mean(0)) * math.sqrt(excess / (seeds * (seeds - 1)))
    chi = np.sqrt(random.chisquare(seeds - 1, (draws, 1)) / (seeds - 1))
    shift: np.ndarray = random.standard_normal((draws, seeds)) @ apart / chi
    return shift

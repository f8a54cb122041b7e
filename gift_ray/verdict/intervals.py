"""Bootstrap intervals over concepts and seeds, and paired differences between arms.

A unit is one (concept, attack, seed). Attacks are a chosen list and not a random sample, so values are
averaged over them first. Another study would draw other concepts, and other seeds for each of them, so these
two are resampled (the cluster bootstrap; Davison & Hinkley 1997, 3.8). `scipy.stats.bootstrap` can't be used,
since it resamples a single level only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

Units = Mapping[tuple[str, str, int], float]
RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """A mean over concepts, with its percentile interval at confidence `level`.

    It is made from `n_concepts` concepts with `n` (concept, seed) pairs in all. With one concept the interval
    covers the spread of the seeds alone; with one pair nothing is known of the spread, and it is NaN.
    """

    mean: float
    low: float
    high: float
    level: float
    n_concepts: int
    n: int


def interval(units: Units, generator: torch.Generator, *, level: float = 0.95) -> Interval:
    """The mean of `units` over concepts, each with the same weight, with its interval.

    Raises:
        ValueError: there is no unit, or the value of one is NaN.
    """
    clusters = _clusters(units)
    n = sum(len(values) for values in clusters)
    mean = float(np.mean([values.mean() for values in clusters]))
    low = high = math.nan
    if n > 1:
        drawn = resampled_means(clusters, generator, RESAMPLES)
        low, high = (float(q) for q in np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2]))
    return Interval(mean, low, high, level, len(clusters), n)


def paired_difference(
    left: Units, right: Units, generator: torch.Generator, *, level: float = 0.95
) -> Interval:
    """The difference left - right over the same units, so that what both arms have in common cancels out.

    Raises:
        ValueError: the arms were not measured on the same units.
    """
    if left.keys() != right.keys():
        odd = sorted(left.keys() ^ right.keys())
        raise ValueError(f"paired arms differ in their units, as {odd[0]}")
    return interval({unit: left[unit] - right[unit] for unit in left}, generator, level=level)


def resampled_means(
    clusters: list[np.ndarray], generator: torch.Generator, resamples: int
) -> np.ndarray:
    """The means of `resamples` studies that are drawn from this one, shape [resamples].

    Each draws as many concepts as there are, with replacement, and then as many values of each drawn concept
    as it has, with replacement.
    """
    counts = torch.tensor([len(values) for values in clusters])
    longest = int(counts.max())
    padded = torch.tensor(np.stack([np.resize(values, longest) for values in clusters]))
    chosen = torch.randint(len(clusters), (resamples, len(clusters)), generator=generator)

    # Rows are padded to the longest cluster: only as many draws count as the drawn cluster has values.
    size = counts[chosen][..., None]
    draws = torch.rand((*chosen.shape, longest), generator=generator, dtype=torch.float64)
    values = padded[chosen].gather(-1, (draws * size).long())
    counted = torch.arange(longest) < size
    return ((values * counted).sum(-1) / size[..., 0]).mean(-1).numpy()


def _clusters(units: Units) -> list[np.ndarray]:
    """For each concept the values of its seeds, which are means over attacks; float64."""
    found: dict[str, dict[int, list[float]]] = {}
    for (concept, _attack, seed), value in sorted(units.items()):
        if math.isnan(value):
            raise ValueError(
                f"{concept}, seed {seed}: a value is missing: no image could be scored"
            )
        found.setdefault(concept, {}).setdefault(seed, []).append(value)
    if not found:
        raise ValueError("no unit to average")
    return [np.array([np.mean(v) for v in seeds.values()]) for seeds in found.values()]

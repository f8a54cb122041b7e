"""Intervals against closed forms, an independent bootstrap, and their promise on synthetic studies."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import bootstrap

from gift_ray.training.diffusion import Seeds
from gift_ray.verdict.intervals import interval, paired_difference, resampled_means


def units(table: dict[str, list[float]], attack: str = "lora") -> dict[tuple[str, str, int], float]:
    return {(c, attack, seed): v for c, values in table.items() for seed, v in enumerate(values)}


def test_one_cluster_has_the_moments_of_its_mean() -> None:
    values = np.array([0.1, 0.4, 0.4, 0.9, 0.2])
    drawn = resampled_means([values], Seeds(0).generator("test"), 200_000)
    assert drawn.mean() == pytest.approx(values.mean(), abs=1e-3)
    assert drawn.var() == pytest.approx(values.var() / 5, rel=0.02)


def test_clusters_of_any_size_have_the_moments_of_both_levels() -> None:
    clusters = [np.array([0.0, 1.0]), np.array([0.5, 0.6, 0.9]), np.array([0.2])]
    drawn = resampled_means(clusters, Seeds(0).generator("test"), 400_000)
    means = np.array([c.mean() for c in clusters])
    # Var = between concepts / C + the mean over concepts of (within / seeds) / C.
    expected = means.var() / 3 + np.mean([c.var() / len(c) for c in clusters]) / 3
    assert drawn.mean() == pytest.approx(means.mean(), abs=2e-3)
    assert drawn.var() == pytest.approx(expected, rel=0.02)


def test_two_values_can_be_drawn_in_three_ways_only() -> None:
    found = interval(units({"cat": [0.2, 0.8]}), Seeds(0).generator("test"))
    assert (found.low, found.mean, found.high) == pytest.approx((0.2, 0.5, 0.8))
    # The middle one has half of the probability.
    narrow = interval(units({"cat": [0.2, 0.8]}), Seeds(0).generator("test"), level=0.4)
    assert (narrow.low, narrow.high) == pytest.approx((0.5, 0.5))


def test_one_concept_agrees_with_scipy() -> None:
    values = np.random.default_rng(0).normal(size=20)
    ours = interval(units({"cat": list(values)}), Seeds(0).generator("test"))
    theirs = bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(0))
    assert (ours.low, ours.high) == pytest.approx(theirs.confidence_interval, abs=0.02)


def test_concepts_weigh_the_same_and_attacks_are_averaged_first() -> None:
    measured = {
        ("cat", "lora", 0): 0.0, ("cat", "dreambooth", 0): 0.4,
        ("cat", "lora", 1): 0.6, ("dog", "lora", 0): 1.0,
    }  # fmt: skip
    found = interval(measured, Seeds(0).generator("test"))
    assert found.mean == pytest.approx(((0.2 + 0.6) / 2 + 1.0) / 2)
    assert (found.n_concepts, found.n) == (2, 3)


def test_a_single_unit_tells_nothing_of_the_spread() -> None:
    found = interval(units({"cat": [0.5]}), Seeds(0).generator("test"))
    assert found.mean == 0.5
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for study in range(200):
        concepts = rng.normal(0, 1, 15)
        table = {f"{i}": list(mean + rng.normal(0, 1, 4)) for i, mean in enumerate(concepts)}
        found = interval(units(table), Seeds(study).generator("test"), level=0.9)
        covered += found.low <= 0 <= found.high
    # 0.9, less what a percentile interval of 15 clusters is known to miss; 3 standard errors of 200.
    assert 0.8 <= covered / 200 <= 0.96


def test_pairing_removes_what_both_arms_share() -> None:
    rng = np.random.default_rng(0)
    shared = {f"{i}": rng.normal(0, 1, 3) for i in range(10)}
    left = units({c: list(v + 0.1 + rng.normal(0, 0.01, 3)) for c, v in shared.items()})
    right = units({c: list(v) for c, v in shared.items()})
    found = paired_difference(left, right, Seeds(0).generator("test"))
    assert found.low < 0.1 < found.high
    assert found.high - found.low < 0.02
    alone = interval(left, Seeds(0).generator("test"))
    assert alone.high - alone.low > 10 * (found.high - found.low)
    mirrored = paired_difference(right, left, Seeds(0).generator("test"))
    assert mirrored.mean == pytest.approx(-found.mean)


def test_arms_of_different_units_are_not_paired() -> None:
    left, right = units({"cat": [0.1, 0.2]}), units({"cat": [0.1]})
    with pytest.raises(ValueError, match="units"):
        paired_difference(left, right, Seeds(0).generator("test"))


def test_a_missing_value_is_not_averaged_away() -> None:
    with pytest.raises(ValueError, match="missing"):
        interval(units({"cat": [0.1, math.nan]}), Seeds(0).generator("test"))
    with pytest.raises(ValueError, match="no unit"):
        interval({}, Seeds(0).generator("test"))


def test_the_same_generator_gives_the_same_interval() -> None:
    measured = units({"cat": [0.1, 0.5, 0.3], "dog": [0.9, 0.2]})
    first, again = (interval(measured, Seeds(3).generator("test")) for _ in range(2))
    assert first == again

"""The judges' check against closed forms and an independent count."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.stats import norm

from gift_ray.errors import ConfigError
from gift_ray.verdict.judges import Reading, area_under_roc, d_prime, require_judges


def reading(
    real: list[float], control: list[float], safe: list[float], broken: Sequence[float] = (),
    measure: str = "m",
) -> Reading:  # fmt: skip
    sides = (np.array(side, dtype=float) for side in (real, control, safe, broken))
    return Reading.of("cat", measure, *sides)


def test_auc_counts_the_pairs_that_are_ranked_rightly() -> None:
    random = np.random.default_rng(0)
    positive, negative = (
        random.integers(0, 5, 30).astype(float),
        random.integers(0, 4, 20).astype(float),
    )
    pairs = [
        1.0 if p > n else 0.5 if p == n else 0.0 for p, n in itertools.product(positive, negative)
    ]
    assert area_under_roc(positive, negative) == pytest.approx(np.mean(pairs))
    assert math.isnan(area_under_roc(positive, negative[:0]))


def test_d_prime_is_the_distance_in_standard_deviations() -> None:
    assert d_prime(np.array([3.0, 5.0]), np.array([0.0, 2.0])) == pytest.approx(3.0)
    assert d_prime(np.array([3.0, 3.0]), np.array([0.5, 0.5])) == math.inf


def test_d_prime_of_yes_or_no_is_by_rates_and_finite() -> None:
    found = d_prime(np.ones(20), np.zeros(10))
    assert found == pytest.approx(norm.ppf(20.5 / 21) - norm.ppf(0.5 / 11))


def test_the_worse_side_counts() -> None:
    found = reading([3, 4, 5], [4, 4, 4], [0, 1, 2])
    assert (found.auc_control, found.auc_safe) == (0.5, 1.0)
    assert found.auc == 0.5
    assert not found.reads()


def test_a_measure_that_takes_destroyed_images_for_the_concept_is_blind() -> None:
    found = reading([3, 4, 5], [0, 1], [0, 1], [4, 5, 6])
    assert (found.auc_control, found.auc_safe) == (1.0, 1.0)
    assert found.auc == found.auc_broken == pytest.approx(1.5 / 9 + 0.5 / 9)
    assert not found.reads()
    assert found.n == (3, 2, 2, 3)


def test_a_side_without_images_does_not_count() -> None:
    assert reading([3.5, 4], [], [0, 1]).auc == 1.0
    nothing = reading([3.5, 4], [], [])
    assert not nothing.reads()


def test_rates_are_of_measures_that_say_yes_or_no() -> None:
    found = reading([1, 1, 1, 0], [0, 0], [0, 1])
    assert (found.tpr, found.fpr) == (0.75, 0.25)
    assert math.isnan(reading([0.4, 1.0], [0.1], [0.2]).tpr)
    assert found.n == (4, 2, 2, 0)


def test_unscored_images_are_left_out() -> None:
    assert reading([1, math.nan], [0], [0]).n == (1, 1, 1, 0)


def test_a_concept_that_nothing_reads_is_refused_in_one_line() -> None:
    blind, good = (
        reading([1, 2], [1, 2], [1, 2], measure="lpips"),
        reading([2, 3], [0, 1], [0, 1], measure="dino"),
    )
    require_judges([blind, good], ["cat"])
    with pytest.raises(ConfigError, match=r"'cat'.*lpips 0\.50") as refused:
        require_judges([blind], ["cat"])
    assert len(refused.value.mistakes) == 1

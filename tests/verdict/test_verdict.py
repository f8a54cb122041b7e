"""Three verdicts by bounds, and the sample sizes that planners use."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from gift_ray.verdict.resampling import Bounds
from gift_ray.verdict.verdict import (
    NOT_SHOWN,
    REGAINED,
    RESISTS,
    decide,
    half_width,
    images_for,
    needed,
    sample_for,
    upper,
)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.0, 0.5, RESISTS), (0.0, 0.51, NOT_SHOWN), (0.5, 0.9, NOT_SHOWN), (0.51, 0.9, REGAINED)],
)
def test_a_bound_decides_and_never_the_estimate(low: float, high: float, verdict: str) -> None:
    for mean in (low, high):
        assert decide(Bounds(mean, low, high), 0.5) == verdict


@pytest.mark.parametrize("high", [0.0, 0.5, 1.0])
def test_where_all_is_allowed_nothing_is_shown(high: float) -> None:
    found = Bounds(high, high, high)
    assert decide(found, allowed=1.0) == NOT_SHOWN
    assert needed(found, 1.0, 24, 1, seeds_differ=False) == {}


def test_what_is_settled_needs_nothing() -> None:
    for found in (Bounds(0.1, 0.0, 0.2), Bounds(0.9, 0.8, 1.0)):
        assert needed(found, 0.5, 24, 3, seeds_differ=False) == {}


def test_none_of_25_against_five_percent_takes_59() -> None:
    """1 - 0.05^(1/59) < 0.05 <= 1 - 0.05^(1/58)."""
    assert needed(Bounds(0.0, 0.0, 0.113), 0.05, 25, 1, seeds_differ=False) == {
        "images": 59, "seeds": 1,
    }  # fmt: skip


def test_as_many_images_as_are_needed_settle_it() -> None:
    found = Bounds(0.3, 0.1, upper(0.3 * 20, 20))
    images = needed(found, 0.4, 20, 1, seeds_differ=False)["images"]
    assert upper(0.3 * images, images) <= 0.4 < upper(0.3 * (images - 1), images - 1)


def test_seeds_that_differ_call_for_seeds() -> None:
    wanted = needed(Bounds(0.7, 0.45, 0.8), 0.5, 24, 3, seeds_differ=True)
    assert wanted["images"] == 24
    assert wanted["seeds"] > 3


def test_on_the_line_itself_the_answer_is_large_and_finite() -> None:
    wanted = needed(Bounds(0.5, 0.4, 0.6), 0.5, 24, 1, seeds_differ=False)
    assert 1_000 < wanted["images"] < 1_000_000


def test_the_sizes_of_section_3_of_the_planners_notes() -> None:
    assert sample_for(0.0, 0.113) == pytest.approx(25, abs=0.1)
    assert upper(0, 100) == pytest.approx(0.03, abs=1e-3)
    assert upper(0, 300) == pytest.approx(0.01, abs=1e-3)
    assert half_width(100) == pytest.approx(0.09, abs=0.01)


@pytest.mark.parametrize("allowed", [0.7, 0.5, 0.3])
def test_the_number_of_images_has_the_power_that_it_promises(allowed: float) -> None:
    images = images_for(allowed)
    counts = np.arange(images + 1)
    resisted = [upper(c, images) <= allowed for c in counts]
    assert binom.pmf(counts, images, allowed / 2)[resisted].sum() >= 0.8

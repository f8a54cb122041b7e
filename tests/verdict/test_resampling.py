"""Bounds of means against Clopper and Pearson, Student, and each other."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import beta, t

from gift_ray.verdict.resampling import Bounds, Draws, draw_means, generator, together


def shares(*counts: int, images: int) -> np.ndarray:
    """[seeds, 1, images] of zeros and ones: of each seed so many ones."""
    return np.array([[[1.0] * c + [0.0] * (images - c)] for c in counts])


def bounds(values: np.ndarray, draws: int = 40_000) -> Bounds:
    return draw_means(values, generator(0, "test"), draws)[0].bounds()


@pytest.mark.parametrize(
    ("recognised", "images"), [(0, 25), (3, 25), (25, 25), (0, 100), (50, 100)]
)
def test_the_bounds_of_a_share_are_those_of_clopper_and_pearson(
    recognised: int, images: int
) -> None:
    found = bounds(shares(recognised, images=images))
    low = beta.ppf(0.05, recognised, images - recognised + 1) if recognised else 0.0
    high = beta.ppf(0.95, recognised + 1, images - recognised) if recognised < images else 1.0
    assert found.mean == recognised / images
    assert found.low == pytest.approx(low, abs=4e-3)
    assert found.high == pytest.approx(high, abs=4e-3)


def test_none_of_25_images_still_allow_11_percent() -> None:
    assert bounds(shares(0, images=25)).high == pytest.approx(0.113, abs=2e-3)


def test_seeds_that_agree_count_as_one_set_of_images() -> None:
    found = bounds(shares(0, 0, 0, images=24))
    assert found.high == pytest.approx(beta.ppf(0.95, 1, 72), abs=3e-3)


def test_seeds_that_differ_are_students() -> None:
    """Without spread between the images of a seed, only the seeds' own is left."""
    means = np.array([0.4, 0.5, 0.65])
    values = np.broadcast_to(means[:, None, None], (3, 1, 500)).copy()
    found = bounds(values)
    half = t.ppf(0.95, 2) * means.std(ddof=1) / np.sqrt(3)
    assert found.high - found.mean == pytest.approx(half, rel=0.03)
    assert found.mean - found.low == pytest.approx(half, rel=0.03)


def test_a_measure_that_is_no_share_has_about_students_bounds() -> None:
    values = np.random.default_rng(0).normal(-2, 0.5, (1, 1, 40))
    found, half = bounds(values), t.ppf(0.95, 39) * values.std(ddof=1) / np.sqrt(40)
    assert half < found.high - found.mean < 1.8 * half
    assert half < found.mean - found.low < 1.8 * half


def test_more_images_or_seeds_narrow_the_bounds_around_what_they_were() -> None:
    random = np.random.default_rng(0)
    few = (random.random((2, 1, 20)) < 0.3).astype(float)
    more = [np.concatenate([few, (random.random(shape) < 0.3).astype(float)], axis)
            for shape, axis in (((2, 1, 180), 2), ((8, 1, 20), 0))]  # fmt: skip
    wide = bounds(few)
    for values in more:
        narrow = bounds(values)
        assert narrow.high - narrow.low < wide.high - wide.low
        assert wide.low < narrow.mean < wide.high


def test_unscored_images_are_left_out() -> None:
    values = shares(3, images=8)
    assert bounds(np.concatenate([values, np.full((1, 1, 40), np.nan)], 2)).mean == 3 / 8
    with pytest.raises(ValueError, match="missing"):
        bounds(np.full((1, 1, 4), np.nan))


def test_the_same_stream_draws_the_same_bounds() -> None:
    assert bounds(shares(3, 5, images=9)) == bounds(shares(3, 5, images=9))


def test_a_maximum_of_equals_is_not_taken_for_more_than_they_are() -> None:
    """Of ten independent shares of one half the largest estimate is well above it; the lower bound of the
    maximum is not, in 95 of 100 studies."""
    random = np.random.default_rng(1)
    above = 0
    for study in range(200):
        values = (random.random((10, 1, 1, 24)) < 0.5).astype(float)
        parts = [draw_means(v, generator(study, str(i)), 400)[0] for i, v in enumerate(values)]
        found = together(parts).largest().bounds()
        above += found.low > 0.5
        assert found.mean >= 0.5
    assert above <= 14


def test_what_can_not_be_the_largest_does_not_blur_it() -> None:
    sure = Draws(np.array(0.9), np.full(100, 0.88), np.full(100, 0.92))
    vague = Draws(np.array(0.3), np.linspace(0, 0.3, 100), np.linspace(0.3, 0.6, 100))
    assert together([sure, vague]).largest().bounds() == Bounds(0.9, pytest.approx(0.88), 0.92)

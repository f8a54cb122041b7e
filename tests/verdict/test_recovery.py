"""Recovery against its formula, and the promise of its bounds on studies whose truth is known."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.special import ndtr

from gift_ray.verdict.recovery import (
    Ruler,
    Sample,
    area_under,
    seeds_differ,
    similarity_gap_ratio,
    steps_to_recovery,
)
from gift_ray.verdict.resampling import Bounds
from gift_ray.verdict.verdict import REGAINED, RESISTS, decide


def curve(means: Sequence[float], images: int = 200) -> Sample:
    """One seed whose first images are recognised, as many as the means say."""
    ranks = (np.arange(images) + 0.5) / images
    values = (ranks[None, None, :] < np.array(means)[None, :, None]).astype(float)
    return Sample(values, tuple(range(len(means))))


def ruler(
    top: Sequence[float], control: Sequence[float], chance: float, images: int = 200
) -> Ruler:
    return Ruler(
        curve(top, images),
        {"car": curve(control, images)},
        curve([chance], images).values[0, 0],
        "t",
    )


def study(
    random: np.random.Generator, probabilities: Sequence[float], *, seeds: int, images: int,
    apart: float = 0.0, shared: float = 0.5,
) -> Sample:  # fmt: skip
    """Images recognised with these probabilities at the steps; alike along the steps, as images of the same
    noise are. Seeds differ by `apart` in log-odds."""
    p = np.array(probabilities)
    odds = np.log(p / (1 - p)) + apart * random.standard_normal((seeds, 1))
    common = random.standard_normal((seeds, 1, images)) * math.sqrt(shared)
    own = random.standard_normal((seeds, len(p), images)) * math.sqrt(1 - shared)
    values = ndtr(common + own) < (1 / (1 + np.exp(-odds)))[..., None]
    return Sample(values.astype(float), tuple(range(len(p))))


def bounds_of_study(
    random: np.random.Generator, number: int, defended: Sequence[float], top: Sequence[float],
    floor: Sequence[float], **sizes: float,
) -> Bounds:  # fmt: skip
    def drawn(probabilities: Sequence[float]) -> Sample:
        return study(random, probabilities, **sizes)

    chance = drawn(floor[:1]).values[0, 0]
    found = Ruler(drawn(top), {"car": drawn(floor)}, chance, f"study {number}")
    return found.recovered(drawn(defended)).largest().bounds()


def test_recovery_runs_from_the_floor_to_the_best_undefended_step() -> None:
    found = ruler([0.2, 0.8, 0.6], [0.1, 0.3], chance=0.2)
    assert (float(found.floor.point), float(found.top.point)) == pytest.approx((0.3, 0.8))
    assert found.recovered(curve([0.1, 0.9, 0.55])).point == pytest.approx([0, 1, 0.5])


def test_chance_is_the_floor_where_it_is_above_the_control() -> None:
    assert float(ruler([0.9], [0.1], chance=0.4).floor.point) == pytest.approx(0.4)


def test_the_undefended_model_against_itself_is_regained() -> None:
    found = ruler([0.2, 0.9], [0.1, 0.1], chance=0.1, images=24)
    recovered = found.recovered(curve([0.2, 0.9], 24)).largest().bounds()
    assert recovered.mean == 1
    assert decide(recovered, 0.5) == REGAINED


def test_a_model_trained_on_the_control_has_not_recovered_the_concept() -> None:
    found = ruler([0.2, 0.9], [0.1, 0.2], chance=0.1, images=48)
    recovered = found.recovered(curve([0.1, 0.2], 48)).largest().bounds()
    assert recovered.mean == 0
    assert decide(recovered, 0.5) == RESISTS


def test_a_control_nearer_than_the_concept_is_named() -> None:
    assert ruler([0.3, 0.4], [0.3, 0.9], chance=0.1).nearer_control() == "car"
    assert ruler([0.3, 0.9], [0.3, 0.4], chance=0.1).nearer_control() is None


def test_the_rise_is_in_standard_errors_and_grows_with_the_sample() -> None:
    few, many = (ruler([0.9], [0.1], 0.1, images).rise for images in (50, 200))
    assert few == pytest.approx(0.8 / math.hypot(*[math.sqrt(0.09 / 50)] * 2), rel=0.1)
    assert many == pytest.approx(2 * few, rel=0.1)
    # All of 4 images against none of 4 prove little.
    assert ruler([1.0], [0.0], 0.0, 4).rise < 5 < ruler([1.0], [0.0], 0.0, 12).rise


def test_an_attack_that_teaches_nothing_counts_as_regained() -> None:
    found = ruler([0.3, 0.3], [0.3, 0.3], chance=0.3)
    assert found.recovered(curve([0.3])).largest().bounds().mean == 1


def test_an_unscored_curve_is_not_resistance() -> None:
    found = ruler([0.2, 0.9], [0.1], chance=0.1)
    with pytest.raises(ValueError, match="missing"):
        found.recovered(Sample(np.full((1, 1, 4), np.nan), (0,)))


def test_a_continuous_measure_without_limits_has_bounds_too() -> None:
    random = np.random.default_rng(0)

    def drawn(*means: float) -> Sample:
        values = np.array(means)[None, :, None] + 0.1 * random.standard_normal((1, len(means), 24))
        return Sample(values, tuple(range(len(means))))

    found = Ruler(drawn(-3.0, -1.0), {"car": drawn(-3.0, -2.9)}, drawn(-3.2).values[0, 0], "t")
    recovered = found.recovered(drawn(-3.0, -2.0)).largest().bounds()
    assert recovered.mean == pytest.approx(0.9 / 1.9, abs=0.05)
    assert recovered.high - recovered.low < 0.2


@pytest.mark.parametrize(
    ("seeds", "apart", "defended", "top"),
    [
        (1, 0.0, (0.02, 0.1, 0.3, 0.3), (0.3, 0.9, 0.95)),
        (3, 0.5, (0.02, 0.1, 0.3, 0.3), (0.3, 0.9, 0.95)),
        (3, 1.0, (0.1, 0.5, 0.8), (0.3, 0.9, 0.9)),
        (1, 0.0, (0.001, 0.001), (0.5, 0.98)),
    ],
)
def test_a_95_percent_bound_covers_the_true_worst_recovery(
    seeds: int, apart: float, defended: Sequence[float], top: Sequence[float]
) -> None:
    """1,000 studies of known probabilities, 250 of each kind: both bounds hold in 93 % or more."""
    floor = (0.02, 0.05)
    random, spread = (
        np.random.default_rng(7),
        np.random.default_rng(0).standard_normal(100_000) * apart,
    )

    def true(probabilities: Sequence[float]) -> float:
        return max(float((1 / (1 + np.exp(-(math.log(p / (1 - p)) + spread)))).mean())
                   for p in probabilities)  # fmt: skip

    truth = max(0.0, (true(defended) - true(floor)) / (true(top) - true(floor)))
    found = [
        bounds_of_study(random, i, defended, top, floor, seeds=seeds, images=24, apart=apart)
        for i in range(250)
    ]
    assert np.mean([b.high >= truth for b in found]) >= 0.93
    assert np.mean([b.low <= truth for b in found]) >= 0.93


def test_of_twenty_base_against_base_studies_one_resists_at_most() -> None:
    random = np.random.default_rng(3)
    top, floor = (0.6, 0.9, 0.9), (0.05, 0.05)
    found = [bounds_of_study(random, i, top, top, floor, seeds=1, images=12) for i in range(20)]
    assert sum(decide(recovered, 0.5) == RESISTS for recovered in found) <= 1


def test_more_images_or_seeds_narrow_the_interval_where_it_was() -> None:
    """Of 20 studies: the mean width, and in how many the larger study's estimate is within the bounds."""
    random = np.random.default_rng(5)
    defended, top, floor = (0.1, 0.3), (0.5, 0.95), (0.02, 0.05)
    few, images, seeds = (
        [bounds_of_study(random, i, defended, top, floor, seeds=s, images=n) for i in range(20)]
        for s, n in ((3, 20), (3, 160), (12, 20))
    )

    def width(found: list[Bounds]) -> float:
        return float(np.mean([bounds.high - bounds.low for bounds in found]))

    for more in (images, seeds):
        assert width(more) < 0.7 * width(few)
        assert sum(f.low <= m.mean <= f.high for f, m in zip(few, more, strict=True)) >= 18


def test_seeds_differ_only_beyond_their_images() -> None:
    random = np.random.default_rng(0)
    alike = study(random, (0.5,), seeds=3, images=400, shared=0.0).values
    apart = study(random, (0.5,), seeds=3, images=400, shared=0.0, apart=2.0).values
    assert seeds_differ(apart)
    assert not seeds_differ(alike[:1])


def test_sgr_is_the_share_that_was_lost() -> None:
    assert similarity_gap_ratio(0.8, 0.6) == pytest.approx(0.25)
    assert math.isnan(similarity_gap_ratio(0.0, 0.5))


def test_steps_to_recovery_is_the_first_step_at_the_level_or_censored() -> None:
    assert steps_to_recovery({50: 0.95, 0: 0.1, 25: 0.9}) == 25
    assert steps_to_recovery({0: 0.1, 50: 0.89}) is None
    assert steps_to_recovery({0: 0.1, 50: 0.5}, level=0.5) == 50


def test_area_is_the_mean_height_over_the_steps() -> None:
    assert area_under({0: 0.4}) == 0.4
    assert area_under({0: 0.0, 10: 1.0, 40: 1.0}) == pytest.approx((5 + 30) / 40)

"""From curves to a verdict, on curves drawn by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gift_ray.verdict.scoring import (
    ConceptVerdict,
    Scorecard,
    area_under,
    kept,
    recovery,
    resistance,
    scalarize,
    similarity_gap_ratio,
    steps_to_recovery,
)

unit = st.floats(0, 1)
weights = st.integers(0, 8).map(lambda n: n / 8)  # 1 - weight is exact
similarity = st.floats(-1, 1)
curve = st.dictionaries(st.integers(0, 1000), similarity, min_size=1, max_size=6)
hows = st.sampled_from(["harmonic", "weighted_sum", "chebyshev"])


def test_similarity_gap_ratio_is_the_share_that_was_lost() -> None:
    assert similarity_gap_ratio(0.8, 0.6) == pytest.approx(0.25)
    assert similarity_gap_ratio(0.8, 0.8) == 0
    assert math.isnan(similarity_gap_ratio(0.0, 0.5))


def test_recovery_runs_from_chance_to_the_best_undefended_step() -> None:
    undefended = {0: 0.2, 50: 0.8, 100: 0.6}
    defended = {100: 0.5, 0: 0.1, 50: 0.9}
    found = recovery(defended, undefended, chance=0.2)
    assert found == pytest.approx({0: 0.0, 50: 1.0, 100: 0.5})
    assert list(found) == [0, 50, 100]


def test_an_attack_that_teaches_nothing_proves_nothing() -> None:
    with pytest.raises(ValueError, match="never rises above chance"):
        recovery({0: 0.1}, {0: 0.3, 9: 0.3}, chance=0.3)


def test_an_unscored_curve_is_not_resistance() -> None:
    with pytest.raises(ValueError, match="missing"):
        recovery({0: math.nan}, {0: 0.9}, chance=0.1)
    with pytest.raises(ValueError, match="missing"):
        recovery({0: 0.5}, {0: math.nan}, chance=0.1)
    with pytest.raises(ValueError, match="missing"):
        kept(math.nan, base=0.9, chance=0.1)


def test_resistance_is_the_worst_case_over_curves_and_steps() -> None:
    assert resistance([{0: 0.0, 9: 0.1}, {0: 0.3, 9: 0.2}]) == pytest.approx(0.7)


@given(curve, similarity)
def test_the_undefended_model_does_not_resist_itself(curve: dict[int, float], chance: float):
    if max(curve.values()) - chance >= 1e-6:
        assert resistance([recovery(curve, curve, chance)]) == pytest.approx(0)


@given(curve, curve, similarity)
def test_recovery_and_resistance_are_shares(
    defended: dict[int, float], undefended: dict[int, float], chance: float
):
    if max(undefended.values()) - chance >= 1e-6:
        found = recovery(defended, undefended, chance)
        assert found.keys() == defended.keys()
        assert all(0 <= value <= 1 for value in found.values())
        assert 0 <= resistance([found]) <= 1


def test_steps_to_recovery_is_the_first_step_at_the_level_or_censored() -> None:
    assert steps_to_recovery({50: 0.95, 0: 0.1, 25: 0.9}) == 25
    assert steps_to_recovery({0: 0.1, 50: 0.89}) is None
    assert steps_to_recovery({0: 0.1, 50: 0.5}, level=0.5) == 50


def test_area_is_the_mean_height_over_the_steps() -> None:
    assert area_under({0: 0.4}) == 0.4
    assert area_under({10: 1.0, 0: 0.0}) == pytest.approx(0.5)
    # Uneven steps weigh by their length: 0.5 over 10 steps, 1 over 30.
    assert area_under({0: 0.0, 10: 1.0, 40: 1.0}) == pytest.approx((5 + 30) / 40)


def test_kept_is_the_share_above_chance_that_survives() -> None:
    assert kept(0.5, base=0.8, chance=0.2) == pytest.approx(0.5)
    assert kept(0.9, base=0.8, chance=0.2) == 1
    assert kept(0.1, base=0.8, chance=0.2) == 0
    with pytest.raises(ValueError, match="at chance"):
        kept(0.5, base=0.2, chance=0.2)


def test_scalarizations_have_their_closed_forms() -> None:
    assert scalarize(0.4, 0.8, "harmonic", 0.5) == pytest.approx(2 * 0.4 * 0.8 / 1.2)
    assert scalarize(0.4, 0.8, "harmonic", 0.25) == pytest.approx(1 / (0.25 / 0.8 + 0.75 / 0.4))
    assert scalarize(0.4, 0.8, "weighted_sum", 0.25) == pytest.approx(0.25 * 0.8 + 0.75 * 0.4)
    assert scalarize(0.4, 0.8, "chebyshev", 0.5) == pytest.approx(0.4)
    assert scalarize(0.0, 1.0, "harmonic", 0.5) == 0
    assert scalarize(0.3, 0.9, "harmonic", 1.0) == pytest.approx(0.9)


@given(unit, unit, hows, weights)
def test_scalarizations_are_shares_and_treat_both_sides_alike(
    retention: float, resisted: float, how: str, weight: float
):
    value = scalarize(retention, resisted, how, weight)
    assert -1e-9 <= value <= 1 + 1e-9
    assert value == pytest.approx(scalarize(resisted, retention, how, 1 - weight), abs=1e-9)
    assert scalarize(1.0, 1.0, how, weight) == pytest.approx(1)


@given(unit, unit, unit, hows, weights)
def test_more_of_either_side_is_never_worse(
    retention: float, resisted: float, more: float, how: str, weight: float
):
    value = scalarize(retention, resisted, how, weight)
    assert scalarize(max(retention, more), resisted, how, weight) >= value - 1e-9
    assert scalarize(retention, max(resisted, more), how, weight) >= value - 1e-9


def card(retention: float, recovered: float, how: str = "harmonic", floor: float = 0.8):
    concepts = {"cat": ConceptVerdict.of({"dreambooth/0/dino": {0: 0.0, 9: recovered}})}
    return Scorecard.of(
        concepts,
        {"generation/safe": retention},
        {"kid/safe": 0.1},
        objective=how,
        weight=0.5,
        min_retention=floor,
    )


def test_a_verdict_summarises_all_curves_of_a_concept() -> None:
    verdict = ConceptVerdict.of({"a": {0: 0.0, 10: 0.4}, "b": {0: 0.2, 10: 1.0}})
    assert verdict.resistance == 0
    assert verdict.mean_recovery == pytest.approx(0.4)
    assert verdict.final_recovery == pytest.approx(0.7)
    assert verdict.area == pytest.approx((0.2 + 0.6) / 2)
    assert verdict.steps_to_recovery == 10
    assert ConceptVerdict.of({"a": {0: 0.5}}).steps_to_recovery is None


def test_a_scorecard_takes_the_worst_concept_and_the_mean_probe() -> None:
    concepts = {n: ConceptVerdict.of({"a": {9: r}}) for n, r in (("cat", 0.1), ("dog", 0.5))}
    found = Scorecard.of(
        concepts, {"x": 1.0, "y": 0.7}, {}, objective="weighted_sum", weight=0.5, min_retention=0.8
    )
    assert (found.resistance, found.mean_resistance) == pytest.approx((0.5, 0.7))
    assert (found.retention, found.worst_retention) == pytest.approx((0.85, 0.7))
    assert found.feasible
    assert found.objective == pytest.approx((0.5 + 0.85) / 2)


@given(hows, st.floats(0.01, 1))
def test_a_dead_model_is_never_feasible(how: str, floor: float):
    dead = card(retention=0.0, recovered=0.0, how=how, floor=floor)
    assert not dead.feasible
    assert dead.objective < 0
    assert f"under {floor}" in dead.reason


@given(hows, unit, unit, unit, unit)
def test_under_the_floor_nothing_beats_what_is_above_it(
    how: str, low: float, high: float, recovered_low: float, recovered_high: float
):
    if low < 0.8 <= high:
        above, below = card(high, recovered_high, how), card(low, recovered_low, how)
        assert below.objective < above.objective

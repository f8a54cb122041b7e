"""Scorecards and the objective of a search: closed forms, and properties that hold for all inputs."""

from __future__ import annotations

import pytest
from cards import attack, card, concept, sure
from hypothesis import given
from hypothesis import strategies as st

from gift_ray.verdict.scoring import Standing, scalarize

unit = st.floats(0, 1)
hows = st.sampled_from(["harmonic", "weighted_sum", "chebyshev"])
# Nearer to 0 than a float tells 1 - w from 1 a weight counts as 0 on one side alone.
weights = st.one_of(st.just(0.0), st.just(1.0), st.floats(1e-6, 1 - 1e-6))


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


def test_a_verdict_summarises_all_attacks_of_a_concept() -> None:
    found = concept({"a/x": attack({0: 0.0, 10: 0.4}), "b/x": attack({0: 0.2, 10: 1.0})})
    assert found.resistance == 0
    assert found.worst == "b/x"
    assert found.mean_recovery == pytest.approx(0.4)
    assert found.final_recovery == pytest.approx(0.7)
    assert found.area == pytest.approx((0.2 + 0.6) / 2)
    assert found.steps_to_recovery == 10
    assert concept({"a/x": attack({0: 0.5})}).steps_to_recovery is None


def test_a_scorecard_takes_the_worst_concept_and_the_mean_group() -> None:
    concepts = {n: concept({"a/x": attack({9: r})}) for n, r in (("cat", 0.1), ("dog", 0.5))}
    groups = {"safe prompts": sure(1.0), "neighbours": sure(0.7, half=0.1)}
    found = card(concepts, groups, how="weighted_sum")
    assert (found.resistance, found.mean_resistance) == pytest.approx((0.5, 0.7))
    assert found.resistance_low == pytest.approx(0.45)
    assert (found.retention, found.worst_retention) == pytest.approx((0.85, 0.7))
    assert (found.retention_low, found.worst_retention_low) == pytest.approx((0.8, 0.6))
    assert found.feasible
    assert found.objective == pytest.approx((0.5 + 0.85) / 2)
    assert found.verdicts()["dog"]["verdict"] == "resists"


@given(hows, st.floats(0.01, 1))
def test_a_dead_model_is_never_feasible(how: str, floor: float):
    dead = Standing.of(0.0, 1.0, objective=how, weight=0.5, min_retention=floor)
    assert not dead.feasible
    assert dead.objective < 0
    assert f"under {floor}" in dead.reason


@given(hows, unit, unit, unit, unit)
def test_under_the_floor_nothing_beats_what_is_above_it(
    how: str, low: float, high: float, resists_low: float, resists_high: float
):
    def standing(retention: float, resistance: float) -> Standing:
        return Standing.of(retention, resistance, objective=how, weight=0.5, min_retention=0.8)

    if low < 0.8 <= high:
        assert standing(low, resists_low).objective < standing(high, resists_high).objective


def test_what_was_not_measured_has_no_standing() -> None:
    with pytest.raises(ValueError, match="missing"):
        Standing.of(float("nan"), 1.0, objective="harmonic", weight=0.5, min_retention=0.5)

"""Pareto fronts against the definition, tried on every pair of points."""

from __future__ import annotations

import numpy as np

from gift_ray.search.pareto import front_of, fronts


def test_front_is_what_no_other_point_beats() -> None:
    points = np.random.default_rng(0).random((60, 2))
    beaten = [any((other >= p).all() and (other > p).any() for other in points) for p in points]
    found = front_of(points)
    assert sorted(found) == [i for i, b in enumerate(beaten) if not b]
    assert [points[i][0] for i in found] == sorted((points[i][0] for i in found), reverse=True)


def test_a_point_that_only_ties_in_one_measure_is_off_the_front() -> None:
    assert front_of([(0.5, 0.5), (0.5, 0.7), (0.4, 0.7)]) == [1]


def test_each_model_has_a_front_of_its_feasible_trials() -> None:
    def trial(name: str, *arms: tuple[list[str], float, float, bool]) -> dict:
        keys = ("malicious", "retention", "resistance", "feasible")
        return {"trial_id": name, "arms": [dict(zip(keys, arm, strict=True)) for arm in arms]}

    trials = [
        trial("a", (["cat"], 0.9, 0.1, True), (["dog"], 0.5, 0.5, True)),
        trial("b", (["cat"], 0.8, 0.3, True), (["dog"], 0.4, 0.4, True)),
        trial("c", (["cat"], 0.7, 0.9, False)),
        trial("failed"),
        # A name may hold what names are listed with.
        trial("d", (["cat, dog"], 0.1, 0.1, True)),
        trial("e", (["cat", "dog"], 0.9, 0.9, True)),
    ]
    assert fronts(trials) == [
        {"malicious": ["cat"], "trials": ["a", "b"]},
        {"malicious": ["dog"], "trials": ["a"]},
        {"malicious": ["cat, dog"], "trials": ["d"]},
        {"malicious": ["cat", "dog"], "trials": ["e"]},
    ]

"""A search without a cluster: what is suggested, what is hopeless, what is remembered, what it costs."""

from __future__ import annotations

import itertools
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_study

from gift_ray.config.schema import StudyConfig
from gift_ray.records.trials import Ledger, Trial, earlier_trials
from gift_ray.search.pareto import fronts
from gift_ray.search.sampler import Outcome, Search, is_hopeless, propose

RANGE = {"low": 0.01, "high": 1.0, "log": True}


def study(**search: Any) -> StudyConfig:
    return tiny_study(
        name="searched",
        defense={"name": "gift"},
        search={"space": {"defense.beta": RANGE}, **search},
    )


def arm(objective: float, retention: float = 0.9, resistance: float = 0.5) -> dict[str, Any]:
    return {
        "malicious": ["cat"], "objective": objective, "retention": retention,
        "resistance": resistance, "feasible": objective >= 0, "reason": "",
    }  # fmt: skip


def complete(number: int, beta: float, objective: float, **changes: Any) -> Trial:
    trial = Trial(
        f"t-{number}", {"defense.beta": beta}, objective, 0.5, 0.9, objective >= 0, "",
        [arm(objective)], number=number, rungs=[1.0, objective],
    )  # fmt: skip
    return replace(trial, **changes)


def outcome(objective: float, rung: int = 1, of: int = 3, state: Any = "running") -> Outcome:
    return Outcome(rung, of, state, "", [arm(objective)], 10.0)


class TestProposals:
    def test_a_suggestion_depends_on_the_past_and_on_nothing_else(self) -> None:
        config = study(num_samples=20)
        known = [complete(i, 0.02 * (i + 1), 0.1 * i) for i in range(7)]
        assert propose(config, known, 7) == propose(config, known, 7)
        other = [replace(t, objective=-t.objective) for t in known]
        assert propose(config, known, 7) != propose(config, other, 7)

    def test_tpe_looks_where_it_was_good(self) -> None:
        config = study(num_samples=60)
        # Good is what lies near 0.05.
        known = [
            complete(i, b, 1 - abs(b - 0.05)) for i, b in enumerate([0.04, 0.05, 0.06, *[0.9] * 12])
        ]
        found = [propose(config, known, number)["defense.beta"] for number in range(15, 35)]
        assert sorted(found)[len(found) // 2] < 0.2

    def test_infeasible_trials_are_told_as_such(self) -> None:
        # Dead models resist best of all: without the constraint they would be half of the front.
        config = study(num_samples=60, pareto=True)
        dead = [
            complete(i, 0.5 + 0.02 * i, -0.5, arms=[arm(-0.5, retention=0.3, resistance=0.99)])
            for i in range(12)
        ]
        fine = [
            complete(12 + i, 0.02 + 0.001 * i, 0.2, arms=[arm(0.2, retention=0.9, resistance=0.1)])
            for i in range(12)
        ]
        found = [propose(config, [*dead, *fine], n)["defense.beta"] for n in range(24, 44)]
        assert sorted(found)[len(found) // 2] < 0.2

    def test_every_kind_of_trial_can_be_told(self) -> None:
        states = [("running", 0.0), ("pruned", 0.3), ("infeasible", -0.2), ("failed", -1.0)]
        for pareto_, algorithm in itertools.product((False, True), ("tpe", "random")):
            config = study(pareto=pareto_, algorithm=algorithm)
            known = [complete(i, 0.1 * (i + 1), 0.1) for i in range(6)] + [
                complete(6 + i, 0.1, value, state=state, arms=[], feasible=value >= 0,
                         retention=float("nan") if state == "failed" else 0.7)
                for i, (state, value) in enumerate(states)
            ]  # fmt: skip
            assert 0.01 <= propose(config, known, 10)["defense.beta"] <= 1

    def test_a_grid_is_every_point_once_with_its_ends(self) -> None:
        steps = {"low": 40, "high": 80, "num": 3, "integer": True}
        space = {"defense.beta": RANGE | {"num": 3}, "defense.max_train_steps": steps}
        config = study(space=space, algorithm="grid")
        assert config.search is not None
        assert config.search.num_samples == 9
        found = [tuple(propose(config, [], number).values()) for number in range(9)]
        assert found == list(itertools.product([0.01, pytest.approx(0.1), 1.0], [40, 60, 80]))

    def test_whole_numbers_stay_whole(self) -> None:
        config = study(space={"defense.max_train_steps": {"low": 10, "high": 13, "integer": True}})
        found = {propose(config, [], number)["defense.max_train_steps"] for number in range(30)}
        assert found == {10, 11, 12, 13}
        assert {type(value) for value in found} == {int}

    def test_conditions_follow_what_was_chosen(self) -> None:
        defenses = [{"name": "gift", "beta": 0.1}, {"name": "esd"}]
        space = {
            # Listed first on purpose: the part that decides is chosen first all the same.
            "defense.beta": RANGE | {"when": {"defense.name": "gift"}},
            "defense": {"choices": defenses},
        }
        found = [propose(study(space=space), [], number) for number in range(12)]
        assert {len(values) for values in found} == {1, 2}
        for values in found:
            assert ("defense.beta" in values) == (values["defense"]["name"] == "gift")


class TestPruning:
    def test_nothing_is_judged_by_what_it_releases(self) -> None:
        others = [complete(i, 0.1, 0.9) for i in range(5)]
        for pruner in ("bound", "median", "asha"):
            assert not is_hopeless(pruner, outcome(0.1, rung=0), others)
            assert is_hopeless(pruner, outcome(0.1), others)
        assert not is_hopeless("none", outcome(0.1), others)

    def test_bound_ends_only_what_can_not_win_any_more(self) -> None:
        others = [complete(0, 0.1, 0.4), complete(1, 0.1, 0.9, state="pruned", arms=[])]
        assert is_hopeless("bound", outcome(0.4), others)
        assert not is_hopeless("bound", outcome(0.41), others)
        # A second model of the trial, without a rival so far.
        free = replace(outcome(0.1), arms=[arm(0.1), arm(0.0) | {"malicious": ["dog"]}])
        assert not is_hopeless("bound", free, others)

    def test_like_is_compared_with_like(self) -> None:
        others = [complete(i, 0.1, 0.0, rungs=[1.0, 0.1 * i, 0.0]) for i in range(5)]
        assert is_hopeless("median", outcome(0.19), others)
        assert not is_hopeless("median", outcome(0.21), others)
        assert not is_hopeless("median", outcome(0.0, rung=2), others)
        assert is_hopeless("asha", outcome(0.25), others)
        assert not is_hopeless("asha", outcome(0.27), others)
        assert not is_hopeless("asha", outcome(-1, rung=2), others)

    def test_few_peers_decide_nothing(self) -> None:
        others = [complete(i, 0.1, 0.9) for i in range(2)]
        assert not is_hopeless("median", outcome(0.1), others)
        assert not is_hopeless("asha", outcome(0.1), others)


class TestMemory:
    def run(self, search: Search, objectives: list[float]) -> None:
        """Trials in turn, each with two rungs; those of the `bound` pruner may end after the first."""
        for objective in objectives:
            trial = search.next()
            assert trial is not None
            first = outcome(objective, rung=1, of=2)
            if not search.hopeless(trial.number, first):
                search.end(trial.number, outcome(objective, rung=2, of=2, state="complete"))
            else:
                search.end(trial.number, first)

    def test_a_search_that_was_killed_goes_on_as_if_it_had_not_been(self, tmp_path: Path) -> None:
        config = study(num_samples=9, pruner="bound")
        objectives = [0.1, 0.3, 0.2, 0.6, 0.5, 0.4, 0.7, 0.1, 0.2]
        whole = Ledger(tmp_path / "whole")
        self.run(Search(config, whole, "name"), objectives)
        assert [t.state for t in whole.ended()].count("pruned") == 5

        # Three drivers, the first two of which die while a trial runs.
        for done in ([0.1, 0.3, 0.2], [0.6, 0.5, 0.4, 0.7], [0.1, 0.2]):
            search = Search(config, Ledger(tmp_path / "killed"), "name")
            self.run(search, done)
            search.next()
        killed = Ledger(tmp_path / "killed")
        assert killed.unfinished() == []
        assert killed.ended() == whole.ended()

    def test_what_was_begun_is_begun_again_with_its_values(self, tmp_path: Path) -> None:
        config = study(num_samples=3)
        begun = Search(config, Ledger(tmp_path), "name").next()
        again = Search(config, Ledger(tmp_path), "name")
        assert again.next() == begun
        other = again.next()
        assert other is not None
        assert other.number == 1

    def test_a_longer_search_continues_a_shorter_one(self, tmp_path: Path) -> None:
        self.run(Search(study(num_samples=2), Ledger(tmp_path), "name"), [0.1, 0.2])
        assert Search(study(num_samples=2), Ledger(tmp_path), "name").next() is None
        trial = Search(study(num_samples=3), Ledger(tmp_path), "name").next()
        assert trial is not None
        assert trial.number == 2

    def test_failed_trials_are_kept_and_told_once(self, tmp_path: Path) -> None:
        told: list[Trial] = []
        search = Search(study(), Ledger(tmp_path), "name", on_trial=told.append)
        trial = search.next()
        assert trial is not None
        failed = Outcome(0, 3, "failed", "round 3: the loss is not finite", [], 4.0)
        assert not search.hopeless(trial.number, failed)
        search.end(trial.number, failed)
        (kept,) = Ledger(tmp_path).ended()
        assert [(t.state, t.reason, t.objective) for t in (kept, *told)] == [
            ("failed", "round 3: the loss is not finite", -1.0)
        ] * 2

    def test_a_spent_budget_begins_no_trial(self, tmp_path: Path) -> None:
        # Each trial takes 10 s, what all share 25: the third begins at 45 of 50.
        config = study(budget_hours=50 / 3600)
        search = Search(config, Ledger(tmp_path), "name", shared_seconds=25)
        self.run(search, [0.1, 0.2, 0.3])
        assert search.next() is None
        richer = study(budget_hours=60 / 3600)
        assert Search(richer, Ledger(tmp_path), "name", shared_seconds=25).next() is not None


class TestWarmStart:
    def earlier(self, folder: Path, *trials: Trial) -> None:
        ledger = Ledger(folder / "search" / "f")
        for trial in trials:
            ledger.write(trial)

    def test_only_comparable_trials_are_learnt_from(self, tmp_path: Path) -> None:
        good = complete(0, 0.1, 0.4, protocol="p")
        self.earlier(
            tmp_path, good,
            complete(1, 5.0, 0.4, protocol="p"), complete(2, 0.1, 0.4, protocol="q"),
            complete(3, 0.1, 0.4, protocol="p", state="pruned", arms=[]),
        )  # fmt: skip
        space = study().search.space  # type: ignore[union-attr]
        found = earlier_trials([str(tmp_path)], space, "p")
        assert found == [replace(good, rungs=[])]

    def test_a_folder_that_tells_nothing_is_refused_with_the_reason(self, tmp_path: Path) -> None:
        from gift_ray.errors import ConfigError

        self.earlier(tmp_path, complete(0, 0.1, 0.4, protocol="q"))
        with pytest.raises(ConfigError) as error:
            earlier_trials([str(tmp_path), "/no/such"], study().search.space, "p")  # type: ignore[union-attr]
        one, two = error.value.mistakes
        assert "of its 1 complete trials 0 were scored" in one
        assert "/no/such" in two


def test_the_front_is_what_nothing_feasible_beats() -> None:
    rows = [(0.95, 0.1), (0.9, 0.5), (0.9, 0.4), (0.85, 0.5), (0.81, 0.6), (0.2, 0.9)]
    trials = [
        complete(i, 0.1, 0.0, arms=[arm(0.0, *row) | {"feasible": row[0] > 0.8}])
        for i, row in enumerate(rows)
    ]
    assert fronts([asdict(t) for t in trials]) == [
        {"malicious": ["cat"], "trials": ["t-0", "t-1", "t-4"]}
    ]

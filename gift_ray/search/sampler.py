"""The course of a search: which setting is tried next, what a trial runs in which order, when it is ended.

A suggestion depends on the configuration, the seed, the trial's number and the earlier trials only, so that a
search that was killed continues as if it had not been. `gift_ray/cluster/tune.py` runs it under Ray Tune.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState

from gift_ray import plugins
from gift_ray.config.dotted_paths import settings
from gift_ray.config.schema import StudyConfig
from gift_ray.config.search_space import Range, SearchConfig
from gift_ray.errors import UnitFailed
from gift_ray.records.record import is_done
from gift_ray.records.trials import FAILED, Ledger, State, Trial
from gift_ray.search import costs
from gift_ray.study.load import configure, holds
from gift_ray.study.plan import Arm, Plan, plan
from gift_ray.study.protocol import attack_names
from gift_ray.study.step import Step
from gift_ray.training.diffusion import Seeds
from gift_ray.verdict.scorecard import outlook, scorecard
from gift_ray.verdict.yardstick import Yardstick

optuna.logging.set_verbosity(optuna.logging.WARNING)
# TPE draws at random until it knows this many trials. Optuna's default of 10 would make most searches random.
STARTUP = 5
# A trial is compared once this many others have reached its rung; `asha` keeps one in REDUCTION of them.
PEERS = 3
REDUCTION = 3
Key = tuple[str, str, int]


@dataclass(frozen=True)
class Outcome:
    """What is known of a trial after one of its rungs.

    `rung` counts from 0, where only images of the released models have been drawn, to `of`, the last one.
    `arms` holds for each model the best that it can still become; in a complete trial, its verdict.
    """

    rung: int
    of: int
    state: State
    reason: str
    arms: list[dict[str, Any]]
    seconds: float


class Search:
    """The driver's side of a study's search.

    Args:
        shared_seconds: what the units that all trials share took.
        earlier: trials of other studies that the sampler is told of.
        on_trial: called once for each trial that ends.
    """

    def __init__(
        self, config: StudyConfig, ledger: Ledger, name: str, *,
        protocol: str = "", shared_seconds: float = 0.0, earlier: Sequence[Trial] = (),
        on_trial: Callable[[Trial], None] = lambda _: None,
    ) -> None:  # fmt: skip
        assert config.search is not None
        self.config, self.search, self.ledger = config, config.search, ledger
        self.name, self.protocol, self.earlier = name, protocol, list(earlier)
        self.shared_seconds, self.on_trial = shared_seconds, on_trial
        # Trials that a killed driver had begun come first, with the same values.
        self.waiting = ledger.unfinished()

    def remaining(self) -> int:
        """How many trials are still to be run; none when the budget is spent."""
        if self.search.budget_hours and self.spent_hours() >= self.search.budget_hours:
            return 0
        return max(0, self.search.num_samples - len(self.ledger.ended()))

    def spent_hours(self) -> float:
        """Hours that all drivers of this search have used: of GPUs where units have one, else of units."""
        seconds = self.shared_seconds + sum(t.seconds for t in self.ledger.trials.values())
        return seconds / 3600 * (self.config.cluster.gpus_per_unit or 1)

    def next(self) -> Trial | None:
        """The next trial, written down before it begins; None when all are begun or the budget is spent."""
        if self.remaining() == 0:
            return None
        if self.waiting:
            return self.waiting.pop(0)
        # Mostly the next; an earlier one if its file was lost.
        number = next(n for n in itertools.count() if n not in self.ledger.trials)
        if number >= self.search.num_samples:
            return None
        known = [*self.earlier, *self.ledger.trials.values()]
        values = propose(self.config, known, number)
        trial = Trial(
            f"{self.name[:6]}-{number:02d}", values, 0.0, 0.0, 0.0, False, "", [],
            number=number, state="running", protocol=self.protocol,
        )  # fmt: skip
        self.ledger.write(trial)
        return trial

    def hopeless(self, number: int, outcome: Outcome) -> bool:
        """Note what is known of a running trial; returns whether it should be ended."""
        trial = self.ledger.trials[number]
        if trial.state != "running" or not outcome.arms:
            return False
        others = [t for n, t in self.ledger.trials.items() if n != number]
        # A trial that is run again reports its first rungs a second time.
        rungs = [*trial.rungs[: outcome.rung], _mean(outcome.arms)]
        self.ledger.trials[number] = replace(trial, rungs=rungs, seconds=outcome.seconds)
        return outcome.state == "running" and is_hopeless(self.search.pruner, outcome, others)

    def end(self, number: int, outcome: Outcome) -> None:
        """Record how a trial ended (one that still ran was pruned) and report it."""
        trial = self.ledger.trials[number]
        if trial.state == "running":
            trial = _ended(trial, outcome)
            self.ledger.write(trial)
        self.on_trial(trial)


def propose(config: StudyConfig, known: Sequence[Trial], number: int) -> dict[str, Any]:
    """The values of trial `number`, given all trials before it."""
    search = config.search
    assert search is not None
    space = dict(sorted(search.space.items(), key=lambda item: item[0].count(".")))
    if search.algorithm == "grid":
        points = itertools.product(*(option.points() for option in space.values()))
        return dict(zip(space, next(itertools.islice(points, number, None)), strict=True))

    if search.algorithm == "random" or len(known) < STARTUP:
        # Each trial has its own draw, named by its number.
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=config.seed))
        draws = [_ask(config, space, study.ask()) for _ in range(number + 1)]
        return draws[-1]

    # Optuna gets all earlier trials again each time, so that it keeps no state that could be lost.
    seed = Seeds(config.seed).generator("search", number).initial_seed() % 2**32
    study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=1),
        directions=["maximize"] * (2 if search.pareto else 1),
    )
    study.add_trials([_told(search, space, trial) for trial in known])
    return _ask(config, space, study.ask())


def _ask(config: StudyConfig, space: Mapping[str, Range], asked: optuna.Trial) -> dict[str, Any]:
    """A value for every option whose condition holds."""
    values: dict[str, Any] = {}
    for path, option in space.items():
        if holds(settings(config, values), option.when):
            values[path] = _suggest(asked, path, option)
    return values


def _suggest(asked: optuna.Trial, path: str, option: Range) -> Any:
    if option.choices is not None:
        return option.choices[asked.suggest_categorical(path, range(len(option.choices)))]
    low, high = option.low, option.high
    assert low is not None
    assert high is not None
    if option.integer:
        return asked.suggest_int(path, round(low), round(high), log=option.log)
    return asked.suggest_float(path, low, high, log=option.log)


def distribution(option: Range) -> BaseDistribution:
    """An option as Optuna sees it; choices (which may be whole parts of a study) by their place."""
    if option.choices is not None:
        return CategoricalDistribution(range(len(option.choices)))
    assert option.low is not None
    assert option.high is not None
    if option.integer:
        return IntDistribution(round(option.low), round(option.high), log=option.log)
    return FloatDistribution(option.low, option.high, log=option.log)


def _told(
    search: SearchConfig, space: Mapping[str, Range], trial: Trial
) -> optuna.trial.FrozenTrial:
    """A trial in Optuna's form.

    Infeasible and failed trials break a constraint; a pruned one has the objective that was still possible
    when it was ended.
    """
    given = {path: space[path] for path in trial.values}
    params = {
        path: option.choices.index(trial.values[path])
        if option.choices is not None
        else trial.values[path]
        for path, option in given.items()
    }
    states = {"running": TrialState.RUNNING, "pruned": TrialState.PRUNED}
    state = states.get(trial.state, TrialState.COMPLETE)
    return optuna.trial.create_trial(
        state=state,
        values=None if state == TrialState.RUNNING else _worth(search, trial),
        params=params,
        distributions={path: distribution(option) for path, option in given.items()},
        intermediate_values={} if search.pareto else dict(enumerate(trial.rungs)),
        # The constraint is violated by the distance to the utility floor; by a failed trial as much as
        # possible.
        constraints={"retention": 0.0 if trial.feasible else -trial.objective}
        if state == TrialState.COMPLETE
        else None,
    )


def _worth(search: SearchConfig, trial: Trial) -> list[float]:
    if not search.pareto:
        return [trial.objective]
    if trial.state == "failed":
        return [0.0, 0.0]
    if trial.state == "complete":
        return [_mean(trial.arms, "retention"), _mean(trial.arms, "resistance")]
    return [trial.retention, trial.resistance]


def is_hopeless(pruner: str, outcome: Outcome, others: Sequence[Trial]) -> bool:
    """Whether a running trial should end, by what it can still become.

    Each further attack can only lower the worst case, so trials are compared at the same rung, that is after
    the same attacks on the same concepts. Rung 0 is never compared: it measures retention alone, before any
    attack, and says nothing about resistance.
    """
    if pruner == "none" or outcome.rung == 0:
        return False
    if pruner == "bound":
        return all(_is_beaten(arm, others) for arm in outcome.arms)
    peers = [t.rungs[outcome.rung] for t in others if len(t.rungs) > outcome.rung]
    if len(peers) < PEERS:
        return False
    if pruner == "median":
        return _mean(outcome.arms) < float(np.median(peers))
    # Asynchronous successive halving: at rungs 1, 3, 9, ... all but the best third end.
    compared = [REDUCTION**i for i in range(outcome.of.bit_length())]
    share = 100 * (1 - 1 / REDUCTION)
    return outcome.rung in compared and _mean(outcome.arms) < float(np.percentile(peers, share))


def _is_beaten(arm: dict[str, Any], others: Sequence[Trial]) -> bool:
    """Whether some complete trial's model is at least as good as this one can become."""
    rivals = [a for t in others for a in t.arms if a["malicious"] == arm["malicious"]]
    return any(rival["objective"] >= arm["objective"] for rival in rivals)


def _mean(arms: Sequence[dict[str, Any]], name: str = "objective") -> float:
    return fmean(arm[name] for arm in arms)


def _ended(trial: Trial, outcome: Outcome) -> Trial:
    """A trial with its last outcome."""
    scored = outcome.state != "failed" and math.isfinite(_mean(outcome.arms))
    if not scored:
        # What is no number ranks below every score, and no sampler can be told of it.
        reason = outcome.reason if outcome.state == "failed" else "its objective is not a number"
        return replace(
            trial, state="failed", objective=FAILED, resistance=math.nan, retention=math.nan,
            reason=reason, seconds=outcome.seconds,
        )  # fmt: skip
    state: State = "pruned" if outcome.state == "running" else outcome.state
    left = _mean(outcome.arms)
    reasons = {
        "pruned": f"pruned after rung {outcome.rung} of {outcome.of}: objective at most {left:.3f}",
        "infeasible": f"not attacked: {outcome.reason}, whatever fine-tuning keeps",
    }
    return replace(
        trial,
        state=state,
        objective=left,
        resistance=min(arm["resistance"] for arm in outcome.arms),
        retention=min(arm["retention"] for arm in outcome.arms),
        feasible=any(arm["feasible"] for arm in outcome.arms),
        reason=reasons.get(state, outcome.reason),
        arms=outcome.arms if state == "complete" else [],
        seconds=outcome.seconds,
    )


def evaluate(
    config: StudyConfig, values: dict[str, Any], run: Callable[[list[Step]], None]
) -> Iterator[Outcome]:
    """One trial, rung by rung: released images first, so that a destroyed model is never attacked.

    Args:
        run: does steps and what they need; raises UnitFailed if one fails for its own reason.
    """
    layout, study_dir = plan(configure(config, values)), config.study_dir
    ladder = rungs(layout)
    shared = {step.fingerprint for step in layout.shared()}
    own = [step for step in layout.steps() if step.fingerprint not in shared]
    done: list[Key] = []
    yardstick: Yardstick | None = None
    # What all trials share is mostly there; without it nothing can be judged.
    missing = [step for step in layout.shared() if not is_done(step.folder(study_dir))]
    if missing:
        run(missing)
    for number, (steps, attacks) in enumerate(ladder):
        try:
            run(steps)
        except UnitFailed as error:
            spent = costs.seconds(own, study_dir)
            yield Outcome(number, len(ladder) - 1, "failed", str(error), [], spent)
            return
        done += attacks
        yardstick = yardstick or Yardstick.of(layout, study_dir)
        last = number == len(ladder) - 1
        arms = [_verdict(yardstick, arm, None if last else done) for arm in layout.defended]
        dead = not last and not any(arm["feasible"] for arm in arms)
        state: State = "complete" if last else "infeasible" if dead else "running"
        reason = "; ".join(
            f"{', '.join(arm['malicious'])}: {arm['reason']}" for arm in arms if arm["reason"]
        )
        yield Outcome(number, len(ladder) - 1, state, reason, arms, costs.seconds(own, study_dir))
        if dead:
            return


def rungs(layout: Plan) -> list[tuple[list[Step], list[Key]]]:
    """A trial's steps and attacks, rung by rung.

    The first rung draws images of the released models. The others go attack by attack, that with the fewest
    steps first, and concept by concept, malicious ones first. Without a pruner trials are not compared on
    their way, so all attacks are one rung and run at the same time.
    """
    search = layout.config.search
    arms = layout.defended
    ladder: list[tuple[list[Step], list[Key]]] = [
        ([step for arm in arms for step in arm.samples.values()], [])
    ]
    keys = list(dict.fromkeys(key for arm in arms for key in arm.attacks))
    concepts = layout.config.concepts
    order = [concept.name for concept in (*concepts.malicious, *concepts.safe)]
    lengths = {
        name: plugins.build("attacks", a.name, a.options).evaluation_steps()[-1]
        for name, a in attack_names(layout.config).items()
    }
    keys.sort(key=lambda key: (lengths[key[1]], key[1], order.index(key[0])))
    together = search is None or search.pruner == "none"
    for _, group in itertools.groupby(keys, key=lambda key: together or key[:2]):
        attacks = list(group)
        steps = [arm.attacks[key] for key in attacks for arm in arms if key in arm.attacks]
        ladder.append((steps, attacks))
    return ladder


def _verdict(yardstick: Yardstick, arm: Arm, attacks: Sequence[Key] | None) -> dict[str, Any]:
    """An arm's verdict, or what it can still become after these attacks."""
    names = ["objective", "resistance", "retention", "feasible", "reason"]
    found: Any
    if attacks is None:
        found, names = scorecard(yardstick, arm), [*names, "worst_retention"]
    else:
        found = outlook(yardstick, arm, [key for key in attacks if key in arm.attacks])
    return {"malicious": list(arm.malicious)} | {name: getattr(found, name) for name in names}

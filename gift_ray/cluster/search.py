"""The search of a study's options with Ray Tune and Optuna: a trial is one setting, a light driver
that runs its plan's steps and reports one scorecard."""

from __future__ import annotations

import math
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import optuna
from ray import tune
from ray.tune.logger import JsonLoggerCallback
from ray.tune.search.optuna import OptunaSearch

from gift_ray.cluster.run import run_steps
from gift_ray.config import Range, SearchConfig, StudyConfig
from gift_ray.errors import UnitFailed
from gift_ray.plan import Arm, configure, plan, scorecard
from gift_ray.scoring import Scorecard

# What a failed trial tells the search: worse than the worst infeasible one (retention 0).
FAILED = -1.0


@dataclass(frozen=True)
class Trial:
    """One setting and what came of it.

    `arms` holds each released model's own verdict (one for each concept in per_concept mode, one for
    all of them in joint and merge mode); `objective` is their mean, `resistance` and `retention` their
    worst.
    """

    trial_id: str
    values: dict[str, Any]
    objective: float
    resistance: float
    retention: float
    feasible: bool
    reason: str
    arms: list[dict[str, Any]]


def search(
    config: StudyConfig, board: Any, on_trial: Callable[[Trial], None], fingerprint: str
) -> list[Trial]:
    """Run or continue the study's search; returns all trials, in the order they were suggested.

    Args:
        on_trial: called in the driver, once for each trial that ends, in this or an earlier run.
        fingerprint: names the search; another space or study is another search.
    """
    assert config.search is not None
    _Listener.tell = staticmethod(on_trial)
    name = f"search-{fingerprint[:16]}"
    storage = config.study_dir / "tune"
    trainable = tune.with_resources(
        tune.with_parameters(_trial, config=config, board=board),
        # Asks for next to nothing: units, not trials, occupy the cluster.
        tune.PlacementGroupFactory([{"memory": 1}]),
    )
    tuner = _restore(storage / name, trainable) or tune.Tuner(
        trainable,
        param_space=None if config.search.algorithm == "tpe" else _tune_space(config.search),
        tune_config=_tune_config(config),
        run_config=tune.RunConfig(
            name=name,
            storage_path=str(storage),
            failure_config=tune.FailureConfig(max_failures=config.cluster.max_failures),
            # Of Tune's own loggers only the one that its results are read back from.
            callbacks=[_Listener(), JsonLoggerCallback()],
            verbose=0,
        ),
    )
    results = tuner.fit()
    for error in results.errors:
        raise error
    return [_as_trial(r.metrics["trial_id"], r.config, r.metrics) for r in results]


def _trial(values: dict[str, Any], *, config: StudyConfig, board: Any) -> None:
    """One setting, start to end, in a process of its own. Only this thread reports to Tune."""
    layout = plan(configure(config, values))
    study_dir = config.study_dir
    try:
        run_steps(
            [s for arm in layout.defended for s in arm.steps()], study_dir, config.cluster, board
        )
        cards = [scorecard(layout, arm, study_dir) for arm in layout.defended]
    except UnitFailed as error:
        tune.report({"objective": FAILED, "resistance": math.nan, "retention": math.nan,
                     "feasible": False, "reason": str(error), "arms": []})  # fmt: skip
        return
    arms = [_verdict(arm, card) for arm, card in zip(layout.defended, cards, strict=True)]
    tune.report(
        {
            "objective": sum(card.objective for card in cards) / len(cards),
            "resistance": min(card.resistance for card in cards),
            "retention": min(card.retention for card in cards),
            "feasible": any(card.feasible for card in cards),
            "reason": "; ".join(f"{a['malicious']}: {a['reason']}" for a in arms if a["reason"]),
            "arms": arms,
        }
    )


def _verdict(arm: Arm, card: Scorecard) -> dict[str, Any]:
    names = ("objective", "resistance", "retention", "worst_retention", "feasible", "reason")
    return {"malicious": ", ".join(arm.malicious)} | {name: getattr(card, name) for name in names}


class _Listener(tune.Callback):
    """Tells the driver of every trial that ends.

    Tune pickles its callbacks, and restores them with the search: whom to tell belongs to the running
    driver, so it is kept on the class.
    """

    tell: ClassVar[Callable[[Trial], None]]

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        _Listener.tell(_as_trial(trial.trial_id, trial.config, trial.last_result))


def _as_trial(trial_id: str, values: dict[str, Any], result: dict[str, Any]) -> Trial:
    names = ("objective", "resistance", "retention", "feasible", "reason", "arms")
    return Trial(trial_id, dict(values), **{name: result[name] for name in names})


def _tune_config(config: StudyConfig) -> tune.TuneConfig:
    assert config.search is not None
    algorithm = None
    if config.search.algorithm == "tpe":
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        algorithm = OptunaSearch(
            space=_optuna_space(config.search), metric="objective", mode="max", seed=config.seed
        )
    return tune.TuneConfig(
        metric="objective",
        mode="max",
        search_alg=algorithm,
        num_samples=config.search.num_samples,
        # A trial's process outlives it: the next trial needs the same imports.
        reuse_actors=True,
        max_concurrent_trials=config.search.max_concurrent_trials,
    )


def _optuna_space(search: SearchConfig) -> dict[str, Any]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    def distribution(option: Range) -> Any:
        if option.choices is not None:
            return CategoricalDistribution(option.choices)
        assert option.low is not None
        assert option.high is not None
        return FloatDistribution(option.low, option.high, log=option.log)

    return {path: distribution(option) for path, option in search.space.items()}


def _tune_space(search: SearchConfig) -> dict[str, Any]:
    def domain(option: Range) -> Any:
        if option.choices is not None:
            return tune.choice(list(option.choices))
        draw = tune.loguniform if option.log else tune.uniform
        return draw(option.low, option.high)

    return {path: domain(option) for path, option in search.space.items()}


def _restore(folder: Path, trainable: Any) -> tune.Tuner | None:
    """The interrupted or finished search of this name, or None. Its state is Tune's own pickle: it
    is read only from the study's folder, which holds what this user's earlier runs wrote."""
    if not tune.Tuner.can_restore(str(folder)):
        return None
    try:
        return tune.Tuner.restore(
            str(folder), trainable=trainable, resume_unfinished=True, resume_errored=True
        )
    except Exception as error:
        # A driver killed while it wrote leaves half a state. Every finished unit has its own record,
        # so beginning the search again costs suggestions, not computation.
        warnings.warn(
            f"the earlier search can't be continued ({error}); it begins again", stacklevel=2
        )
        shutil.rmtree(folder)
        return None

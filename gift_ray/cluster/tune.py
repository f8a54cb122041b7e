"""Runs the search of a study's options under Ray Tune.

A trial is one setting: a process that asks for no CPU and has the steps of its plan run, rung by rung. What
is suggested and when a trial is ended is decided in `gift_ray/search/sampler.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any, ClassVar

from ray import tune
from ray.tune.logger import JsonLoggerCallback
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from gift_ray import logs
from gift_ray.cluster.run import RayExecutor
from gift_ray.config.schema import StudyConfig
from gift_ray.records.storage import Storage, storage_of
from gift_ray.records.trials import Trial, earlier_trials, ledger_of
from gift_ray.search import costs
from gift_ray.search.sampler import Outcome, Search, evaluate
from gift_ray.study.load import configure
from gift_ray.study.plan import plan
from gift_ray.study.protocol import protocol_id
from gift_ray.study.step import Step

logger = logging.getLogger(__name__)

__all__ = ["Trial", "search"]


def search(
    config: StudyConfig, board: Any, on_trial: Callable[[Trial], None], fingerprint: str
) -> list[Trial]:
    """Run or continue the study's search; returns all trials, in the order they were suggested.

    Args:
        on_trial: called in the driver, once for each trial that ends in this run.
        fingerprint: names the search; another space or study is another search.

    Raises:
        ConfigError: nothing can be learnt from a folder of `search.warm_start`.
    """
    assert config.search is not None
    storage = storage_of(config.cluster, config.study_dir)

    def bring(trial: Trial) -> None:
        # The tracker, the gate and the report read here what a trial has written on another node.
        fetch_steps(plan(configure(config, trial.values)).steps(), storage)
        on_trial(trial)

    ledger, protocol = ledger_of(storage, fingerprint), protocol_id(config)
    for trial in ledger.ended():
        fetch_steps(plan(configure(config, trial.values)).steps(), storage)
    live = Search(
        config, ledger, fingerprint, protocol=protocol,
        shared_seconds=costs.seconds(plan(config).shared(), config.study_dir),
        earlier=earlier_trials(config.search.warm_start, config.search.space, protocol),
        on_trial=bring,
    )  # fmt: skip
    if live.remaining() > 0:
        _run(config, board, live, storage, fingerprint)
    return ledger.ended()


def fetch_steps(steps: Iterable[Step], storage: Storage) -> None:
    """Make the finished ones of these steps readable on this node."""
    for step in steps:
        storage.fetch_step(step.folder(storage.study_dir))


def _run(config: StudyConfig, board: Any, live: Search, storage: Storage, fingerprint: str) -> None:
    assert config.search is not None
    _Searcher.live = _Scheduler.live = live
    # A search continues from its ledger and not from Tune's own state, which is deleted.
    name = f"search-{fingerprint[:16]}"
    storage.delete(storage.study_dir / "tune" / name)
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(_trial, config=config, board=board, storage=storage),
            # One byte of memory: the steps of a trial occupy the cluster, not the trial.
            tune.PlacementGroupFactory([{"memory": 1}]),
        ),
        tune_config=tune.TuneConfig(
            search_alg=_Searcher(),
            scheduler=_Scheduler(),
            num_samples=live.remaining(),
            # The next trial uses the process again, which has imported what it needs.
            reuse_actors=True,
            max_concurrent_trials=config.search.max_concurrent_trials,
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=storage.path("tune"),
            storage_filesystem=storage.filesystem,
            failure_config=tune.FailureConfig(max_failures=config.cluster.max_failures),
            # The only one of Tune's loggers that is needed: its results are read from it.
            callbacks=[JsonLoggerCallback()],
            verbose=0,
        ),
    )
    for error in tuner.fit().errors:
        raise error


def _trial(setting: dict[str, Any], *, config: StudyConfig, board: Any, storage: Storage) -> None:
    """Run one setting from start to end, in a process of its own.

    Only this thread reports to Tune. Tune stops a trial between two rungs, when none of its steps is running.
    """
    here = storage.on_node()
    logs.of_worker(here.study_dir)
    logger.info("Trial %s begins with %s.", setting["number"], setting["values"])
    config = config.model_copy(update={"output_dir": str(here.study_dir.parent)})
    fetch_steps(plan(config).shared(), here)
    outcomes = evaluate(
        config,
        setting["values"],
        RayExecutor(here.study_dir, config.cluster, board).run,
    )
    for outcome in outcomes:
        logger.info(
            "Trial %s has passed rung %d of %d.", setting["number"], outcome.rung, outcome.of
        )
        # In a list, since Tune flattens nested dictionaries.
        tune.report({"number": setting["number"], "outcome": [asdict(outcome)]})


class _Searcher(Searcher):
    """The search as Tune's searcher.

    Tune pickles its searcher and scheduler; the search belongs to the running driver, and is therefore kept
    on the class.
    """

    live: ClassVar[Search]

    def set_search_properties(self, *_: Any, **__: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> Any:
        trial = _Searcher.live.next()
        if trial is None:
            return Searcher.FINISHED
        return {"number": trial.number, "values": trial.values}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        # Without a result the cluster has failed, and the next run begins the trial again.
        if result and "outcome" in result:
            _Searcher.live.end(result["number"], Outcome(**result["outcome"][0]))

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the ledger is written whenever a trial changes."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing, as nothing was saved."""


class _Scheduler(FIFOScheduler):
    """Stops trials that can no longer win."""

    live: ClassVar[Search]

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        outcome = Outcome(**result["outcome"][0])
        hopeless = _Scheduler.live.hopeless(result["number"], outcome)
        return str(FIFOScheduler.STOP if hopeless else FIFOScheduler.CONTINUE)

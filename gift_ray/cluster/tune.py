"""The search of a study's options under Ray Tune: a trial is one setting, a light driver that runs its
plan's steps rung by rung. What is suggested and what is pruned is `gift_ray/search/sampler.py`'s.
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
from gift_ray.cluster.run import run_steps
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
        # What a trial left on its node is read here: by the tracker, the gate, the report.
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
    """Make those that are finished readable on this node."""
    for step in steps:
        storage.fetch_step(step.folder(storage.study_dir))


def _run(config: StudyConfig, board: Any, live: Search, storage: Storage, fingerprint: str) -> None:
    assert config.search is not None
    _Searcher.live = _Scheduler.live = live
    # Tune's own state is nothing that a search continues from: that is the ledger.
    name = f"search-{fingerprint[:16]}"
    storage.delete(storage.study_dir / "tune" / name)
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(_trial, config=config, board=board, storage=storage),
            # Asks for next to nothing: units, not trials, occupy the cluster.
            tune.PlacementGroupFactory([{"memory": 1}]),
        ),
        tune_config=tune.TuneConfig(
            search_alg=_Searcher(),
            scheduler=_Scheduler(),
            num_samples=live.remaining(),
            # A trial's process outlives it: the next trial needs the same imports.
            reuse_actors=True,
            max_concurrent_trials=config.search.max_concurrent_trials,
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=storage.path("tune"),
            storage_filesystem=storage.filesystem,
            failure_config=tune.FailureConfig(max_failures=config.cluster.max_failures),
            # Of Tune's own loggers only the one that its results are read back from.
            callbacks=[JsonLoggerCallback()],
            verbose=0,
        ),
    )
    for error in tuner.fit().errors:
        raise error


def _trial(setting: dict[str, Any], *, config: StudyConfig, board: Any, storage: Storage) -> None:
    """One setting, start to end, in a process of its own. Only this thread reports to Tune; between
    rungs nothing of it runs, so that a trial that is stopped leaves nothing behind."""
    here = storage.on_node()
    logs.of_worker(here.study_dir)
    logger.info("Trial %s begins with %s.", setting["number"], setting["values"])
    config = config.model_copy(update={"output_dir": str(here.study_dir.parent)})
    fetch_steps(plan(config).shared(), here)
    outcomes = evaluate(
        config,
        setting["values"],
        lambda steps: run_steps(steps, here.study_dir, config.cluster, board),
    )
    for outcome in outcomes:
        logger.info(
            "Trial %s has passed rung %d of %d.", setting["number"], outcome.rung, outcome.of
        )
        # In a list: Tune would take nested dictionaries apart.
        tune.report({"number": setting["number"], "outcome": [asdict(outcome)]})


class _Searcher(Searcher):
    """Tune's view of the search. Tune pickles its searcher and scheduler; the search itself belongs to
    the running driver, so it is kept on the class."""

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
        # Without a result it was the cluster that failed: the trial is begun again by the next run.
        if result and "outcome" in result:
            _Searcher.live.end(result["number"], Outcome(**result["outcome"][0]))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is written as things happen."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing was saved."""


class _Scheduler(FIFOScheduler):
    """Stops trials that are hopeless."""

    live: ClassVar[Search]

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        outcome = Outcome(**result["outcome"][0])
        hopeless = _Scheduler.live.hopeless(result["number"], outcome)
        return FIFOScheduler.STOP if hopeless else FIFOScheduler.CONTINUE

"""A search under Tune on a real Ray cluster whose driver is killed while a trial runs: in the end the same
trials as a plain loop's that nobody disturbed, and nothing that was finished is computed again. (Drivers
that are killed before: test_chaos.py.)"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from tiny import make_encoders, tiny_study

from gift_ray.cluster import ENVIRONMENT, start_with
from gift_ray.config.schema import ModelConfig, StudyConfig
from gift_ray.records.storage import Storage
from gift_ray.records.trials import Ledger, Trial, ledger_of
from gift_ray.search.sampler import Search, evaluate
from gift_ray.study.execute import execute
from gift_ray.study.plan import plan
from gift_ray.study.step import closure

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# What jobs/sweep.py does between its session and its leaderboard, less MLflow.
DRIVER = """
import sys, ray
from gift_ray import plugins
from gift_ray.cluster import ENVIRONMENT
from gift_ray.cluster.run import RayExecutor
from gift_ray.cluster.tune import search
from gift_ray.config.schema import StudyConfig
from gift_ray.study.plan import plan

config = StudyConfig.model_validate_json(open(sys.argv[1]).read(), context={"check": plugins.check})
ray.init(address=sys.argv[2], log_to_driver=False, runtime_env={"env_vars": ENVIRONMENT})
executor = RayExecutor(config.study_dir, config.cluster)
executor.run(plan(config).shared())
search(config, executor.board, lambda trial: None, "f" * 64)
print("computed", sum(event.state == "done" for event in executor.events(0)))
"""


@pytest.fixture(scope="module")
def address():
    start_with(os.environ)
    context = ray.init(
        address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error",
        runtime_env={"env_vars": ENVIRONMENT},
    )  # fmt: skip
    yield context.address_info["gcs_address"]
    ray.shutdown()


@pytest.fixture
def config(tiny_config: ModelConfig, tmp_path: Path) -> StudyConfig:
    return tiny_study(
        name="killed",
        output_dir=str(tmp_path / "cluster"),
        model=tiny_config.model_dump(),
        attacks=[
            {
                "name": "dreambooth",
                "max_train_steps": steps,
                "learning_rate": 3e-3,
                "num_evaluations": 5,
            }
            for steps in (8, 9)
        ],
        evaluation={
            "metrics": [{"name": "clip_text"}, {"name": "clip_image"}],
            "encoders": make_encoders(tmp_path / "encoders"),
        },
        scoring={"judges": ["clip_image"], "least_auc": 0, "least_rise": 0, "min_retention": 0.0},
        search={
            "num_samples": 3,
            "pruner": "bound",
            "space": {"defense.beta": {"low": 0.01, "high": 1.0, "log": True}},
        },
        cluster={"under_train": []},
    )


def records(config: StudyConfig) -> dict[str, int]:
    """Finished steps, and when each was written."""
    found = (config.study_dir / "steps").glob("[a-z]*/record.json")
    return {path.parent.name: path.stat().st_mtime_ns for path in found}


def undisturbed(config: StudyConfig) -> list[Trial]:
    """The whole search in this process, one step after the other."""

    def run(steps) -> None:
        for step in closure(steps):
            execute(step, config.study_dir)

    run(plan(config).shared())
    ledger = Ledger(config.study_dir / "search")
    search = Search(config, ledger, "f" * 64)
    while trial := search.next():
        for outcome in evaluate(config, trial.values, run):
            if search.hopeless(trial.number, outcome):
                break
        search.end(trial.number, outcome)
    return ledger.ended()


def test_a_killed_driver_leaves_the_trials_of_an_undisturbed_search(
    address, config, tmp_path, capsys
) -> None:
    expected = undisturbed(config.model_copy(update={"output_dir": str(tmp_path / "plain")}))
    study = tmp_path / "study.json"
    study.write_text(config.model_dump_json())

    def start() -> subprocess.Popen:
        command = [sys.executable, "-c", DRIVER, str(study), address]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    # What all trials share is done, and the first trial is under way.
    shared = len(closure(plan(config).shared()))
    driver = start()
    while len(records(config)) < shared + 2:
        assert driver.poll() is None, "the driver ended before it could be killed"
        time.sleep(0.02)
    driver.kill()
    driver.wait()

    before = records(config)
    driver = start()
    said, _ = driver.communicate(timeout=600)
    assert driver.returncode == 0
    after = records(config)
    assert {name: after[name] for name in before} == before
    assert f"computed {len(after) - len(before)}\n" in said
    found = ledger_of(Storage(config.study_dir), "f" * 64).ended()
    assert [strip(trial) for trial in found] == [strip(trial) for trial in expected]
    assert set(after) == set(
        records(config.model_copy(update={"output_dir": str(tmp_path / "plain")}))
    )


def strip(trial: Trial) -> Trial:
    """Less what no two runs share."""
    return replace(trial, seconds=0.0, protocol="")

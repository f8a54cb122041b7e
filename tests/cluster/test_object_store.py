"""A cluster whose nodes share no disk, only an S3 server: the same results, bit for bit, and a node that
is lost takes nothing with it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
import ray
from nodes import add_worker, start_cluster
from s3 import start_s3
from tiny import make_encoders, tiny_study

from gift_ray.cluster.run import RayExecutor
from gift_ray.cluster.session import session
from gift_ray.cluster.tune import search
from gift_ray.config.running import ClusterConfig
from gift_ray.config.schema import ModelConfig, StudyConfig
from gift_ray.errors import ConfigError
from gift_ray.records.record import is_done, load_state, read_record, save_state
from gift_ray.records.storage import storage_of
from gift_ray.study.execute import execute
from gift_ray.study.load import configure
from gift_ray.study.plan import plan
from gift_ray.study.step import Step, closure

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with start_s3() as started:
        yield started


@pytest.fixture(scope="module")
def nodes(url, tmp_path_factory) -> Iterator[list[Path]]:
    """The disks of two nodes; the driver, on the head, has another one."""
    disks = [tmp_path_factory.mktemp(f"node{i}") for i in range(2)]
    with start_cluster(num_cpus=0) as started, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", started.address)
        for disk in disks:
            add_worker(started, GIFT_RAY_HOME=str(disk))
        yield disks


@pytest.fixture
def config(tiny_config: ModelConfig, url: str, tmp_path: Path, tmp_path_factory) -> StudyConfig:
    return tiny_study(
        name=tmp_path.name,
        output_dir=str(tmp_path / "driver"),
        model=tiny_config.model_dump(),
        attacks=[{"name": "dreambooth", "max_train_steps": 8, "learning_rate": 3e-3}],
        evaluation={
            "metrics": [{"name": "clip_text"}, {"name": "clip_image"}],
            "encoders": make_encoders(tmp_path_factory.getbasetemp() / "encoders"),
        },
        scoring={"judges": ["clip_image"], "least_auc": 0, "least_rise": 0, "min_retention": 0.0},
        cluster={"storage_path": url, "under_train": [], "checkpoint_every": 10},
        search={"space": {"defense.beta": {"low": 0.1, "high": 0.9}}, "num_samples": 2},
    )


def files(steps: list[Step], study_dir: Path) -> dict[str, dict[str, str]]:
    """What each step left, verified."""
    return {step.name: read_record(step.folder(study_dir)).files for step in steps}


def test_a_study_is_the_same_as_on_one_disk(nodes, config, tmp_path) -> None:
    steps = plan(config).steps()
    cluster = config.cluster.model_copy(update={"under_train": ("immunize",)})
    with session(cluster, config.study_dir):
        RayExecutor(config.study_dir, cluster).run(steps)
    for step in steps:
        execute(step, tmp_path / "plain")
    assert files(steps, config.study_dir) == files(steps, tmp_path / "plain")

    # Each node holds what it has done and read, and none of them all of it.
    caches = [disk / "cache" / config.name / "steps" for disk in nodes]
    held = [{p.name for p in cache.iterdir()} for cache in caches]
    assert held[0] | held[1] == {step.name for step in steps}
    assert held[0] != held[1]
    for cache in caches:
        for folder in cache.iterdir():
            read_record(folder)
    # Train's checkpoints have served.
    assert not list((config.study_dir / "train").glob("*"))


def test_a_lost_node_takes_no_checkpoint_with_it(nodes, config, url, tmp_path) -> None:
    # Long enough to be lost while it trains.
    config = configure(config, {"defense.max_train_steps": 200})
    cluster = config.cluster
    (arm,) = plan(config).defended
    step = arm.immunize
    checkpoint = step.checkpoint(config.study_dir)
    with start_cluster(num_cpus=0) as own, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", own.address)
        lost = add_worker(own, GIFT_RAY_HOME=str(tmp_path / "lost"))
        with (
            session(cluster, config.study_dir),
            ThreadPoolExecutor(max_workers=1) as pool,
        ):
            executor = RayExecutor(config.study_dir, cluster)
            ended = pool.submit(executor.run, [step])
            storage = storage_of(cluster, config.study_dir)
            deadline = time.monotonic() + 300
            while not checkpoint.exists():
                assert time.monotonic() < deadline, "no checkpoint was sent"
                assert not ended.done(), "it ended before its node could be lost"
                storage.fetch(checkpoint)
            own.remove_node(lost, allow_graceful=False)
            shutil.rmtree(tmp_path / "lost")
            # Whoever continues from what is stored carries this mark to the end.
            storage.fetch(checkpoint)
            saved = load_state(checkpoint)
            saved["rows"][0]["mark"] = 1.0
            save_state(checkpoint, saved)
            storage.send(checkpoint)
            add_worker(own, GIFT_RAY_HOME=str(tmp_path / "other"))
            ended.result(timeout=600)
        other = tmp_path / "other" / "cache" / config.name
        assert is_done(step.folder(other)), "it did not move to the other node"
        checkpoint.unlink()
        storage.fetch(checkpoint)
        assert not checkpoint.exists(), "a finished step needs no checkpoint"
    log = pd.read_parquet(step.folder(config.study_dir) / "training.parquet")
    assert log["mark"].sum() == 1.0, "it did not continue from the checkpoint of the lost node"
    for needed in closure([step]):
        execute(needed, tmp_path / "plain")
    (here,), (plain,) = (
        files([step], folder).values() for folder in (config.study_dir, tmp_path / "plain")
    )
    assert here["unet.safetensors"] == plain["unet.safetensors"]
    assert log.drop(columns="mark").equals(
        pd.read_parquet(step.folder(tmp_path / "plain") / "training.parquet")
    )


def test_a_search_outlives_its_driver_and_the_drivers_disk(nodes, config) -> None:
    with session(config.cluster, config.study_dir):
        executor = RayExecutor(config.study_dir, config.cluster)
        executor.run(plan(config).shared())
        first = search(config, executor.board, lambda trial: None, "f" * 64)
    assert [trial.state for trial in first] == ["complete", "complete"]

    shutil.rmtree(config.study_dir)
    with session(config.cluster, config.study_dir):
        executor = RayExecutor(config.study_dir, config.cluster)
        executor.run(plan(config).shared())
        reported: list[object] = []
        again = search(config, executor.board, reported.append, "f" * 64)
        states = {event.state for event in executor.events(0)}
    assert again == first
    assert reported == []
    assert states == {"started", "reused"}
    # What the trials left is here again, for the gate and the report.
    for trial in again:
        files(plan(configure(config, trial.values)).steps(), config.study_dir)


def test_a_store_that_nobody_reaches_is_told_before_a_unit_starts(nodes, config) -> None:
    url = "s3://gift/runs?scheme=http&endpoint_override=127.0.0.1:9"
    cluster = ClusterConfig(storage_path=url)
    with (
        pytest.raises(ConfigError, match=r"^cluster.storage_path: s3://gift/runs"),
        session(cluster, config.study_dir),
    ):
        raise AssertionError("a session began")
    assert not ray.is_initialized()

"""A real MLflow store and registry: written once, closed properly, champions only by better scores."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from mlflow import MlflowClient
from PIL import Image
from tiny import tiny_study

from gift_ray.config.schema import StudyConfig
from gift_ray.errors import ClusterFailed, ConfigError
from gift_ray.tracking.mlflow_tracker import PARENT, TRIAL, MlflowTracker

pytestmark = pytest.mark.timeout(300)


def study(folder: Path, tiny_config, **tracking: str) -> StudyConfig:
    return tiny_study(
        name="tracked", output_dir=str(folder), model=tiny_config.model_dump(),
        defense={"name": "none"}, tracking=tracking,
    )  # fmt: skip


@pytest.fixture(scope="module")
def tracker(tmp_path_factory, tiny_config) -> MlflowTracker:
    return MlflowTracker(study(tmp_path_factory.mktemp("store"), tiny_config), "f1")


def test_link_names_the_run_and_keeps_the_password(tracker: MlflowTracker, monkeypatch) -> None:
    place = f"/#/experiments/{tracker.experiment_id}/runs/abc"
    assert tracker.link("abc") == f"http://127.0.0.1:5000{place}"
    monkeypatch.setattr(tracker, "uri", "https://me:secret@tracking.example:8080/mlflow/")
    assert tracker.link("abc") == f"https://tracking.example:8080/mlflow{place}"


def children(tracker: MlflowTracker):
    query = f"tags.`{PARENT}` = '{tracker.run_id}'"
    return tracker.client.search_runs([tracker.experiment_id], query)


def run_of(tracker: MlflowTracker, trial_id: str) -> str:
    (run,) = [run for run in children(tracker) if run.data.tags[TRIAL] == trial_id]
    return run.info.run_id


def test_trial_is_written_once_with_its_curves(tracker):
    curves = {"dreambooth/cat/dino": {0: 0.1, 10: 0.5}}
    first = tracker.trial("t1", {"defense.beta": 0.3}, {"objective": 0.5}, curves, {"reason": ""})
    again = tracker.trial("t1", {"defense.beta": 0.3}, {"objective": 0.5}, curves, {"reason": ""})
    assert first == again
    assert len(children(tracker)) == 1
    run = run_of(tracker, "t1")
    assert first == tracker.link(run)
    history = tracker.client.get_metric_history(run, "dreambooth/cat/dino")
    assert sorted((p.step, p.value) for p in history) == [(0, 0.1), (10, 0.5)]


def test_trial_whose_writer_was_killed_is_written_anew(tracker):
    tags = {PARENT: tracker.run_id, "gift_ray.trial": "t2"}
    half = tracker.client.create_run(tracker.experiment_id, tags=tags).info.run_id
    tracker.client.log_metric(half, "objective", 0.1)
    tracker.trial("t2", {}, {"objective": 0.2}, {}, {})
    whole = run_of(tracker, "t2")
    assert whole != half
    assert tracker.client.get_run(whole).data.metrics["objective"] == 0.2


def test_images_of_a_trial_are_a_series_along_the_attack(tracker):
    images = [("dreambooth/cat", k, Image.new("RGB", (8, 8), (k, 0, 0))) for k in (0, 10)]
    tracker.trial("t4", {}, {}, {}, {}, images)
    run_id = run_of(tracker, "t4")
    logged = [file.path for file in tracker.client.list_artifacts(run_id, "images")]
    steps = {re.search(r"dreambooth.cat\Wstep\W(\d+)\W", path)[1] for path in logged}
    assert steps == {"0", "10"}, logged


def test_the_undefended_curves_are_written_once(tracker):
    for _ in range(2):
        tracker.undefended({"dreambooth/cat/dino": {0: 0.1, 10: 0.7}}, [])
    history = tracker.client.get_metric_history(tracker.run_id, "dreambooth/cat/dino")
    assert sorted((p.step, p.value) for p in history) == [(0, 0.1), (10, 0.7)]


def test_not_a_number_is_left_out(tracker):
    tracker.trial("t3", {}, {"objective": -1.0, "resistance": float("nan")}, {}, {})
    run_id = run_of(tracker, "t3")
    assert set(tracker.client.get_run(run_id).data.metrics) == {"objective"}


def test_running_again_continues_the_same_parent_and_close_reaps(tracker):
    same = MlflowTracker(tracker.config, "f1")
    assert same.run_id == tracker.run_id
    assert MlflowTracker(tracker.config, "f2").run_id != tracker.run_id
    orphan = tracker.client.create_run(tracker.experiment_id, tags={PARENT: tracker.run_id})
    tracker.close("FINISHED")
    assert tracker.client.get_run(orphan.info.run_id).info.status == "KILLED"
    assert tracker.client.get_run(tracker.run_id).info.status == "FINISHED"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConfigError("no"), "FAILED"),
        (ZeroDivisionError(), "FAILED"),
        (KeyboardInterrupt(), "KILLED"),
    ],
)
def test_a_job_that_does_not_come_to_its_end_leaves_no_running_run(
    tracker: MlflowTracker, error: BaseException, status: str
) -> None:
    tracker.client.update_run(tracker.run_id, status="RUNNING")
    with pytest.raises(type(error)), tracker:
        raise error
    assert tracker.client.get_run(tracker.run_id).info.status == status


def test_a_store_that_gives_out_in_the_middle_is_one_line(
    tracker: MlflowTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = MlflowClient("http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(tracker, "client", gone)
    with pytest.raises(ClusterFailed, match="run the same command again"):
        tracker.summary({"a": 1.0}, {}, [])
    # What a job died of is told, even where the tracker has given out too.
    with pytest.raises(ZeroDivisionError), tracker:
        raise ZeroDivisionError


def test_unreachable_server_is_one_line(tmp_path, tiny_config):
    config = study(tmp_path, tiny_config, tracking_uri="http://127.0.0.1:9")
    with pytest.raises(ConfigError, match="tracking_uri"):
        MlflowTracker(config, "f")


def test_a_study_that_an_earlier_version_tracked_goes_on(tracker: MlflowTracker) -> None:
    """The names of our tags are in people's stores: whoever renames one loses what is there."""
    tags = {"gift_ray.study": "f-of-old"}
    parent = tracker.client.create_run(tracker.experiment_id, tags=tags).info.run_id
    assert MlflowTracker(tracker.config, "f-of-old").run_id == parent

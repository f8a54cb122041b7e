"""A study in MLflow: one experiment, one parent run for the job, one child run for each trial."""

from __future__ import annotations

import functools
import logging
import math
import os
import shlex
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar
from urllib.parse import urlsplit

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag

from gift_ray.config.schema import StudyConfig
from gift_ray.errors import ConfigError, GiftError
from gift_ray.tracking.registry import register
from gift_ray.tracking.store import answering, require_reachable, sqlite_uri
from gift_ray.tracking.tracker import Curves, Pictures, Registered

PARENT = "mlflow.parentRunId"
# MLflow would show a progress bar for each file that it copies.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
STUDY = "gift_ray.study"
TRIAL = "gift_ray.trial"
UNDEFENDED_TAG = "gift_ray.undefended"
LOCAL_UI = "http://127.0.0.1:5000"
P = ParamSpec("P")
R = TypeVar("R")


def tracking_uri(config: StudyConfig) -> str:
    """Where the study is tracked: the configured server, else an SQLite file in its folder."""
    return config.tracking.tracking_uri or sqlite_uri(config.study_dir / "mlflow.db")


def _answered(
    method: Callable[Concatenate[MlflowTracker, P], R],
) -> Callable[Concatenate[MlflowTracker, P], R]:
    @functools.wraps(method)
    def call(self: MlflowTracker, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with answering(self.uri):
            return method(self, *args, **kwargs)

    return call


class MlflowTracker:
    """Writes one study to MLflow. Only the driver has one, since a new SQLite file allows a single writer.

    Args:
        fingerprint: of the study; running the same study again continues its parent run.

    Raises:
        ConfigError: what should keep the runs does not answer, can't be written, or is not MLflow's.

    Every other method raises ClusterFailed if it gives out later.
    """

    def __init__(self, config: StudyConfig, fingerprint: str) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        self.config = config
        self.uri = tracking_uri(config)
        require_reachable(self.uri)
        mlflow.set_tracking_uri(self.uri)
        with answering(self.uri, ConfigError):
            self.client = MlflowClient(self.uri)
            self.experiment_id = self._experiment()
            self.run_id = self._parent(fingerprint)

    @_answered
    def trial(
        self,
        trial_id: str,
        values: Mapping[str, Any],
        metrics: Mapping[str, float],
        curves: Curves,
        tags: Mapping[str, str],
        images: Pictures = (),
    ) -> str:
        """Write one finished trial as a child run, once; returns the page that shows it."""
        return self.link(self._written(trial_id, values, metrics, curves, tags, images))

    def _written(
        self, trial_id: str, values: Mapping[str, Any], metrics: Mapping[str, float],
        curves: Curves, tags: Mapping[str, str], images: Pictures,
    ) -> str:  # fmt: skip
        """The id of a trial's run, which is written if it isn't whole."""
        found = self._find(f"tags.`{TRIAL}` = '{trial_id}' and tags.`{PARENT}` = '{self.run_id}'")
        if found and found.info.status == "FINISHED":
            return str(found.info.run_id)
        if found:
            # The process that wrote it was killed: its points would be doubled, so the run is written again.
            self.client.delete_run(found.info.run_id)
        name = f"trial-{trial_id}"
        start = {PARENT: self.run_id, TRIAL: trial_id, **tags}
        run = self.client.create_run(self.experiment_id, run_name=name, tags=start)
        self._log(run.info.run_id, values, metrics, curves)
        self._log_images(run.info.run_id, images)
        self.client.set_terminated(run.info.run_id, "FINISHED")
        return str(run.info.run_id)

    @_answered
    def undefended(
        self,
        curves: Curves,
        images: Pictures,
    ) -> None:
        """Write the curves that all trials are compared with to the parent run, once."""
        if UNDEFENDED_TAG in self.client.get_run(self.run_id).data.tags:
            return
        self._log_images(self.run_id, images)
        self._log(self.run_id, {}, {}, curves)
        self.client.set_tag(self.run_id, UNDEFENDED_TAG, "logged")

    def link(self, run_id: str) -> str:
        """Where MLflow's pages show a run: on the server, or under `mlflow ui` at its default port."""
        parts = urlsplit(self.uri if self.uri.startswith("http") else LOCAL_UI)
        # Readers of a report must not learn the password of the server.
        host = parts.netloc.rpartition("@")[2]
        place = f"{parts.scheme}://{host}{parts.path.rstrip('/')}"
        return f"{place}/#/experiments/{self.experiment_id}/runs/{run_id}"

    @_answered
    def summary(
        self, metrics: Mapping[str, float], tags: Mapping[str, str], files: list[Path]
    ) -> None:
        """Write the study's outcome to the parent run."""
        self._log(self.run_id, {}, metrics, {})
        for key, value in tags.items():
            self.client.set_tag(self.run_id, key, value)
        for file in files:
            self.client.log_artifact(self.run_id, str(file))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        """Mark the parent run as FAILED when the block raises, and as KILLED when it is interrupted."""
        if error is None:
            self.close("FINISHED")
            return
        # The error of the job is the one that is shown, even if the tracker fails as well.
        with suppress(GiftError):
            self.close("FAILED" if isinstance(error, Exception) else "KILLED")

    def register(
        self, name: str, folder: Path, objective: float, protocol: str, tags: Mapping[str, str]
    ) -> Registered:
        """Register a released folder: `gift_ray/tracking/registry.py` says how."""
        return register(self, name, folder, objective, protocol, tags)

    def how_to_look(self) -> str:
        return f"mlflow ui --backend-store-uri {shlex.quote(self.uri)}"

    @_answered
    def close(self, status: str) -> None:
        """End the parent run; children that still run have lost their writer and are closed too."""
        query = f"tags.`{PARENT}` = '{self.run_id}' and attributes.status = 'RUNNING'"
        for run in self.client.search_runs([self.experiment_id], query):
            self.client.set_terminated(run.info.run_id, "KILLED")
        self.client.set_terminated(self.run_id, status)

    def _log(
        self,
        run_id: str,
        values: Mapping[str, Any],
        metrics: Mapping[str, float],
        curves: Mapping[str, Mapping[int, float]],
    ) -> None:
        now = int(time.time() * 1000)
        points = [Metric(name, value, now, 0) for name, value in metrics.items()]
        points += [
            Metric(name, value, now, step)
            for name, curve in curves.items()
            for step, value in curve.items()
        ]
        points = [p for p in points if math.isfinite(p.value)]
        params = [Param(name, str(value)) for name, value in values.items()]
        self.client.log_batch(run_id, params=params, tags=[RunTag("gift_ray.version", "1")])
        for start in range(0, len(points), 1000):
            self.client.log_batch(run_id, metrics=points[start : start + 1000])

    def _log_images(self, run_id: str, images: Pictures) -> None:
        for name, step, image in images:
            self.client.log_image(run_id, image, key=name, step=step)

    def _experiment(self) -> str:
        name = self.config.tracking.experiment_name or self.config.name
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        # Beside the SQLite file; a server keeps artifacts where it was told to.
        local = self.config.tracking.tracking_uri is None
        place = (self.config.study_dir / "mlartifacts").as_uri() if local else None
        return str(self.client.create_experiment(name, artifact_location=place))

    def _parent(self, fingerprint: str) -> str:
        found = self._find(f"tags.`{STUDY}` = '{fingerprint}'")
        if found:
            self.client.update_run(found.info.run_id, status="RUNNING")
            return str(found.info.run_id)
        tags = {STUDY: fingerprint}
        run = self.client.create_run(self.experiment_id, run_name=self.config.name, tags=tags)
        return str(run.info.run_id)

    def _find(self, query: str) -> Run | None:
        return next(iter(self.client.search_runs([self.experiment_id], query, max_results=1)), None)

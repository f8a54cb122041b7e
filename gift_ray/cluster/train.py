"""Runs a step that trains under Ray Train, which gives it workers, keeps its checkpoints and retries it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from gift_ray import logs
from gift_ray.cluster.preemption import notice_in_actor
from gift_ray.config.running import ClusterConfig
from gift_ray.errors import ClusterFailed, GiftError
from gift_ray.records.record import load_state, save_state
from gift_ray.records.storage import Storage
from gift_ray.study.attempt import assist, attempt
from gift_ray.study.journal import Journal
from gift_ray.study.step import Step
from gift_ray.training import parallel

STATE = "state.safetensors"


class TrainJournal(Journal):
    """Checkpoints that Ray Train keeps, and gives back after a worker or node was lost."""

    def __init__(self, every: int) -> None:
        super().__init__(every)
        # Several workers would have to save and end together; they begin again from their last checkpoint
        # instead.
        if ray.train.get_context().get_world_size() == 1:
            self.leaving = notice_in_actor()

    def write(self, step: int, checkpoint: dict[str, Any]) -> None:
        # Train waits until every worker has reported. All hold the same state, so only the first one writes
        # it.
        if ray.train.get_context().get_world_rank() > 0:
            ray.train.report({"step": step})
            return
        with tempfile.TemporaryDirectory() as folder:
            save_state(Path(folder) / STATE, checkpoint)
            ray.train.report({"step": step}, checkpoint=Checkpoint.from_directory(folder))

    def read(self) -> dict[str, Any] | None:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return None
        with checkpoint.as_directory() as folder:
            return load_state(Path(folder) / STATE)


def train(step: Step, storage: Storage, cluster: ClusterConfig) -> None:
    """Run one training step to its record; blocks.

    The run's name is the step's, so that a rerun finds its own checkpoints and never another's.

    Raises:
        UnitFailed: the unit's own failure (non-finite, out of GPU memory); never retried.
        ClusterFailed: storage is full, or the worker was lost more often than `max_failures`.
    """
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={
            "step": step,
            "storage": storage,
            "every": cluster.checkpoint_every,
        },
        scaling_config=ScalingConfig(
            num_workers=cluster.workers_per_immunization if step.data_parallel else 1,
            use_gpu=cluster.gpus_per_unit > 0,
            resources_per_worker={"CPU": cluster.cpus_per_unit}
            | ({"GPU": cluster.gpus_per_unit} if cluster.gpus_per_unit else {}),
        ),
        # NCCL does not start where Ray was only told that there are GPUs, as tests do.
        torch_config=TorchConfig(backend="nccl" if torch.cuda.is_available() else "gloo"),
        run_config=RunConfig(
            name=step.name,
            storage_path=storage.path("train"),
            storage_filesystem=storage.filesystem,
            failure_config=FailureConfig(
                max_failures=cluster.max_failures, controller_failure_limit=cluster.max_failures
            ),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    )
    try:
        failed = trainer.fit().return_value
    except ray.train.WorkerGroupError as error:
        causes = list(error.worker_failures.values())
        if not all(isinstance(c, RayError) and not isinstance(c, RayTaskError) for c in causes):
            raise
        raise ClusterFailed(f"{step.label}: {lost(causes[0], cluster)}") from error
    if failed:
        raise failed
    storage.delete(storage.study_dir / "train" / step.name)


def _train_worker(settings: dict[str, Any]) -> GiftError | None:
    """What each worker does. Returns the error of a failure that a retry would not help, or None."""
    step, here = settings["step"], settings["storage"].on_node()
    logs.of_worker(here.study_dir)
    journal = TrainJournal(settings["every"])
    # The first worker looks whether the step is done, and only it writes the record.
    if parallel.agreed(here.fetch_step(step.folder(here.study_dir))):
        return None
    if ray.train.get_context().get_world_rank() > 0:
        return assist(step, here, journal)
    return attempt(step, here, journal)


def lost(error: Exception, cluster: ClusterConfig) -> str:
    """The reason, for people, why a step was given up after its workers were lost too often."""
    if isinstance(error, OutOfMemoryError):
        return (
            "its node ran out of memory again and again; raise cluster.cpus_per_unit, so that fewer "
            "units share a node, or lower train_batch_size"
        )
    reason = str(error).strip().splitlines()[0]
    return (
        f"its worker was lost {cluster.max_failures + 1} times (cluster.max_failures: "
        f"{cluster.max_failures}), at last by {type(error).__name__}: {reason}; run again to continue"
    )

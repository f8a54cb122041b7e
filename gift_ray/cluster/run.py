"""A plan's steps on the cluster: each as soon as its inputs are done, never more than fit.

Training steps run under Ray Train, everything else as Ray tasks, whose processes Ray keeps warm: the
models they loaded stay loaded. Steps travel as values and read their inputs from the study's storage;
no tensor is ever an argument.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from gift_ray.cluster.board import Clock
from gift_ray.cluster.preemption import notice
from gift_ray.cluster.session import slots
from gift_ray.cluster.train import attempt, lost, train
from gift_ray.config.running import ClusterConfig
from gift_ray.errors import ClusterFailed, GiftError, UnitFailed
from gift_ray.records.storage import Storage, storage_of
from gift_ray.study.journal import LocalJournal
from gift_ray.study.step import Step, closure

logger = logging.getLogger(__name__)


def run_steps(
    steps: Iterable[Step],
    study_dir: Path,
    cluster: ClusterConfig,
    board: Any,
    on_done: Callable[[Step], None] = lambda _: None,
    on_failed: Callable[[Step, UnitFailed], None] | None = None,
) -> None:
    """Run steps and whatever they need to their records; blocks. Finished ones are not run again.
    All of them lie in `study_dir` on this node then.

    Args:
        on_failed: told of a unit that failed for its own reason; the others go on, without those that
            need it. None: the first failure ends the run.

    Raises:
        UnitFailed: a unit failed, and nobody is told. What was running ends first.
        ClusterFailed: storage is full, or a unit lost its worker more often than `max_failures`.
    """
    waiting = {step.fingerprint: step for step in closure(steps)}
    done: set[str] = set()
    running: dict[Future[None], Step] = {}
    # Units queue here rather than on the cluster: a waiting Train run would already hold processes.
    pool = ThreadPoolExecutor(max_workers=slots(cluster))
    try:
        while waiting or running:
            for step in _ready(waiting, done):
                del waiting[step.fingerprint]
                running[pool.submit(_run, step, study_dir, cluster, board)] = step
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                step = running.pop(future)
                try:
                    future.result()
                except UnitFailed as error:
                    if on_failed is None:
                        raise
                    on_failed(step, error)
                    _drop_readers(waiting, step)
                    continue
                done.add(step.fingerprint)
                on_done(step)
    except Exception:
        pool.shutdown(wait=True, cancel_futures=True)
        raise
    finally:
        # An interrupt does not wait: what runs ends with the cluster connection.
        pool.shutdown(wait=False, cancel_futures=True)


def _ready(waiting: dict[str, Step], done: set[str]) -> list[Step]:
    return [
        step
        for step in waiting.values()
        if all(i.fingerprint in done for i in step.inputs.values())
    ]


def _drop_readers(waiting: dict[str, Step], failed: Step) -> None:
    """Forget the steps that can never run without `failed`."""
    for step in [s for s in waiting.values() if failed in closure([s])]:
        del waiting[step.fingerprint]


def _run(step: Step, study_dir: Path, cluster: ClusterConfig, board: Any) -> None:
    clock = Clock(board, step.label, step.kind)
    storage = storage_of(cluster, study_dir)
    if storage.fetch_step(step.folder(study_dir)):
        # Other nodes read it too, and whoever finished it may have been killed before it was sent.
        storage.send_step(step.folder(study_dir))
        clock.tell("reused")
        return
    logger.info("The step %r is handed to Ray.", step.label)
    try:
        if step.trains and step.kind in cluster.under_train:
            train(step, storage, cluster)
        else:
            _as_task(step, storage, cluster)
        storage.fetch_step(step.folder(study_dir))
    except Exception as error:
        clock.tell("failed", str(error))
        logger.info("The step %r has failed: %s", step.label, error)
        raise
    clock.tell("done")
    logger.info("Ray has run the step %r.", step.label)


def _as_task(step: Step, storage: Storage, cluster: ClusterConfig) -> None:
    """One Ray task. `DEFAULT` keeps it out of a Tune trial's own (empty) reservation."""
    remote = _unit.options(
        num_cpus=cluster.cpus_per_unit,
        num_gpus=cluster.gpus_per_unit,
        max_retries=cluster.max_failures,
        scheduling_strategy="DEFAULT",
        name=step.label,
    )
    try:
        failed = ray.get(remote.remote(step, storage, cluster.checkpoint_every))
    except RayTaskError:
        # An exception of ours keeps its traceback.
        raise
    except RayError as error:
        raise ClusterFailed(f"{step.label}: {lost(error, cluster)}") from error
    if failed:
        raise failed


# Processes that have done a GPU task are kept too: the models they loaded are the point.
@ray.remote(max_calls=0)
def _unit(step: Step, storage: Storage, checkpoint_every: int) -> GiftError | None:
    here = storage.on_node()
    if not step.trains:
        return attempt(step, here)
    journal = _StoredJournal(step.checkpoint(here.study_dir), checkpoint_every, here)
    with notice() as journal.leaving:
        failed = attempt(step, here, journal)
    if not failed:
        here.delete(journal.path)
    return failed


class _StoredJournal(LocalJournal):
    """Checkpoints that a retry finds on whatever node it runs."""

    def __init__(self, path: Path, every: int, storage: Storage) -> None:
        super().__init__(path, every)
        self.storage = storage

    def write(self, step: int, checkpoint: dict[str, Any]) -> None:
        super().write(step, checkpoint)
        self.storage.send(self.path)

    def read(self) -> dict[str, Any] | None:
        self.storage.fetch(self.path)
        return super().read()

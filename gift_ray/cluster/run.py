"""Runs the steps of a plan on the cluster: each as soon as its inputs are done, never more than fit at once.

Training steps run under Ray Train, all others as Ray tasks. Ray keeps the processes of tasks for the next
ones, and the models that they have loaded stay loaded. Steps are sent as small values and read their inputs
from the study's storage; no tensor is ever an argument.
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
    """Run steps, and the steps that they need, until all have records; blocks.

    Finished ones are not run again. Afterwards the folders of all of them are in `study_dir` on this node.

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
    # Steps wait here and not on the cluster, where a Train run that waits already holds processes.
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
        # After an interrupt nothing is waited for: running steps end when the connection to the cluster does.
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
        # Other nodes need it too, and the process that finished it may have been killed before it was sent.
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
    """Run a step as a Ray task.

    The strategy `DEFAULT` keeps it out of the reservation of a Tune trial, which holds no CPU.
    """
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
        # An exception in our own code: it keeps its traceback.
        raise
    except RayError as error:
        raise ClusterFailed(f"{step.label}: {lost(error, cluster)}") from error
    if failed:
        raise failed


# max_calls=0 keeps the process of a GPU task as well, with the models that it has loaded.
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

"""Runs the steps of a plan on the cluster: each as soon as its inputs are done, never more than fit at once.

Training steps run under Ray Train, all others as Ray tasks. Ray keeps the processes of tasks for the next
ones, and the models that they have loaded stay loaded. Steps are sent as small values and read their inputs
from the study's storage; no tensor is ever an argument.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from gift_ray import logs
from gift_ray.cluster.board import Clock, read_board, start_board
from gift_ray.cluster.preemption import notice
from gift_ray.cluster.session import session, slots
from gift_ray.cluster.train import lost, train
from gift_ray.config.running import ClusterConfig
from gift_ray.errors import ClusterFailed, GiftError
from gift_ray.records.storage import Storage, storage_of
from gift_ray.study.attempt import attempt, done_once
from gift_ray.study.executor import OnDone, OnFailed, run_in_order
from gift_ray.study.journal import LocalJournal
from gift_ray.study.step import Step

logger = logging.getLogger(__name__)


class RayExecutor:
    """An `Executor` on the cluster that this process is connected to.

    Args:
        study_dir: where the study lies on this node.
        board: what steps are doing is told there; None: a board of this driver's own.
    """

    def __init__(self, study_dir: Path, cluster: ClusterConfig, board: Any = None) -> None:
        self.study_dir, self.cluster = study_dir, cluster
        self.board = start_board() if board is None else board
        self.events = read_board(self.board)

    def run(
        self, steps: Iterable[Step], *,
        on_done: OnDone | None = None, on_failed: OnFailed | None = None,
    ) -> None:  # fmt: skip
        # Steps wait here and not on the cluster, where a Train run that waits already holds processes.
        pool = ThreadPoolExecutor(max_workers=slots(self.cluster))
        over = threading.Event()

        def start(step: Step) -> Future[None]:
            return pool.submit(self._run, step, over)

        try:
            run_in_order(steps, start, on_done, on_failed)
        except Exception:
            # What was running ends first; what waits for another run's step does not.
            over.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
        finally:
            # After an interrupt nothing is waited for: running steps end when the connection does.
            over.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def _run(self, step: Step, over: threading.Event) -> None:
        clock = Clock(self.board, step)
        storage = storage_of(self.cluster, self.study_dir)
        under_train = step.trains and step.kind in self.cluster.under_train
        run_on_ray = train if under_train else _as_task

        def work() -> None:
            logger.info("The step %r is handed to Ray.", step.label)
            run_on_ray(step, storage, self.cluster)
            logger.info("Ray has run the step %r.", step.label)

        try:
            done_here = done_once(step, storage, work, over.is_set)
        except Exception as error:
            clock.tell("failed", str(error))
            logger.info("The step %r has failed: %s", step.label, error)
            raise
        clock.tell("done" if done_here else "reused")


@contextmanager
def ray_executor(cluster: ClusterConfig, study_dir: Path) -> Iterator[RayExecutor]:
    """An executor on the job's cluster, on $RAY_ADDRESS, or on a local cluster that ends with the block.

    Raises:
        ConfigError: as `session` does.
    """
    with session(cluster, study_dir):
        yield RayExecutor(study_dir, cluster)


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
    logs.of_worker(here.study_dir)
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

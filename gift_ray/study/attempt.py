"""One attempt at a step: fetch the folders that it reads, do its work, send its own folder to storage.

A lock keeps two runs that need the same step from doing it twice.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors import SafetensorError

from gift_ray.errors import ClusterFailed, GiftError, UnitFailed, is_storage_full
from gift_ray.records.storage import Storage
from gift_ray.study.execute import execute, verified_inputs
from gift_ray.study.journal import Journal
from gift_ray.study.step import Step
from gift_ray.training import parallel


def done_once(
    step: Step, storage: Storage, work: Callable[[], None],
    cancelled: Callable[[], bool] = lambda: False,
) -> bool:  # fmt: skip
    """Do a step unless it is finished; returns whether it was done here.

    Another trial, or another job on the same study, that needs the same step meanwhile waits until it is
    done.

    Args:
        work: does the step, here or on another machine.
        cancelled: tells whether to stop waiting for another run.
    """
    folder = step.folder(storage.study_dir)
    if not storage.fetch_step(folder):
        with storage.lock(step.name, cancelled):
            if not storage.fetch_step(folder):
                work()
                storage.fetch_step(folder)
                return True
    # The process that finished the step may have been killed before it sent the folder, which other nodes
    # need.
    storage.send_step(folder)
    return False


def attempt(step: Step, storage: Storage, journal: Journal | None = None) -> GiftError | None:
    """Execute a step. Returns the error if it fails in a way that another attempt would not help."""

    def work() -> None:
        execute(step, storage.study_dir, journal=journal)
        storage.send_step(step.folder(storage.study_dir))

    return _tried(step, storage, work)


def assist(step: Step, storage: Storage, journal: Journal) -> GiftError | None:
    """Take part in the training of a step that another worker attempts; leaves no result.

    Errors are returned as by `attempt`.
    """

    def work() -> None:
        with TemporaryDirectory() as scratch:
            step.run(verified_inputs(step, storage.study_dir), Path(scratch), journal)

    return _tried(step, storage, work)


def _tried(step: Step, storage: Storage, work: Callable[[], None]) -> GiftError | None:
    try:
        for needed in step.inputs.values():
            storage.fetch_step(needed.folder(storage.study_dir))
        work()
    except GiftError as error:
        return type(error)(*(f"{step.label}: {line}" for line in error.mistakes))
    except torch.cuda.OutOfMemoryError:
        if parallel.workers()[1] > 1:
            # The other workers are waiting for this one's gradients, so that Ray Train has to end them.
            raise
        return UnitFailed(
            f"{step.label}: out of GPU memory; lower train_batch_size, or set "
            "model.gradient_checkpointing"
        )
    except (OSError, SafetensorError) as error:
        if not is_storage_full(error):
            raise
        return ClusterFailed(f"{step.label}: storage is full ({error}); make room, then run again")
    return None

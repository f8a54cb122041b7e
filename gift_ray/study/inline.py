"""Runs steps one after the other in this process, as for a debugger, a notebook, a test or a small study."""

from __future__ import annotations

import time
from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path

from gift_ray.errors import UnitFailed
from gift_ray.records.storage import Storage
from gift_ray.study.attempt import attempt, done_once
from gift_ray.study.event import Event
from gift_ray.study.executor import OnDone, OnFailed, run_in_order
from gift_ray.study.journal import LocalJournal
from gift_ray.study.step import Step


class InlineExecutor:
    """An `Executor` without a cluster.

    Args:
        study_dir: the study's folder, which holds the folders of the steps.
        checkpoint_every: training steps between checkpoints.
    """

    def __init__(self, study_dir: Path, checkpoint_every: int = 100) -> None:
        self.storage = Storage(study_dir)
        self.checkpoint_every = checkpoint_every
        self.told: list[Event] = []

    def run(
        self, steps: Iterable[Step], *,
        on_done: OnDone | None = None, on_failed: OnFailed | None = None,
    ) -> None:  # fmt: skip
        run_in_order(steps, self._start, on_done, on_failed)

    def events(self, seen: int) -> list[Event]:
        return self.told[seen:]

    def _start(self, step: Step) -> Future[None]:
        future: Future[None] = Future()
        started = time.monotonic()

        def tell(state: str, detail: str = "") -> None:
            seconds = time.monotonic() - started
            self.told.append(Event.of(step, state, seconds, detail))

        tell("started")
        try:
            done_here = done_once(step, self.storage, lambda: self._do(step))
        except UnitFailed as error:
            tell("failed", str(error))
            future.set_exception(error)
        else:
            tell("done" if done_here else "reused")
            future.set_result(None)
        return future

    def _do(self, step: Step) -> None:
        path = step.checkpoint(self.storage.study_dir)
        failed = attempt(step, self.storage, LocalJournal(path, self.checkpoint_every))
        if failed:
            raise failed

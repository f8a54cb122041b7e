"""Executors run the steps of a plan. This file holds their interface, and the order in which all run steps.

`InlineExecutor` (gift_ray/study/inline.py) runs them in this process, `RayExecutor` (gift_ray/cluster/run.py)
on a Ray cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Protocol

from gift_ray.errors import UnitFailed
from gift_ray.study.event import Event
from gift_ray.study.step import Step, closure

OnDone = Callable[[Step], None]
OnFailed = Callable[[Step, UnitFailed], None]


class Executor(Protocol):
    """Runs steps. tests/contracts/test_executors.py holds what all executors promise."""

    def run(
        self, steps: Iterable[Step], *,
        on_done: OnDone | None = None, on_failed: OnFailed | None = None,
    ) -> None:  # fmt: skip
        """Run steps, and the steps that they need, until all have records; blocks.

        Finished ones are not run again, and one that another run is doing is waited for. Afterwards the
        folders of all of them are in the study's folder.

        Args:
            on_done: called for each step that is finished, in this thread.
            on_failed: called for a step that failed for its own reason; the others go on, except those that
                need it. If None, the first failure ends the run.

        Raises:
            UnitFailed: a step failed, and `on_failed` is None.
            ClusterFailed: storage is full, or the cluster failed.
        """

    def events(self, seen: int) -> list[Event]:
        """The events of all steps so far, without the first `seen` ones."""


def run_in_order(
    steps: Iterable[Step], start: Callable[[Step], Future[None]],
    on_done: OnDone | None, on_failed: OnFailed | None,
) -> None:  # fmt: skip
    """Start each step as soon as its inputs are done, as `Executor.run` says.

    Args:
        start: begins a step, and returns a future that is done when the step is.
    """
    waiting = {step.fingerprint: step for step in closure(steps)}
    done: set[str] = set()
    running: dict[Future[None], Step] = {}
    while waiting or running:
        for step in _ready(waiting, done):
            future = start(waiting.pop(step.fingerprint))
            running[future] = step
            if future.done():
                break  # The step may have failed, or others may be ready now.
        if not running:
            labels = ", ".join(step.label for step in waiting.values())
            raise RuntimeError(f"nothing is running and no step is ready; waiting: {labels}")
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
            if on_done:
                on_done(step)


def _ready(waiting: dict[str, Step], done: set[str]) -> list[Step]:
    return [
        step
        for step in waiting.values()
        if all(i.fingerprint in done for i in step.inputs.values())
    ]


def _drop_readers(waiting: dict[str, Step], failed: Step) -> None:
    """Forget the steps that can never run without `failed`."""
    for step in list(waiting.values()):
        if any(needed.fingerprint == failed.fingerprint for needed in closure([step])):
            del waiting[step.fingerprint]

"""The board: an actor to which workers report what they begin and end, and which the driver reads.

Its process imports this file, so nothing heavy is imported here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import GetTimeoutError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from gift_ray.study.event import Event

if TYPE_CHECKING:
    from gift_ray.study.step import Step


class Board:
    """Collects events; readers ask for those they haven't seen."""

    def __init__(self) -> None:
        self._events: list[Event] = []

    def tell(self, event: Event) -> None:
        """Add an event."""
        self._events.append(event)

    def since(self, seen: int) -> list[Event]:
        """All events after the first `seen`."""
        return self._events[seen:]


def start_board() -> Any:
    """A board of this driver's own, on its node; it ends with the driver and with nothing else."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0)(Board).options(scheduling_strategy=here).remote()


def read_board(board: Any) -> Callable[[int], list[Event]]:
    """A function that gives a board's events after the first n."""

    def since(seen: int) -> list[Event]:
        try:
            events: list[Event] = ray.get(board.since.remote(seen), timeout=10)
            return events
        except GetTimeoutError:
            # On a busy machine the board may answer late; its events are read the next time.
            return []

    return since


class Clock:
    """Times one unit and tells the board."""

    def __init__(self, board: Any, step: Step) -> None:
        self.board, self.step = board, step
        self.started = time.monotonic()
        self.tell("started")

    def tell(self, state: str, detail: str = "") -> None:
        """Send an event, without waiting for the board."""
        seconds = time.monotonic() - self.started
        self.board.tell.remote(Event.of(self.step, state, seconds, detail))

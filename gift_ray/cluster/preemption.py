"""A machine that is taken back: SIGTERM reaches the processes of its units. One that trains saves at its
next step and ends; Ray's retry continues on another node. What does not train ends at once, as Ray has it.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import ray

_asked = threading.Event()


@contextmanager
def notice() -> Iterator[Callable[[], bool]]:
    """Within the block SIGTERM ends nothing; whether it came is what the function given says.

    For a Ray task, which has its process's main thread.

    Raises:
        SystemExit: at the block's end, if SIGTERM came: Ray takes the process for lost, and retries.
    """
    before = signal.signal(signal.SIGTERM, _note)
    try:
        yield _asked.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
    if _asked.is_set():
        raise SystemExit("asked to end")


def notice_in_actor() -> Callable[[], bool]:
    """The same for a thread of an actor: only the actor's main thread may say what a signal does."""
    ray.get(ray.get_runtime_context().current_actor.__ray_call__.remote(_note_from_now_on))
    return _asked.is_set


def _note(_signal: int, _frame: FrameType | None) -> None:
    _asked.set()


def _note_from_now_on(_actor: Any) -> None:
    signal.signal(signal.SIGTERM, _note)

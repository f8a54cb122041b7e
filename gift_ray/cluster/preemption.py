"""What happens when a machine is taken back (preempted).

A process learns of it by SIGTERM, or by asking Ray, which drains a node whose `ray start` got SIGTERM but
does not tell the node's tasks. A step that trains saves a checkpoint after its current training step and
ends; Ray runs it again on another node, where it continues. A step that does not train begins again there.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import ray
from ray._private.state import state

POLL_S = 1.0
_asked = threading.Event()


@contextmanager
def notice() -> Iterator[Callable[[], bool]]:
    """Within the block SIGTERM does not end the process; the given function says whether it should end.

    This is for a Ray task, which runs in the main thread of its process.

    Raises:
        SystemExit: at the end of the block, if the process should end. Ray takes it for lost, and retries the
            task.
    """
    before = signal.signal(signal.SIGTERM, _note)
    over = threading.Event()
    threading.Thread(target=_watch_node, args=[over], daemon=True).start()
    try:
        yield _asked.is_set
    finally:
        over.set()
        signal.signal(signal.SIGTERM, before)
    if _asked.is_set():
        raise SystemExit("asked to end")


def notice_in_actor() -> Callable[[], bool]:
    """The same for a thread of an actor, until the actor ends.

    Only the actor's main thread may set what a signal does, so it is asked to.
    """
    ray.get(ray.get_runtime_context().current_actor.__ray_call__.remote(_note_from_now_on))
    threading.Thread(target=_watch_node, args=[threading.Event()], daemon=True).start()
    return _asked.is_set


def _note(_signal: int, _frame: FrameType | None) -> None:
    _asked.set()


def _note_from_now_on(_actor: Any) -> None:
    signal.signal(signal.SIGTERM, _note)


def _watch_node(over: threading.Event) -> None:
    """Ask every second whether Ray drains this node. Ray Train asks by the same function; none is public."""
    here = ray.get_runtime_context().get_node_id()
    while not over.wait(POLL_S):
        if here in state.get_draining_nodes():
            _asked.set()
            return

"""Locks that hold between processes and machines: on a disk that all of them mount, or in an object store."""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from pyarrow import fs

from gift_ray.errors import ClusterFailed

POLL_S = 0.5
# In an object store a holder renews its claim every ALIVE_EVERY_S seconds, and is taken for dead if it has
# not done so for DEAD_AFTER_S.
ALIVE_EVERY_S = 20.0
DEAD_AFTER_S = 120.0


@contextmanager
def disk_lock(path: Path, cancelled: Callable[[], bool]) -> Iterator[None]:
    """Hold the lock of this file; the system frees it when its holder dies.

    Raises:
        ClusterFailed: `cancelled` ended the waiting while another process held the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    while True:
        try:
            lock.acquire(timeout=POLL_S)
            break
        except Timeout:
            _go_on(path.stem, cancelled)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def store_lock(
    filesystem: fs.FileSystem, folder: str, cancelled: Callable[[], bool]
) -> Iterator[None]:
    """Hold the lock of this folder of an object store.

    Each process that wants the lock writes a claim, an object of its own, and then lists all claims. If there
    is no other claim it has the lock; otherwise it deletes its claim and tries again a little later. If two
    processes write claims at the same time, both may give way, but never do both take the lock: a listing
    shows every object that was written before it.

    Raises:
        ClusterFailed: `cancelled` ended the waiting while another process held the lock.
    """
    claim = f"{folder}/{uuid.uuid4().hex}"
    while not _claimed(filesystem, folder, claim):
        _go_on(folder.rpartition("/")[2], cancelled)
        time.sleep(POLL_S * (1 + random.random()))
    over = threading.Event()
    alive = threading.Thread(target=_stay_alive, args=(filesystem, claim, over), daemon=True)
    alive.start()
    try:
        yield
    finally:
        over.set()
        alive.join()
        filesystem.delete_file(claim)


def _claimed(filesystem: fs.FileSystem, folder: str, claim: str) -> bool:
    """Write a claim, and delete it again if there is another one whose holder is alive."""
    _put(filesystem, claim)
    found = filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True))
    # Only times of the store are compared, since the clocks of machines differ.
    written = {info.path: info.mtime for info in found if info.is_file}
    others = {path: at for path, at in written.items() if path != claim}
    living = [
        path for path, at in others.items() if (written[claim] - at).total_seconds() < DEAD_AFTER_S
    ]
    if living:
        filesystem.delete_file(claim)
        return False
    return True


def _stay_alive(filesystem: fs.FileSystem, claim: str, over: threading.Event) -> None:
    while not over.wait(ALIVE_EVERY_S):
        # A store that does not answer now may do so in time.
        with suppress(OSError):
            _put(filesystem, claim)


def _put(filesystem: fs.FileSystem, claim: str) -> None:
    with filesystem.open_output_stream(claim) as file:
        file.write(b"claimed")


def _go_on(name: str, cancelled: Callable[[], bool]) -> None:
    if cancelled():
        raise ClusterFailed(f"{name}: ended while another run was doing it")

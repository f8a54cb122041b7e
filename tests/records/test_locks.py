"""Locks between processes and machines."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from pyarrow import fs

from gift_ray.errors import ClusterFailed
from gift_ray.records.locks import DEAD_AFTER_S, disk_lock, store_lock
from gift_ray.records.storage import Storage

Lock = Callable[..., AbstractContextManager[None]]
HOLDER = """
import sys, time
from pathlib import Path
from gift_ray.records.storage import Storage
with Storage(Path(sys.argv[1])).lock("step"):
    print("held", flush=True)
    time.sleep(600)
"""


def never() -> bool:
    return False


@pytest.fixture(params=["disk", "store"])
def lock(request: pytest.FixtureRequest, tmp_path: Path) -> Lock:
    """The same lock at each call. Any file system stands for a store: what is read back is its listing."""
    if request.param == "disk":
        return lambda cancelled=never: disk_lock(tmp_path / "step.lock", cancelled)
    (tmp_path / "step").mkdir()
    return lambda cancelled=never: store_lock(
        fs.LocalFileSystem(), str(tmp_path / "step"), cancelled
    )


def test_one_at_a_time(lock: Lock) -> None:
    inside, most = [0], [0]

    def work() -> None:
        with lock():
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.05)
            inside[0] -= 1

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(work) for _ in range(4)]:
            future.result()
    assert most == [1]


def test_waiting_can_be_called_off(lock: Lock) -> None:
    over = threading.Event()

    def wait() -> None:
        with lock(over.is_set):
            pytest.fail("it is held")

    with lock(), ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait)
        over.set()
        with pytest.raises(ClusterFailed, match="step: ended while another run was doing it"):
            waiting.result(timeout=60)
    with lock():
        pass


def test_a_failure_inside_frees_it(lock: Lock) -> None:
    with pytest.raises(ValueError, match="inside"), lock():
        raise ValueError("inside")
    with lock():
        pass


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ClusterFailed), Storage(tmp_path).lock("step", lambda: True):
            pytest.fail("the other process holds it")
        with Storage(tmp_path).lock("another"):
            pass
        holder.kill()
        holder.wait()
        with Storage(tmp_path).lock("step"):
            pass
    finally:
        holder.kill()
        holder.wait()


def test_a_claim_whose_holder_is_gone_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "step").mkdir()
    claim = tmp_path / "step" / "of-a-dead-process"
    claim.touch()
    lock = store_lock(fs.LocalFileSystem(), str(tmp_path / "step"), lambda: True)
    with pytest.raises(ClusterFailed), lock:
        pytest.fail("its holder may be alive")
    long_ago = time.time() - DEAD_AFTER_S - 1
    os.utime(claim, (long_ago, long_ago))
    with store_lock(fs.LocalFileSystem(), str(tmp_path / "step"), lambda: True):
        pass

"""Processes that die between two checkpoints, or may write no more."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gift_ray.study.journal import LocalJournal


class Killed(Exception):
    """Stands for SIGKILL."""


class KilledJournal(LocalJournal):
    """A journal whose process dies right after its second checkpoint."""

    def write(self, step: int, checkpoint: dict[str, Any]) -> None:
        super().write(step, checkpoint)
        if step >= 2 * self.every:
            raise Killed


@contextmanager
def full_disk() -> Iterator[None]:
    """This process may write no file beyond 4 kB: the system's answer is that of a full disk. Pytest's own
    log is such a file too, so that this is entered for as short as can be."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

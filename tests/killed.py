"""Processes that die between two checkpoints."""

from __future__ import annotations

from typing import Any

from gift_ray.stages import LocalJournal


class Killed(Exception):
    """Stands for SIGKILL."""


class KilledJournal(LocalJournal):
    """A journal whose process dies right after its second checkpoint."""

    def write(self, step: int, checkpoint: dict[str, Any]) -> None:
        super().write(step, checkpoint)
        if step >= 2 * self.every:
            raise Killed

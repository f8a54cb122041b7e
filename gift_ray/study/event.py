"""What a step tells while it is run. Processes that only pass it on import this file and no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gift_ray.study.step import Step


@dataclass(frozen=True)
class Event:
    """One step's change of state: `started`, `done`, `reused` or `failed`.

    `step` is the name of its folder.
    """

    state: str
    step: str
    label: str
    kind: str
    seconds: float
    detail: str = ""

    @classmethod
    def of(cls, step: Step, state: str, seconds: float, detail: str = "") -> Event:
        """An event of this step."""
        return cls(state, step.name, step.label, step.kind, seconds, detail)

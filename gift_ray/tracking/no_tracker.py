"""A study that nobody is told of: its folder, its report and its released models are all that it leaves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gift_ray.records.manifest import verify
from gift_ray.tracking.tracker import Curves, Pictures, Registered


class NoTracker:
    """A `Tracker` that keeps nothing. A released model stays in its folder, which stands for its version."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        pass

    def trial(
        self, trial_id: str, values: Mapping[str, Any], metrics: Mapping[str, float],
        curves: Curves, tags: Mapping[str, str], images: Pictures = (),
    ) -> str:  # fmt: skip
        return ""

    def undefended(self, curves: Curves, images: Pictures) -> None:
        pass

    def summary(
        self, metrics: Mapping[str, float], tags: Mapping[str, str], files: list[Path]
    ) -> None:
        pass

    def register(
        self, name: str, folder: Path, objective: float, protocol: str, tags: Mapping[str, str]
    ) -> Registered:
        return Registered(name, verify(folder)[:16], str(folder), champion=False, is_new=False)

    def how_to_look(self) -> str:
        return ""

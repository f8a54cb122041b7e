"""The tracker of a study that is not tracked, whose results are in its folder alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gift_ray.records.manifest import verify
from gift_ray.tracking.tracker import Curves, Pictures, Registered


class NoTracker:
    """A `Tracker` that keeps nothing. The folder of a released model takes the place of a version."""

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

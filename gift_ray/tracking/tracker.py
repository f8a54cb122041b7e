"""The interface of trackers, which keep the results of a study: in MLflow, or nowhere.

This file imports no MLflow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from PIL.Image import Image

from gift_ray.config.schema import StudyConfig

Curves = Mapping[str, Mapping[int, float]]
# (name, attack step, picture) of each attack along its steps.
Pictures = Iterable[tuple[str, int, Image]]


@dataclass(frozen=True)
class Registered:
    """A version in the registry; `is_new` tells whether this call made it."""

    name: str
    version: str
    uri: str
    champion: bool
    is_new: bool


class Tracker(Protocol):
    """Keeps the results of one study, as a context manager.

    When the block ends by an error or an interrupt, nothing is left that looks as if the study still ran.
    Results that are given twice are kept once, so that a study that continues may give them again.
    tests/contracts/test_trackers.py tests what all trackers promise.
    """

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...  # fmt: skip

    def trial(
        self, trial_id: str, values: Mapping[str, Any], metrics: Mapping[str, float],
        curves: Curves, tags: Mapping[str, str], images: Pictures = (),
    ) -> str:  # fmt: skip
        """Keep one finished trial; returns where people see it, "" if nowhere."""

    def undefended(self, curves: Curves, images: Pictures) -> None:
        """Keep the undefended model's results, with which all trials are compared."""

    def summary(
        self, metrics: Mapping[str, float], tags: Mapping[str, str], files: list[Path]
    ) -> None:
        """Keep the study's outcome."""

    def register(
        self, name: str, folder: Path, objective: float, protocol: str, tags: Mapping[str, str]
    ) -> Registered:
        """Keep a released folder under `name`, once for the same content.

        Raises:
            ModelError: the folder differs from its manifest.
        """

    def how_to_look(self) -> str:
        """The command that shows all of it, "" if there is none."""


def open_tracker(config: StudyConfig, fingerprint: str) -> Tracker:
    """The tracker that the configuration names.

    Args:
        fingerprint: of the study; running the same study again continues what is kept of it.

    Raises:
        ConfigError: the tracker's store can't be reached.
    """
    if config.tracking.tracker == "none":
        from gift_ray.tracking.no_tracker import NoTracker

        return NoTracker()
    # Importing MLflow takes a second, for which studies without it should not wait.
    from gift_ray.tracking.mlflow_tracker import MlflowTracker

    return MlflowTracker(config, fingerprint)

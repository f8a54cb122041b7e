"""Who is told how a study goes, and keeps what it leaves: MLflow, or nobody. The seam imports no MLflow."""

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
    """Keeps one study, as a block: a job that ends by an error or an interrupt leaves nothing that looks as
    if it still ran. Whatever is told twice is kept once, so that a study that continues may tell it again.
    tests/contracts/test_trackers.py holds what all trackers promise.
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
        """Keep what all trials are held against."""

    def summary(
        self, metrics: Mapping[str, float], tags: Mapping[str, str], files: list[Path]
    ) -> None:
        """Keep the study's outcome."""

    def register(
        self, name: str, folder: Path, objective: float, protocol: str, tags: Mapping[str, str]
    ) -> Registered:
        """Keep a released folder under `name`, once for the same content.

        Raises:
            ModelError: the folder is not as its manifest says.
        """

    def how_to_look(self) -> str:
        """The command that shows all of it, "" if there is none."""


def open_tracker(config: StudyConfig, fingerprint: str) -> Tracker:
    """The tracker that the configuration names.

    Args:
        fingerprint: of the study; running the same study again continues what is kept of it.

    Raises:
        ConfigError: what should keep the study can't be reached.
    """
    if config.tracking.tracker == "none":
        from gift_ray.tracking.no_tracker import NoTracker

        return NoTracker()
    # MLflow takes a second to import, and who does not use it should not wait for it.
    from gift_ray.tracking.mlflow_tracker import MlflowTracker

    return MlflowTracker(config, fingerprint)

"""The trials of a search, and the folder that keeps them.

Each trial is one JSON file, written when it is suggested and again when it has ended. A search that was
stopped needs nothing else to continue.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from gift_ray.errors import ConfigError, DataError
from gift_ray.records.record import write_json_atomic
from gift_ray.records.storage import Storage

State = Literal["running", "complete", "pruned", "infeasible", "failed"]
# The objective of a failed trial: worse than that of any infeasible one.
FAILED = -1.0


@dataclass(frozen=True)
class Trial:
    """One setting that a search tried, with its scores.

    Attributes:
        arms: the verdict on each released model (one model in joint mode, one for each concept in per_concept
            mode). Only a `complete` trial has verdicts.
        objective: the mean over these models; `resistance` and `retention` are their worst. In a trial that
            was `pruned`, or found `infeasible` before its attacks, these are the best values that were still
            possible.
        rungs: the objective that was still possible after each rung.
        seconds: the time that its units took.
    """

    trial_id: str
    values: dict[str, Any]
    objective: float
    resistance: float
    retention: float
    feasible: bool
    reason: str
    arms: list[dict[str, Any]]
    number: int = 0
    state: State = "complete"
    rungs: list[float] = field(default_factory=list)
    seconds: float = 0.0
    protocol: str = ""


class Ledger:
    """A search's trials by number, on disk and in memory.

    Args:
        folder: the folder of this search. A search of another space or study is another search.
        on_write: called for each file that was written.

    Raises:
        DataError: a trial's file can't be read.
    """

    def __init__(self, folder: Path, on_write: Callable[[Path], None] = lambda _: None) -> None:
        self.folder, self.on_write = folder, on_write
        found = [_read(path) for path in folder.glob("[0-9]*.json")]
        self.trials = {trial.number: trial for trial in sorted(found, key=lambda t: t.number)}

    def write(self, trial: Trial) -> None:
        """Add or replace a trial; a reader sees the old one or the new one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{trial.number:05d}.json"
        write_json_atomic(path, asdict(trial))
        self.on_write(path)
        self.trials[trial.number] = trial

    def ended(self) -> list[Trial]:
        """The trials that have ended, in the order they were suggested."""
        return [t for _, t in sorted(self.trials.items()) if t.state != "running"]

    def unfinished(self) -> list[Trial]:
        """The trials that were suggested and have not ended."""
        return [t for _, t in sorted(self.trials.items()) if t.state == "running"]


def _read(path: Path) -> Trial:
    try:
        return Trial(**json.loads(path.read_text("utf-8")))
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{path}: not a readable trial ({error}); delete it, and that trial is run again"
        ) from error


def ledger_of(storage: Storage, fingerprint: str) -> Ledger:
    """The trials of the search with this fingerprint, as far as the study's storage has them."""
    folder = storage.study_dir / "search" / fingerprint[:16]
    storage.fetch(folder)
    return Ledger(folder, on_write=storage.send)


def earlier_trials(folders: Sequence[str], space: Mapping[str, Any], protocol: str) -> list[Trial]:
    """The complete trials of earlier studies that a search can learn from.

    They were scored under the same protocol, and have a value for every option of the space that does not
    depend on another one.

    Args:
        folders: those of the earlier studies.
        space: the searched options of this study, by path.
        protocol: the `protocol_id` of this study.

    Raises:
        ConfigError: a folder has no such trial; the message says why.
    """
    found: list[Trial] = []
    mistakes = []
    for folder in folders:
        ledgers = [Ledger(path) for path in sorted((Path(folder) / "search").glob("*"))]
        complete = [t for ledger in ledgers for t in ledger.ended() if t.state == "complete"]
        comparable = [t for t in complete if t.protocol == protocol]
        usable = [t for t in comparable if _fits(t.values, space)]
        if not usable:
            mistakes.append(
                f"search.warm_start: {folder} tells nothing: of its {len(complete)} complete trials "
                f"{len(comparable)} were scored under this study's protocol and {len(usable)} lie in its "
                "space; give the folder of a study with the same prompts, metrics and scoring, or leave "
                "it out"
            )
        found += usable
    if mistakes:
        raise ConfigError(*mistakes)
    return [replace(t, rungs=[]) for t in found]


def _fits(values: Mapping[str, Any], space: Mapping[str, Any]) -> bool:
    """Whether a setting lies in the search space."""
    always = {path for path, option in space.items() if not option.when}
    return always <= set(values) <= set(space) and all(
        value in space[path].choices
        if space[path].choices is not None
        else space[path].low <= value <= space[path].high
        for path, value in values.items()
    )

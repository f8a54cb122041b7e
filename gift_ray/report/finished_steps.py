"""What a study's folder holds: the outline, the trials, the summary and the records of its steps.

It is read without a model, Ray or MLflow. A step that is missing or damaged becomes a `Problem`, never an
exception, since a study that is half done has a report too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gift_ray.errors import ConfigError, DataError
from gift_ray.records.record import Record, is_done, read_claim, read_record


@dataclass(frozen=True)
class Problem:
    """Something that the report can't show.

    `kind` is `unfinished`, `failed`, `pruned`, `infeasible` (the model lost so much that it was not
    attacked), `damaged`, `unscored`, `unusable` or `left out`; `what` names the piece, `why` the reason.
    """

    kind: str
    what: str
    why: str


class FinishedSteps:
    """The records of a study's steps, each read once. What is missing or damaged is noted in `problems`."""

    def __init__(self, folder: Path) -> None:
        # A comparison's folder lies inside its study's folder, where the steps of both are.
        self.steps = next((f / "steps" for f in (folder, folder.parent) if (f / "steps").exists()),
                          folder / "steps")  # fmt: skip
        self.problems: list[Problem] = []
        self.records: dict[str, Record | None] = {}
        self.left_out: set[str] = set()

    def leave_out(self, names: Iterable[str]) -> None:
        """Don't report those of these steps that were not done: their trial ended before it needed them."""
        self.left_out |= {name for name in names if not is_done(self.path(name))}

    @property
    def units(self) -> tuple[int, int]:
        """How many of the steps asked for are done, and how many there are (without those left out)."""
        known = self.records.keys() - self.left_out
        return sum(self.records[name] is not None for name in known), len(known)

    def path(self, name: str) -> Path:
        """The folder of a step."""
        return self.steps / name

    def record(self, name: str, label: str) -> Record | None:
        """The record of a step; None where it can't be read, which is noted as a problem under `label`."""
        if name not in self.records:
            self.records[name] = self._read(name, label)
        return self.records[name]

    def _read(self, name: str, label: str) -> Record | None:
        if name in self.left_out:
            return None
        if not is_done(self.path(name)):
            self.problems.append(Problem("unfinished", label, "not done yet"))
            return None
        # Hashing weights takes long, and a report does not read them: their record alone is enough.
        read = read_claim if name.startswith(("immunize-", "merge-")) else read_record
        try:
            return read(self.path(name))
        except DataError:
            self.problems.append(
                Problem("damaged", label, f"steps/{name} is damaged; delete it to compute it anew")
            )
            return None


def read_outline(folder: Path) -> dict[str, Any]:
    """The study as its job wrote it down: its configuration and the names of its steps.

    Raises:
        ConfigError: the folder has no readable study.json.
    """
    path = folder / "study.json"
    if not path.exists():
        raise ConfigError(f"{folder}: no study.json; give a study's folder, as runs/demo")
    outline: dict[str, Any] = _read_json(path)
    return outline


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: can't be read; run the study's job again to write it anew"
        ) from error


def read_trials(folder: Path, fingerprint: str) -> list[dict[str, Any]]:
    """The ended trials of the study with this fingerprint, in the order they ended."""
    found = [_read_json(path) for path in (folder / "trials").glob("*.json")]
    same = [trial for trial in found if trial["fingerprint"] == fingerprint]
    return sorted(same, key=lambda trial: (trial["time"], trial["trial_id"]))


def read_summary(folder: Path, fingerprint: str) -> dict[str, Any] | None:
    """summary.json; None while it is not written, or where an earlier configuration wrote it."""
    path = folder / "summary.json"
    if not path.exists():
        return None
    summary = _read_json(path)
    return summary if summary.get("fingerprint") == fingerprint else None


def read_provenance(steps: FinishedSteps) -> dict[str, list[str]]:
    """Every version, commit, machine and device that had a part in the steps that were read."""
    found: dict[str, set[str]] = {}
    for record in steps.records.values():
        if record is None:
            continue
        known = record.provenance
        single = {name: known.get(name) for name in ("git_commit", "python", "machine", "device")}
        for name, value in (known.get("versions", {}) | single).items():
            found.setdefault(name.replace("_", " "), set()).add(str(value or "unknown"))
    return {name: sorted(values) for name, values in found.items()}

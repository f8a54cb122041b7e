"""The journal of a long step: the values that it logs, and the checkpoints from which it can continue."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from gift_ray.errors import DataError
from gift_ray.records.record import load_state, save_state


class Journal(ABC):
    """The `Report` that a long step is given, which logs values and keeps checkpoints.

    Logged values and kept results are part of the checkpoint, so that a step that continues has the same log
    and the same images as one that was never stopped. `leaving` says whether the process was asked to end:
    then the step saves a checkpoint at its next training step, whether one is due or not, and ends.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.rows: list[dict[str, float]] = []
        self.kept: dict[str, torch.Tensor] = {}
        self.leaving: Callable[[], bool] = lambda: False

    def log(self, step: int, **values: float) -> None:
        self.rows.append({"step": step, **values})

    def keep(self, name: str, tensor: torch.Tensor) -> None:
        """Keep a small result, by name, for the end of the step."""
        self.kept[name] = tensor

    def due(self, step: int) -> bool:
        return step % self.every == 0 or self.leaving()

    def save(self, step: int, state: dict[str, Any]) -> None:
        self.write(step, {"state": state, "kept": self.kept, "rows": self.rows})
        if self.leaving():
            raise SystemExit(f"asked to end; step {step} is saved")

    def load(self) -> dict[str, Any] | None:
        try:
            saved = self.read()
        except DataError as error:
            # A step begins again rather than continue from a damaged checkpoint.
            logging.getLogger(__name__).warning("%s; this step begins again", error)
            return None
        if saved is None:
            return None
        self.kept, self.rows = saved.get("kept", {}), saved.get("rows", [])
        state: dict[str, Any] = saved["state"]
        return state

    def save_log(self, out: Path) -> None:
        """Write the logged values to training.parquet, one row for each training step."""
        pd.DataFrame(self.rows or {"step": []}).to_parquet(out / "training.parquet")

    @abstractmethod
    def write(self, step: int, checkpoint: dict[str, Any]) -> None:
        """Store a checkpoint."""

    @abstractmethod
    def read(self) -> dict[str, Any] | None:
        """The latest stored checkpoint, or None if there is none.

        Raises:
            DataError: the checkpoint is damaged.
        """


class LocalJournal(Journal):
    """A journal whose latest checkpoint is one file, which is replaced atomically."""

    def __init__(self, path: Path, every: int) -> None:
        super().__init__(every)
        self.path = path

    def write(self, step: int, checkpoint: dict[str, Any]) -> None:
        save_state(self.path, checkpoint)

    def read(self) -> dict[str, Any] | None:
        return load_state(self.path) if self.path.exists() else None

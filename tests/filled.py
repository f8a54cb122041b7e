"""A step's folder as a test fills it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from gift_ray.records.record import Record, read_record, step_written


def write_step(
    folder: Path, identity: dict[str, Any], work: Callable[[Path], dict[str, Any]], **extra: Any
) -> Record:
    """The record of a step whose folder `work` fills; its result is what `work` returns."""
    with step_written(folder, identity, **extra) as draft:
        draft.result = work(draft.folder)
    return read_record(folder)

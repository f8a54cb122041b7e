"""Executes one step of a plan: it reads the folders of its inputs and writes its own folder."""

from __future__ import annotations

import logging
from pathlib import Path

from gift_ray.records.record import is_done, read_record, step_written
from gift_ray.study.journal import Journal, LocalJournal
from gift_ray.study.step import Inputs, Step

logger = logging.getLogger(__name__)


def execute(
    step: Step, study_dir: Path, *, journal: Journal | None = None, checkpoint_every: int = 100
) -> None:
    """Execute one step, unless its record exists already. Its inputs must be done.

    Args:
        journal: where a training step keeps its checkpoints; default: a file in the study's folder.
    """
    folder = step.folder(study_dir)
    if is_done(folder):
        return
    logger.info("The step %r begins here.", step.label)
    inputs = verified_inputs(step, study_dir)
    kept = journal or LocalJournal(step.checkpoint(study_dir), checkpoint_every)
    with step_written(folder, step.full_identity, label=step.label) as draft:
        draft.result = step.run(inputs, draft.folder, kept)
    step.checkpoint(study_dir).unlink(missing_ok=True)
    logger.info("The step %r is done.", step.label)


def verified_inputs(step: Step, study_dir: Path) -> Inputs:
    """The folders that a step reads.

    Raises:
        DataError: one of them isn't finished, or is damaged.
    """
    inputs = {name: other.folder(study_dir) for name, other in step.inputs.items()}
    for path in inputs.values():
        read_record(path)
    return inputs

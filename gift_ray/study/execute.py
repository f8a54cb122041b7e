"""Executes one step of a plan: it reads the folders of its inputs and writes its own folder."""

from __future__ import annotations

import logging
from pathlib import Path

from gift_ray.records.record import Record, is_done, read_record, write_step
from gift_ray.study.journal import Journal, LocalJournal
from gift_ray.study.step import Inputs, Step

logger = logging.getLogger(__name__)


def execute(
    step: Step, study_dir: Path, *, journal: Journal | None = None, checkpoint_every: int = 100
) -> Record:
    """Execute one step, unless its record exists already. Its inputs must be done.

    Args:
        journal: where a training step keeps its checkpoints; default: a file in the study's folder.
    """
    folder = step.folder(study_dir)
    if is_done(folder):
        return read_record(folder)
    logger.info("The step %r begins here.", step.label)
    inputs = verified_inputs(step, study_dir)
    kept = journal or LocalJournal(step.checkpoint(study_dir), checkpoint_every)
    record = write_step(
        folder, step.full_identity, lambda out: step.run(inputs, out, kept), label=step.label
    )
    step.checkpoint(study_dir).unlink(missing_ok=True)
    logger.info("The step %r is done.", step.label)
    return record


def verified_inputs(step: Step, study_dir: Path) -> Inputs:
    """The folders that a step reads.

    Raises:
        DataError: one of them isn't finished, or is damaged.
    """
    inputs = {name: other.folder(study_dir) for name, other in step.inputs.items()}
    for path in inputs.values():
        read_record(path)
    return inputs

"""Doing one step of a plan: its stage on its inputs, into its folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from gift_ray.config.schema import (
    AttackConfig,
    ConceptConfig,
    DefenseConfig,
    EvaluationConfig,
    MergeConfig,
    ModelConfig,
    PriorConfig,
)
from gift_ray.records.record import Record, is_done, read_record, write_step
from gift_ray.study import stages
from gift_ray.study.plan import JOURNALED, Step
from gift_ray.study.stages import Journal, LocalJournal

# The parts of the configuration that a spec may hold.
PARTS: dict[str, type[BaseModel]] = {
    "model": ModelConfig, "evaluation": EvaluationConfig, "prior": PriorConfig,
    "concept": ConceptConfig, "defense": DefenseConfig, "attack": AttackConfig, "merge": MergeConfig,
}  # fmt: skip


def execute(
    step: Step, study_dir: Path, *, journal: Journal | None = None, checkpoint_every: int = 100
) -> Record:
    """Do one step, unless its record exists. Its inputs must be done.

    Args:
        journal: where a training step keeps its checkpoints; default: a file in the study's folder.
    """
    folder = step.folder(study_dir)
    if is_done(folder):
        return read_record(folder)
    inputs = _verified_inputs(step, study_dir)
    if journal is None and step.kind in JOURNALED:
        journal = LocalJournal(step.checkpoint(study_dir), checkpoint_every)
    record = write_step(folder, step.full_identity, _work(step, inputs, journal), label=step.label)
    step.checkpoint(study_dir).unlink(missing_ok=True)
    return record


def assist(step: Step, study_dir: Path, journal: Journal) -> None:
    """Train beside the worker that executes an immunize step; leaves nothing."""
    stages.immunized_model(**_arguments(step, _verified_inputs(step, study_dir), journal))


def _verified_inputs(step: Step, study_dir: Path) -> dict[str, Path]:
    inputs = {name: other.folder(study_dir) for name, other in step.inputs.items()}
    for path in inputs.values():
        read_record(path)
    return inputs


def _work(
    step: Step, inputs: Mapping[str, Path], journal: Journal | None
) -> Callable[[Path], dict[str, Any]]:
    """The stage function of a step's kind, with its arguments in place."""
    arguments = _arguments(step, inputs, journal)
    stage = getattr(stages, step.kind)
    return lambda out: stage(out=out, **arguments)


def _arguments(step: Step, inputs: Mapping[str, Path], journal: Journal | None) -> dict[str, Any]:
    """What a step's stage is called with, but for the folder that it fills."""
    spec = step.spec
    parts: dict[str, Any] = {"inputs": inputs}
    for name, kind in PARTS.items():
        if name in spec:
            parts[name] = kind.model_validate(spec[name])
    parts |= {name: spec[name] for name in ("seed", "concepts", "prompts", "asked") if name in spec}
    if step.kind in JOURNALED:
        parts["journal"] = journal
    return parts

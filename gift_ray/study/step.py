"""A step: one piece of a study's work, as a frozen value with an identity.

Each kind of step is one class in one file of `gift_ray/study/steps`: its fields are the arguments of the
work, `identity` says which of them change the result, and `run` does the work. The fingerprint of the
identity names the step's folder, so that doing a step twice does nothing the second time.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from gift_ray.plugins import Plugin
from gift_ray.records.record import digest
from gift_ray.study.journal import Journal
from gift_ray.training.diffusion import Seeds

# The folders of finished steps, by the names that a step gives its inputs.
Inputs = Mapping[str, Path]


@dataclass(frozen=True)
class Work:
    """How much a step does: training steps, images drawn, images measured."""

    training_steps: int = 0
    drawn: int = 0
    measured: int = 0


@dataclass(frozen=True, kw_only=True)
class Step(ABC):
    """One piece of work. A kind of step adds its arguments as fields.

    `label` names the step for people. `inputs` are the steps whose folders it reads. Neither where a study
    lies nor how many workers it has is part of a step: they don't change its result.
    """

    # How the folders of this kind are named.
    kind: ClassVar[str]
    # To be raised when results of this kind change their meaning; all of them are then computed again.
    version: ClassVar[int]
    # Whether several workers may `run` it together, each training on a share of every batch. Of what they
    # leave only the first one's folder is kept.
    data_parallel: ClassVar[bool] = False

    label: str
    inputs: Mapping[str, Step] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # The identity reads files (a base model, a source's images) that another node may not have. So it is
        # computed here, where the step is planned, and is sent along with the step.
        assert self.fingerprint

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What changes the result, as JSON values, apart from kind, version and inputs."""

    @abstractmethod
    def run(self, inputs: Inputs, out: Path, journal: Journal) -> dict[str, Any]:
        """Do the work: read the folders of the inputs, fill the folder `out`, return a small JSON result.

        Args:
            journal: keeps a training's diagnostics and checkpoints; other steps leave it alone.

        Raises:
            UnitFailed: the step failed for its own reason (numbers that are not finite, a collapse).
        """

    @property
    def trains(self) -> bool:
        """Whether this step is a long training, which keeps checkpoints and can continue from them."""
        return False

    def trained_plugins(self) -> Sequence[Plugin]:
        """The defenses or attacks that train in this step; what it costs depends on them."""
        return ()

    def work(self) -> Work:
        """How much work the step is, as far as it is known beforehand."""
        return Work()

    @functools.cached_property
    def full_identity(self) -> dict[str, Any]:
        """Kind, version, own identity and the fingerprints of the inputs."""
        return {
            "kind": self.kind,
            "version": self.version,
            **self.identity(),
            "inputs": {name: step.fingerprint for name, step in sorted(self.inputs.items())},
        }

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 of the identity."""
        return digest(self.full_identity)

    @property
    def name(self) -> str:
        """Name of the step's folder."""
        return f"{self.kind}-{self.fingerprint[:16]}"

    def folder(self, study_dir: Path) -> Path:
        """Where the finished step lies."""
        return study_dir / "steps" / self.name

    def checkpoint(self, study_dir: Path) -> Path:
        """Where the running step keeps its latest checkpoint."""
        return study_dir / "checkpoints" / f"{self.name}.safetensors"


def closure(steps: Iterable[Step]) -> list[Step]:
    """The steps and everything they read, each once, inputs before their readers."""
    found: dict[str, Step] = {}

    def visit(step: Step) -> None:
        if step.fingerprint not in found:
            for other in step.inputs.values():
                visit(other)
            found[step.fingerprint] = step

    for step in steps:
        visit(step)
    return list(found.values())


def seeds_for(seed: int, purpose: str) -> Seeds:
    """The random streams of one purpose. Two purposes never share a stream, whatever the seed is."""
    return Seeds(Seeds(seed).generator(purpose).initial_seed())

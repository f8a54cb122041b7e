"""The step that immunizes a model: it trains a defense on D_M of one or several concepts, and on D_S."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

from gift_ray.config.schema import ModelConfig
from gift_ray.data import examples
from gift_ray.data.naming import names_any
from gift_ray.errors import UnitFailed
from gift_ray.models import families, locate
from gift_ray.plugins import Defense, Plugin
from gift_ray.study.journal import Journal
from gift_ray.study.step import Inputs, Step, Work, seeds_for
from gift_ray.training import parallel
from gift_ray.training.diffusion import Examples

# Given in place of D_S to a defense that does not train, and therefore never reads it.
NO_EXAMPLES = cast(Examples, None)


@dataclass(frozen=True, kw_only=True)
class ImmunizeModel(Step):
    """Writes unet.safetensors.

    Inputs: `prior`, `concept/NAME` for each of `concepts`, and `model` if the defense starts from another
    model than the base. `names` are what the concepts may be called. A defense that does not train reads
    neither concepts nor prior.
    """

    kind: ClassVar[str] = "immunize"
    version: ClassVar[int] = 3
    data_parallel: ClassVar[bool] = True

    defense: Defense
    concepts: tuple[str, ...]
    names: tuple[str, ...]
    model: ModelConfig
    seed: int

    def identity(self) -> dict[str, Any]:
        return {
            "defense": self.defense.identity(),
            "concepts": list(self.concepts),
            "names": list(self.names),
            # Prepared data depends on the base as well, but the undefended model reads none.
            "model": locate.identity(self.model),
            "seed": self.seed,
        }

    def run(self, inputs: Inputs, out: Path, journal: Journal) -> dict[str, Any]:
        d_m, d_s = (
            defenders_data(self.concepts, self.names, inputs)
            if self.defense.trains
            else ([], NO_EXAMPLES)
        )
        given = families.base_model(self.model)
        if "model" in inputs:
            given = given.with_weights(inputs["model"] / "unet.safetensors")
        seeds = seeds_for(self.seed, "immunize")
        released = self.defense.immunize(given, d_m, d_s, seeds=seeds, report=journal)
        if parallel.is_first():
            released.save_weights(out / "unet.safetensors")
        journal.save_log(out)
        return {"last": journal.rows[-1] if journal.rows else {}}

    @property
    def trains(self) -> bool:
        return self.defense.trains

    def trained_plugins(self) -> Sequence[Plugin]:
        return [part for part in self.defense.members() if hasattr(part, "max_train_steps")]

    def work(self) -> Work:
        parts: Sequence[Any] = self.trained_plugins()
        return Work(training_steps=sum(part.max_train_steps for part in parts))


def defenders_data(
    concepts: Sequence[str], names: Sequence[str], inputs: Inputs
) -> tuple[list[Examples], Examples]:
    """D_M of each concept, and D_S without the images whose caption names one of the concepts.

    All models of a study share one D_S. Its images of a concept would teach a model what D_M takes away.

    Raises:
        UnitFailed: no image of D_S is left.
    """
    d_m = [
        examples.load_examples(inputs[f"concept/{name}"] / "D_M.safetensors") for name in concepts
    ]
    d_s = examples.load_examples(inputs["prior"] / "D_S.safetensors")
    safe = [i for i, caption in enumerate(d_s.captions) if not names_any(names, caption)]
    if not safe:
        raise UnitFailed(
            f"every image of D_S is of {', '.join(concepts)} by its caption; give prior.source others"
        )
    return d_m, d_s if len(safe) == len(d_s) else d_s.take(safe)

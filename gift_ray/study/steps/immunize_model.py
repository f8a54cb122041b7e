"""The step that immunizes a model: it trains a defense on D_M of one or several concepts, and on D_S."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

from gift_ray import plugins
from gift_ray.config.plugin_choice import DefenseConfig
from gift_ray.config.schema import ModelConfig
from gift_ray.data import examples
from gift_ray.models import families, locate
from gift_ray.models.backbone import Backbone
from gift_ray.plugins import Plugin
from gift_ray.study.journal import Journal
from gift_ray.study.step import Inputs, Step, Work, seeds_for
from gift_ray.training.diffusion import Examples

# Given in place of D_S to a defense that does not train, and therefore never reads it.
NO_EXAMPLES = cast(Examples, None)


@dataclass(frozen=True, kw_only=True)
class ImmunizeModel(Step):
    """Writes unet.safetensors.

    Inputs: `prior`, `concept/NAME` for each of `concepts`, and `model` if the defense starts from another
    model than the base. A defense that does not train reads neither concepts nor prior.
    """

    kind: ClassVar[str] = "immunize"
    version: ClassVar[int] = 2
    data_parallel: ClassVar[bool] = True

    defense: DefenseConfig
    concepts: tuple[str, ...]
    model: ModelConfig
    seed: int

    def identity(self) -> dict[str, Any]:
        return {
            "defense": self.plugin.identity(),
            "concepts": list(self.concepts),
            # Prepared data depends on the base as well, but the undefended model reads none.
            "model": locate.identity(self.model),
            "seed": self.seed,
        }

    def run(self, inputs: Inputs, out: Path, journal: Journal) -> dict[str, Any]:
        self._train(inputs, journal).save_weights(out / "unet.safetensors")
        journal.save_log(out)
        return {"last": journal.rows[-1] if journal.rows else {}}

    def assist(self, inputs: Inputs, journal: Journal) -> None:
        self._train(inputs, journal)

    def _train(self, inputs: Inputs, journal: Journal) -> Backbone:
        d_m, d_s = (
            defenders_data(self.concepts, inputs) if self.plugin.trains else ([], NO_EXAMPLES)
        )
        given = families.base_model(self.model)
        if "model" in inputs:
            given = given.with_weights(inputs["model"] / "unet.safetensors")
        seeds = seeds_for(self.seed, "immunize")
        return self.plugin.immunize(given, d_m, d_s, seeds=seeds, report=journal)

    @functools.cached_property
    def plugin(self) -> plugins.Defense:
        """The defense with its options."""
        found: plugins.Defense = plugins.build("defenses", self.defense.name, self.defense.options)
        return found

    @property
    def trains(self) -> bool:
        return self.plugin.trains

    def trained_plugins(self) -> Sequence[Plugin]:
        return [part for part in self.plugin.members() if hasattr(part, "max_train_steps")]

    def work(self) -> Work:
        parts: Sequence[Any] = self.trained_plugins()
        return Work(training_steps=sum(part.max_train_steps for part in parts))


def defenders_data(concepts: Sequence[str], inputs: Inputs) -> tuple[list[Examples], Examples]:
    """D_M of each concept, and D_S."""
    d_m = [
        examples.load_examples(inputs[f"concept/{name}"] / "D_M.safetensors") for name in concepts
    ]
    return d_m, examples.load_examples(inputs["prior"] / "D_S.safetensors")

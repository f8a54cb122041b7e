"""The step that attacks a released model: fine-tuning on D_A of a concept, with images drawn on the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image

from gift_ray.config.schema import EvaluationConfig, ModelConfig
from gift_ray.data import examples
from gift_ray.models.backbone import Backbone
from gift_ray.models.families import released_model
from gift_ray.plugins import Attack, Plugin
from gift_ray.study.drawing import draw, drawing_identity, repeated
from gift_ray.study.journal import Journal
from gift_ray.study.step import Inputs, Step, Work, seeds_for


@dataclass(frozen=True, kw_only=True)
class AttackModel(Step):
    """Writes the images of each evaluation step to a folder `step-NNNNNN`, and never the attacked weights.

    Inputs: `model`, the released model, and `concept`, whose D_A the attacker has.
    """

    kind: ClassVar[str] = "attack"
    version: ClassVar[int] = 1

    attack: Attack
    prompts: tuple[str, ...]
    evaluation: EvaluationConfig
    model: ModelConfig
    seed: int

    def identity(self) -> dict[str, Any]:
        return {
            "attack": self.attack.identity(),
            "prompts": list(self.prompts),
            "drawing": drawing_identity(self.evaluation),
            "seed": self.seed,
        }

    def run(self, inputs: Inputs, out: Path, journal: Journal) -> dict[str, Any]:
        asked = repeated(self.prompts, self.evaluation)
        for step, attacked in self.finetune(inputs, journal):
            images = draw(attacked, asked, self.evaluation, self.seed)
            journal.keep(f"{step:06d}", torch.from_numpy(np.stack([np.asarray(i) for i in images])))
        for name, tensor in journal.kept.items():
            examples.save_images(out / f"step-{name}", [Image.fromarray(a) for a in tensor.numpy()])
        journal.save_log(out)
        return {"steps": [int(name) for name in journal.kept], "prompts": list(asked)}

    def finetune(self, inputs: Inputs, journal: Journal) -> Iterator[tuple[int, Backbone]]:
        """The attacked model at each evaluation step."""
        released = released_model(self.model, inputs["model"] / "unet.safetensors")
        d_a = examples.load_examples(inputs["concept"] / "D_A.safetensors")
        seeds = seeds_for(self.seed, "attack")
        return self.attack.finetune(released, d_a, seeds=seeds, report=journal)

    @property
    def trains(self) -> bool:
        return True

    def trained_plugins(self) -> Sequence[Plugin]:
        return [self.attack]

    def work(self) -> Work:
        steps = self.attack.evaluation_steps()
        asked = len(repeated(self.prompts, self.evaluation))
        return Work(training_steps=steps[-1], drawn=len(steps) * asked)

"""The step that draws images from a released model before any fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from gift_ray.config.schema import EvaluationConfig, ModelConfig
from gift_ray.data import examples
from gift_ray.models.families import released_model
from gift_ray.study.drawing import draw, drawing_identity, repeated
from gift_ray.study.journal import Journal
from gift_ray.study.step import Inputs, Step, Work


@dataclass(frozen=True, kw_only=True)
class SampleImages(Step):
    """Writes the images to the folder `step-000000`. Input: `model`, the released model."""

    kind: ClassVar[str] = "sample"
    version: ClassVar[int] = 1

    prompts: tuple[str, ...]
    evaluation: EvaluationConfig
    model: ModelConfig
    seed: int

    def identity(self) -> dict[str, Any]:
        return {
            "prompts": list(self.prompts),
            "drawing": drawing_identity(self.evaluation),
            "seed": self.seed,
        }

    def run(self, inputs: Inputs, out: Path, journal: Journal) -> dict[str, Any]:
        released = released_model(self.model, inputs["model"] / "unet.safetensors")
        asked = repeated(self.prompts, self.evaluation)
        images = draw(released, asked, self.evaluation, self.seed)
        examples.save_images(out / "step-000000", images)
        return {"steps": [0], "prompts": list(asked)}

    def work(self) -> Work:
        return Work(drawn=len(repeated(self.prompts, self.evaluation)))

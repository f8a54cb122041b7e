"""The common base of the sources whose images the base model draws; they differ in their prompts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from gift_ray.models.backbone import Backbone
from gift_ray.plugins import Source, SourceImage
from gift_ray.training.diffusion import Seeds


class DrawnSource(Source):
    """Draws one image for each prompt; the prompt is the image's caption."""

    num_inference_steps: int = Field(50, gt=0)
    guidance_scale: float = Field(7.5, ge=1)
    batch_size: int = Field(16, gt=0)

    @abstractmethod
    def drawn_prompts(self) -> Sequence[str]:
        """The prompt of each image, in the order of the images."""

    def images(self, model: Backbone, seeds: Seeds) -> list[SourceImage]:
        prompts = self.drawn_prompts()
        images = model.generate(
            prompts,
            seeds=seeds,
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
            batch_size=self.batch_size,
        )
        return [
            SourceImage(image, prompt, f"generated image {i} ({prompt})")
            for i, (image, prompt) in enumerate(zip(images, prompts, strict=True))
        ]

    def identity(self) -> dict[str, Any]:
        # An image does not depend on the others of its batch.
        return {key: value for key, value in super().identity().items() if key != "batch_size"}

    def uses_model(self) -> bool:
        return True

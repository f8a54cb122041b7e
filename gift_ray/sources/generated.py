"""Images drawn by the base model itself: how the paper makes its styles and its safe set D_S."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field

from gift_ray.models.backbone import Backbone
from gift_ray.plugins import Source, SourceImage
from gift_ray.training.diffusion import Seeds


class Generated(Source):
    """`num_images` images, the prompts used in turn; the prompt is the caption."""

    version: ClassVar[int] = 1

    prompts: tuple[Annotated[str, Field(min_length=1)], ...] = Field(min_length=1)
    num_images: int = Field(gt=0)
    num_inference_steps: int = Field(50, gt=0)
    guidance_scale: float = Field(7.5, ge=1)
    batch_size: int = Field(16, gt=0)

    def images(self, model: Backbone, seeds: Seeds) -> list[SourceImage]:
        prompts = [self.prompts[i % len(self.prompts)] for i in range(self.num_images)]
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
        # An image does not depend on which others are drawn beside it.
        return {key: value for key, value in super().identity().items() if key != "batch_size"}

    def uses_model(self) -> bool:
        return True

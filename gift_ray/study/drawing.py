"""Images drawn from a model under a study's settings, the same way in every step that draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from gift_ray.config.schema import EvaluationConfig
from gift_ray.models.backbone import Backbone
from gift_ray.study.step import seeds_for


def draw(
    model: Backbone, prompts: Sequence[str], evaluation: EvaluationConfig, seed: int
) -> list[Image.Image]:
    """One image for each prompt.

    The noise depends on the seed and the place in the list only, so that two models differ in their images by
    their weights alone.
    """
    return model.generate(
        prompts,
        seeds=seeds_for(seed, "evaluation"),
        num_inference_steps=evaluation.num_inference_steps,
        sampler=evaluation.sampler,
        guidance_scale=evaluation.guidance_scale,
        batch_size=evaluation.batch_size,
    )


def repeated(prompts: Sequence[str], evaluation: EvaluationConfig) -> tuple[str, ...]:
    """Each prompt as often as images of it are drawn."""
    return tuple(p for p in prompts for _ in range(evaluation.num_images_per_prompt))


def drawing_identity(evaluation: EvaluationConfig) -> dict[str, Any]:
    """The settings that change the images (the batch size does not)."""
    changing = {"num_images_per_prompt", "num_inference_steps", "sampler", "guidance_scale"}
    return evaluation.model_dump(mode="json", include=changing)

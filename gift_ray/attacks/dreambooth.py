"""DreamBooth (Ruiz et al. 2022): fine-tuning of the whole denoiser on a few images of one concept.

The text encoders are trained as well if the option says so. Defaults follow diffusers' train_dreambooth.py:
AdamW, constant learning rate 5e-6, weight decay 1e-2, gradient norm 1.0.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from gift_ray.models.architecture import Architecture
from gift_ray.models.backbone import Backbone
from gift_ray.training.diffusion import Examples, Seeds
from gift_ray.training.finetuning import FineTuning, Trainee
from gift_ray.training.footprint import Footprint


class DreamBooth(FineTuning):
    """Trains all weights of the denoiser.

    With prior preservation the attacked model itself draws the class images, since the attacker has no other
    model.
    """

    version: ClassVar[int] = 1

    learning_rate: float = Field(5e-6, gt=0)
    max_train_steps: int = Field(400, gt=0)
    train_text_encoder: bool = False
    with_prior_preservation: bool = False
    class_prompt: str | None = Field(None, min_length=1, description="as 'a photo of a cat'")
    prior_loss_weight: float = Field(1.0, ge=0)
    num_class_images: int = Field(100, gt=0)
    num_inference_steps: int = Field(50, gt=0, description="of each class image")

    @model_validator(mode="after")
    def _class_is_named(self) -> DreamBooth:
        if self.with_prior_preservation and self.class_prompt is None:
            raise ValueError(
                "with_prior_preservation needs class_prompt; give one, such as 'a photo of a cat'"
            )
        return self

    def require(self, base: Architecture) -> None:
        super().require(base)
        if self.train_text_encoder:
            base.require_trainable_text()

    def footprint(self, base: Architecture) -> Footprint:
        found = super().footprint(base)
        if self.train_text_encoder:
            found += Footprint.of(self.optimizer, base.text_sizes(), weights=base.text)
        return found

    def trainee(self, model: Backbone, concept: Examples, seeds: Seeds) -> Trainee:
        tuned = model.clone(text_encoder=self.train_text_encoder)
        parameters = tuned.parameters("all")
        if self.train_text_encoder:
            parameters |= tuned.text_parameters()
        images = self._class_images(model, seeds) if self.with_prior_preservation else None
        return Trainee(tuned, parameters, partial(self.loss, tuned, images))

    def loss(
        self, model: Backbone, class_images: Examples | None, examples: Examples,
        generator: torch.Generator,
    ) -> Tensor:  # fmt: skip
        """L_instance + prior_loss_weight L_class (Ruiz et al., Eq. 2), each over a batch of its own."""
        read = self.train_text_encoder
        loss = self.denoising_loss(model, examples, generator, read=read)
        if class_images is None:
            return loss
        prior = self.denoising_loss(model, class_images, generator, read=read)
        return loss + self.prior_loss_weight * prior

    def _class_images(self, model: Backbone, seeds: Seeds) -> Examples:
        """The class images, drawn with the pipeline's default guidance as in diffusers' script.

        A resumed attack draws the same images again.
        """
        captions = [str(self.class_prompt)] * self.num_class_images
        images = model.generate(
            captions,
            seeds=Seeds(seeds.generator("class images").initial_seed()),
            num_inference_steps=self.num_inference_steps,
            guidance_scale=7.5,
            batch_size=4,
        )
        return model.encode(images, captions, [f"class image {i}" for i in range(len(images))])

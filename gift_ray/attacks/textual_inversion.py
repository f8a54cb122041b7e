"""Textual inversion (Gal et al. 2022): learning the embedding of one new word.

Denoiser and text encoder stay as they are. It follows diffusers' textual_inversion.py, with the defaults of
its README: 3000 steps, batches of 4, learning rate 5e-4 times the batch size (--scale_lr), no clipping. Other
than in the script, the captions are those of D_A instead of templates, and the optimizer holds the new rows
alone instead of the whole vocabulary.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from gift_ray.errors import ConfigError
from gift_ray.models.architecture import Architecture
from gift_ray.models.backbone import Backbone
from gift_ray.models.placeholder import Placeholder
from gift_ray.training.diffusion import Examples, Seeds
from gift_ray.training.finetuning import FineTuning, Trainee
from gift_ray.training.footprint import Footprint


class TextualInversion(FineTuning):
    """Makes `placeholder_token` a word with `num_vectors` learnt rows, in captions and in later prompts."""

    version: ClassVar[int] = 1

    learning_rate: float = Field(2e-3, gt=0)
    max_train_steps: int = Field(3000, gt=0)
    train_batch_size: int = Field(4, gt=0)
    max_grad_norm: float | None = Field(None, gt=0)
    placeholder_token: str = Field("sks", pattern=r"^\S+$")
    initializer_token: str = Field("object", min_length=1, description="what the rows begin as")
    num_vectors: int = Field(1, gt=0)

    def require(self, base: Architecture) -> None:
        super().require(base)
        base.require_trainable_text()

    def footprint(self, base: Architecture) -> Footprint:
        # Its rows are few; the encoders that read them are copies.
        return Footprint(weights=base.text)

    def trainee(self, model: Backbone, concept: Examples, seeds: Seeds) -> Trainee:
        model, word = model.with_placeholder(
            self.placeholder_token, self.initializer_token, self.num_vectors
        )
        if not word.is_in(concept.captions):
            raise ConfigError(
                f"attacks.placeholder_token: {self.placeholder_token!r} is in no caption of D_A (one "
                f"is {concept.captions[0]!r}); write it into the concept's instance_prompt, or give "
                "the attack a caption with it"
            )
        return Trainee(model, word.parameters, partial(self.loss, model, word))

    def loss(
        self, model: Backbone, word: Placeholder, examples: Examples, generator: torch.Generator
    ) -> Tensor:
        """The denoising loss of one batch as a function of the word's rows, a scalar."""
        with word.differentiable():
            return self.denoising_loss(model, examples, generator, read=True)

"""Textual inversion (Gal et al. 2022): learn the embedding of one new word; unet and text encoder stay
as they are. Mirrors diffusers' textual_inversion.py; defaults of its README: 3000 steps, batches of 4,
learning rate 5e-4 times the batch (--scale_lr); no clipping. The captions are D_A's own instead of the
script's templates, and only the new rows are in the optimizer instead of the whole vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from gift_ray.errors import ConfigError
from gift_ray.models.stable_diffusion import DiffusionModel
from gift_ray.training.diffusion import Examples, Seeds
from gift_ray.training.finetuning import FineTuning, Trainee


class TextualInversion(FineTuning):
    """`placeholder_token` becomes a word of `num_vectors` learnt rows wherever a caption or a later
    prompt has it."""

    version: ClassVar[int] = 1

    learning_rate: float = Field(2e-3, gt=0)
    max_train_steps: int = Field(3000, gt=0)
    train_batch_size: int = Field(4, gt=0)
    max_grad_norm: float | None = Field(None, gt=0)
    placeholder_token: str = Field("sks", pattern=r"^\S+$")
    initializer_token: str = Field("object", min_length=1, description="what the rows begin as")
    num_vectors: int = Field(1, gt=0)

    def trainee(self, model: DiffusionModel, concept: Examples, seeds: Seeds) -> Trainee:
        model, places = model.with_placeholder(
            self.placeholder_token, self.initializer_token, self.num_vectors
        )
        if not any(places.start in model.tokenizer(text).input_ids for text in concept.captions):
            raise ConfigError(
                f"attacks.placeholder_token: {self.placeholder_token!r} is in no caption of D_A (one "
                f"is {concept.captions[0]!r}); write it into the concept's instance_prompt, or give "
                "the attack a caption with it"
            )
        # A view of the table: what the optimizer writes is what the model reads, here and later.
        table = model.text_encoder.get_input_embeddings()
        rows = nn.Parameter(table.weight.data[places.start : places.stop])
        loss = partial(self.loss, model, concept, rows, places.start)
        return Trainee(model, {"rows": rows}, loss)

    def loss(
        self, model: DiffusionModel, concept: Examples, rows: nn.Parameter, first: int,
        generator: torch.Generator,
    ) -> Tensor:  # fmt: skip
        """The denoising loss of one batch as a function of `rows` [num_vectors, D], a scalar."""
        with differentiable(model.text_encoder.get_input_embeddings(), rows, first):
            return self.denoising_loss(model, concept, generator, read=True)


@contextmanager
def differentiable(table: nn.Module, rows: nn.Parameter, first: int) -> Iterator[None]:
    """Let gradients reach some rows of a frozen embedding table, those of ids `first` and up."""

    def look_up(_module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        place = inputs[0] - first
        learnt = (place >= 0) & (place < len(rows))
        found = nn.functional.embedding(place.clamp(0, len(rows) - 1), rows)
        return torch.where(learnt[..., None], found, output)

    handle = table.register_forward_hook(look_up)
    try:
        yield
    finally:
        handle.remove()

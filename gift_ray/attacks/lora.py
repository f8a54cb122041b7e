"""LoRA (Hu et al. 2021): training of low-rank updates of the denoiser's attention.

It follows diffusers' train_dreambooth_lora.py, with the defaults of its README (learning rate 1e-4, 500
steps) and of the script (rank 4, lora_alpha = rank, no dropout).
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from gift_ray.models.adapters import modules_named
from gift_ray.models.architecture import Architecture
from gift_ray.models.backbone import Backbone
from gift_ray.training.diffusion import Examples, Seeds
from gift_ray.training.finetuning import FineTuning, Trainee
from gift_ray.training.footprint import FP32, Footprint


class LoRA(FineTuning):
    """Trains a low-rank adapter and nothing else."""

    version: ClassVar[int] = 1

    learning_rate: float = Field(1e-4, gt=0)
    max_train_steps: int = Field(500, gt=0)
    rank: int = Field(4, gt=0)
    lora_alpha: int | None = Field(None, gt=0, description="None: rank")
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        ("attention",),
        min_length=1,
        description="attention or blocks, as the model's family has them; or ends of module names, as to_q",
    )

    def require(self, base: Architecture) -> None:
        super().require(base)
        modules_named(self.target_modules, base.family.roles, base.denoiser)

    def footprint(self, base: Architecture) -> Footprint:
        sizes = base.adapter_sizes(self.target_modules, self.rank)
        return Footprint.of(self.optimizer, sizes, weights=FP32 * sum(sizes))

    def trainee(self, model: Backbone, concept: Examples, seeds: Seeds) -> Trainee:
        model = model.with_lora(
            rank=self.rank,
            lora_alpha=self.lora_alpha or self.rank,
            lora_dropout=self.lora_dropout,
            target_modules=self.target_modules,
            generator=seeds.generator("lora"),
        )
        return Trainee(model, model.adapter(), partial(self.loss, model))

    def loss(self, model: Backbone, examples: Examples, generator: torch.Generator) -> Tensor:
        """The denoising loss of one batch, with the adapter's dropout, a scalar."""
        # Dropout uses torch's global generator, which is seeded for this step here, and restored afterwards.
        where = model.device
        with torch.random.fork_rng([where] if where.type == "cuda" else []):
            torch.manual_seed(generator.initial_seed())
            model.denoiser.train()
            loss = self.denoising_loss(model, examples, generator)
            model.denoiser.eval()
        return loss

"""Full fine-tuning on captioned images, the attack of ResAlign and Meta-Unlearning.

It follows diffusers' train_text_to_image.py without EMA, with the defaults of its README: learning rate 1e-5,
batches of 4. Its step is the same as DreamBooth's without prior preservation; only the recipe differs.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from pydantic import Field

from gift_ray.models.backbone import Backbone
from gift_ray.training.diffusion import Examples, Seeds
from gift_ray.training.finetuning import FineTuning, Trainee


class FullFinetune(FineTuning):
    """Trains every weight of the denoiser."""

    version: ClassVar[int] = 1

    learning_rate: float = Field(1e-5, gt=0)
    max_train_steps: int = Field(200, gt=0)
    train_batch_size: int = Field(4, gt=0)

    def trainee(self, model: Backbone, concept: Examples, seeds: Seeds) -> Trainee:
        model = model.clone()
        loss = partial(self.denoising_loss, model)
        return Trainee(model, model.parameters("all"), loss)

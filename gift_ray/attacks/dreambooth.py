"""DreamBooth (Ruiz et al. 2022): fine-tune the full unet on a few images of one concept. Defaults
follow diffusers' train_dreambooth.py: AdamW, constant learning rate 5e-6, weight decay 1e-2, gradient
norm 1.0."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from gift_ray.diffusion import Examples, Level, Seeds
from gift_ray.errors import UnitFailed
from gift_ray.models import DiffusionModel
from gift_ray.plugins import Attack, Report


class DreamBooth(Attack):
    """Full-unet fine-tuning without prior preservation."""

    version: ClassVar[int] = 1

    learning_rate: float = Field(5e-6, gt=0)
    max_train_steps: int = Field(400, gt=0)
    train_batch_size: int = Field(1, gt=0)
    weight_decay: float = Field(1e-2, ge=0)
    max_grad_norm: float | None = Field(1.0, gt=0)
    num_evaluations: int = Field(
        5, ge=2, description="evaluation steps, log-spaced, 0 and last included"
    )

    def evaluation_steps(self) -> tuple[int, ...]:
        spaced = np.geomspace(
            max(1, self.max_train_steps / 8), self.max_train_steps, self.num_evaluations - 1
        )
        return (0, *sorted({round(float(s)) for s in spaced}))

    def finetune(
        self, model: DiffusionModel, concept: Examples, *, seeds: Seeds, report: Report
    ) -> Iterator[tuple[int, DiffusionModel]]:
        model = model.clone()
        level = Level(
            model.parameters("unet"), optimizer="adamw", learning_rate=self.learning_rate,
            weight_decay=self.weight_decay, max_grad_norm=self.max_grad_norm,
            fp16=model.mixed_precision == "fp16",
        )  # fmt: skip
        start = _restore(report.load(), model, level)
        if start == 0:
            yield 0, model
        for step in range(start + 1, self.max_train_steps + 1):
            # Every draw is named by its step: a resumed attack sees the same batches.
            generator = seeds.generator("attack", step)
            batch = concept.batch(self.train_batch_size, generator)
            noise, timesteps = model.draw(self.train_batch_size, generator)
            loss = model.denoising_loss(
                batch.latents, batch.encoder_hidden_states, timesteps, noise
            ).mean()
            norm = level.step(level.gradients(loss))
            if not np.isfinite(float(loss.detach())):
                raise UnitFailed(f"attack step {step}: the loss is not finite")
            report.log(step, loss=float(loss.detach()), grad_norm=norm)
            if step in self.evaluation_steps():
                yield step, model
            report.save(step, _state(step, model, level))


def _state(done: int, model: DiffusionModel, level: Level) -> dict[str, Any]:
    return {"done": done, "unet": dict(model.unet.state_dict()), "level": level.state()}


def _restore(state: dict[str, Any] | None, model: DiffusionModel, level: Level) -> int:
    if state is None:
        return 0
    model.unet.load_state_dict(state["unet"])
    level.load_state(state["level"])
    return int(state["done"])

"""What every attack shares: train some parameters of a copy of the released model on D_A, and show
the model along the way. An attack says which parameters, and what a step's loss is.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from gift_ray.errors import UnitFailed
from gift_ray.models.stable_diffusion import DiffusionModel
from gift_ray.plugins import Attack, Report
from gift_ray.training.diffusion import Examples, Level, Seeds


@dataclass(frozen=True)
class Trainee:
    """A model in training: its trained parameters by name, and the scalar loss of one step as a
    function of that step's generator."""

    model: DiffusionModel
    parameters: dict[str, nn.Parameter]
    loss: Callable[[torch.Generator], Tensor]


class FineTuning(Attack):
    """The loop of the diffusers training scripts: AdamW, a constant learning rate, clipped gradients."""

    learning_rate: float = Field(gt=0)
    max_train_steps: int = Field(gt=0)
    train_batch_size: int = Field(1, gt=0)
    weight_decay: float = Field(1e-2, ge=0)
    max_grad_norm: float | None = Field(1.0, gt=0)
    num_evaluations: int = Field(
        5, ge=2, description="evaluation steps, log-spaced, 0 and last included"
    )
    caption: str | None = Field(
        None, min_length=1, description="of every image; None: D_A's own, with the rare token"
    )

    @abstractmethod
    def trainee(self, model: DiffusionModel, concept: Examples, seeds: Seeds) -> Trainee:
        """A copy of `model`, ready to be trained on `concept`."""

    def evaluation_steps(self) -> tuple[int, ...]:
        # Where there is room for one alone, it is the last.
        last = self.max_train_steps
        first = max(1, last / 8) if self.num_evaluations > 2 else last
        spaced = np.geomspace(first, last, self.num_evaluations - 1)
        return (0, *sorted({round(float(s)) for s in spaced}))

    def finetune(
        self, model: DiffusionModel, concept: Examples, *, seeds: Seeds, report: Report
    ) -> Iterator[tuple[int, DiffusionModel]]:
        trainee = self.trainee(model, self._captioned(model, concept), seeds)
        level = Level(
            trainee.parameters, optimizer="adamw", learning_rate=self.learning_rate,
            weight_decay=self.weight_decay, max_grad_norm=self.max_grad_norm,
            fp16=model.mixed_precision == "fp16",
        )  # fmt: skip
        start = _restore(report.load(), level)
        if start == 0:
            yield 0, model
        for step in range(start + 1, self.max_train_steps + 1):
            # Every draw is named by its step: a resumed attack sees the same batches.
            loss = trainee.loss(seeds.generator("attack", step))
            norm = level.step(level.gradients(loss))
            if not math.isfinite(loss.item()):
                raise UnitFailed(f"attack step {step}: the loss is not finite")
            report.log(step, loss=loss.item(), grad_norm=norm)
            if step in self.evaluation_steps():
                yield step, trainee.model
            report.save(step, _state(step, level))

    def denoising_loss(
        self, model: DiffusionModel, examples: Examples, generator: torch.Generator,
        *, read: bool = False,
    ) -> Tensor:  # fmt: skip
        """The denoising loss of one drawn batch, a scalar. `read`: its captions pass the text
        encoder now, with gradients, instead of the states that were encoded once."""
        batch = examples.batch(self.train_batch_size, generator)
        noise, timesteps = model.draw(self.train_batch_size, generator)
        states = model.read(batch.captions) if read else batch.encoder_hidden_states
        return model.denoising_loss(batch.latents, states, timesteps, noise).mean()

    def _captioned(self, model: DiffusionModel, concept: Examples) -> Examples:
        if self.caption is None:
            return concept
        captions = (self.caption,) * len(concept)
        states = model.encode_prompts(captions)
        return replace(concept, captions=captions, encoder_hidden_states=states)


def _state(done: int, level: Level) -> dict[str, Any]:
    return {"done": done, "parameters": dict(level.parameters), "level": level.state()}


@torch.no_grad()
def _restore(state: dict[str, Any] | None, level: Level) -> int:
    """Put a checkpoint back; returns the steps that are done."""
    if state is None:
        return 0
    for name, parameter in level.parameters.items():
        parameter.copy_(state["parameters"][name])
    level.load_state(state["level"])
    return int(state["done"])

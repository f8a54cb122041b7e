"""What every attack shares: train some parameters of a copy of the released model on D_A, and show
the model along the way. An attack says which parameters, and what a step's loss is. A defense that
simulates an attacker builds the same `Attacker`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from gift_ray.models.backbone import Backbone
from gift_ray.plugins import Attack
from gift_ray.training.diffusion import Examples, Seeds
from gift_ray.training.loop import Level, OptimizerName, Report, training
from gift_ray.training.schedules import Schedule, schedule


@dataclass(frozen=True)
class Trainee:
    """What an attack trains: a model, its trained parameters by name (of the denoiser, of an adapter, or
    rows of a token embedding), and the scalar loss of one step as a function of that step's generator."""

    model: Backbone
    parameters: dict[str, nn.Parameter]
    loss: Callable[[torch.Generator], Tensor]


@dataclass(frozen=True)
class Attacker:
    """An attack that is under way: one optimizer, one step at a time. `rate` is the share of the
    learning rate that the step of an index takes."""

    trainee: Trainee
    level: Level
    rate: Callable[[int], float]

    def step(self, index: int, generator: torch.Generator) -> dict[str, float]:
        """Descend the loss once, on a batch drawn from `generator`; returns what is logged of it."""
        loss = self.trainee.loss(generator)
        norm = self.level.step(self.level.gradients(loss), self.rate(index))
        return {"loss": loss.item(), "grad_norm": norm}


class FineTuning(Attack):
    """The loop of the diffusers training scripts: AdamW, a constant learning rate, clipped gradients."""

    learning_rate: float = Field(gt=0)
    lr_scheduler: Schedule = "constant"
    lr_warmup_steps: int = Field(0, ge=0, description="read by all schedules but constant")
    burst_steps: int = Field(0, ge=0, description="first steps, at burst_rate times the rate")
    burst_rate: float = Field(10.0, gt=0, description="of the learning rate")
    optimizer: OptimizerName = "adamw"
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
    def trainee(self, model: Backbone, concept: Examples, seeds: Seeds) -> Trainee:
        """A copy of `model`, ready to be trained on `concept`."""

    def attacker(self, model: Backbone, concept: Examples, seeds: Seeds) -> Attacker:
        """This attack on a copy of `model`, before its first step."""
        return self.attack_on(self.trainee(model, self._captioned(model, concept), seeds))

    def attack_on(self, trainee: Trainee) -> Attacker:
        """This attack's optimizer and learning rates on whatever is to be trained."""
        level = Level(
            trainee.parameters, optimizer=self.optimizer, learning_rate=self.learning_rate,
            weight_decay=self.weight_decay, max_grad_norm=self.max_grad_norm,
            fp16=trainee.model.mixed_precision == "fp16",
        )  # fmt: skip
        return Attacker(trainee, level, self.rate)

    def rate(self, index: int) -> float:
        """The share of the learning rate that a step takes."""
        scheduled = schedule(
            self.lr_scheduler, index, warmup=self.lr_warmup_steps, steps=self.max_train_steps
        )
        return scheduled * (self.burst_rate if index < self.burst_steps else 1.0)

    def evaluation_steps(self) -> tuple[int, ...]:
        # Where there is room for one alone, it is the last.
        last = self.max_train_steps
        first = max(1, last / 8) if self.num_evaluations > 2 else last
        spaced = np.geomspace(first, last, self.num_evaluations - 1)
        return (0, *sorted({round(float(s)) for s in spaced}))

    def finetune(
        self, model: Backbone, concept: Examples, *, seeds: Seeds, report: Report
    ) -> Iterator[tuple[int, Backbone]]:
        attacker = self.attacker(model, concept, seeds)

        def step(index: int) -> dict[str, float]:
            # Every draw is named by its step: a resumed attack sees the same batches.
            return attacker.step(index, seeds.generator("attack", index + 1))

        levels = {"attacker": attacker.level}
        advice = "lower learning_rate"
        for done in training(step, self.max_train_steps, levels, report, advice=advice):
            if done in self.evaluation_steps():
                yield done, attacker.trainee.model if done else model

    def denoising_loss(
        self, model: Backbone, examples: Examples, generator: torch.Generator,
        *, read: bool = False,
    ) -> Tensor:  # fmt: skip
        """The denoising loss of one drawn batch, a scalar. `read`: its captions pass the text
        encoder now, with gradients, instead of the conditioning that was computed once."""
        batch = examples.batch(self.train_batch_size, generator)
        noise, times = model.draw(self.train_batch_size, generator)
        conditioning = model.read(batch.captions) if read else batch.conditioning
        return model.denoising_loss(batch.latents, conditioning, times, noise).mean()

    def _captioned(self, model: Backbone, concept: Examples) -> Examples:
        if self.caption is None:
            return concept
        captions = (self.caption,) * len(concept)
        return replace(concept, captions=captions, conditioning=model.condition(captions))

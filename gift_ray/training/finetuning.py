"""The common base of all attacks: they train some parameters of a copy of the released model on D_A.

The model is shown at several steps on the way. Each attack says which parameters it trains, and what the loss
of a step is. A defense that simulates an attacker builds the same `Attacker`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from PIL import Image, ImageOps
from pydantic import Field, model_validator
from torch import Tensor, nn

from gift_ray.config.plugin_choice import SourceConfig
from gift_ray.models.backbone import Backbone
from gift_ray.models.disturb import Reinitialize
from gift_ray.plugins import Attack, Source, build
from gift_ray.training.conditioning import Conditioning
from gift_ray.training.devices import Scalar, number
from gift_ray.training.diffusion import Batch, Examples, Seeds
from gift_ray.training.loop import Level, Report, training
from gift_ray.training.optimizers import OptimizerName
from gift_ray.training.schedules import Schedule, schedule


@dataclass(frozen=True)
class Trainee:
    """What an attack trains.

    Attributes:
        model: the copy of the released model.
        parameters: the trained ones by name: of the denoiser, of an adapter, or rows of a token embedding.
        loss: the scalar loss of a batch that is drawn from some examples by a generator.
    """

    model: Backbone
    parameters: dict[str, nn.Parameter]
    loss: Callable[[Examples, torch.Generator], Tensor]


@dataclass(frozen=True)
class Attacker:
    """An attack in progress, which takes one step at a time with one optimizer.

    It trains on the concept and, if the attacker brings them, on benign images. `rate` gives the factor of
    the learning rate at each step.
    """

    trainee: Trainee
    level: Level
    concept: Examples
    rate: Callable[[int], float] = lambda _: 1.0
    benign: Examples | None = None
    benign_steps: int = 0
    retain_weight: float = 0.0

    def loss(self, index: int, generator: torch.Generator) -> Tensor:
        """The loss of step `index`, a scalar.

        It is the loss of the concept plus the weighted loss of the benign images; in the first `benign_steps`
        it is that of the benign images alone.
        """
        if self.benign and index < self.benign_steps:
            return self.trainee.loss(self.benign, generator)
        loss = self.trainee.loss(self.concept, generator)
        if self.benign and self.retain_weight:
            loss = loss + self.retain_weight * self.trainee.loss(self.benign, generator)
        return loss

    def step(self, index: int, generator: torch.Generator) -> dict[str, Scalar]:
        """Take one step down the loss, on batches drawn from `generator`; returns the values to log."""
        loss = self.loss(index, generator)
        norm = self.level.step(self.level.gradients(loss), self.rate(index))
        return {"loss": number(loss), "grad_norm": norm}


class FineTuning(Attack):
    """The training loop of the diffusers scripts: AdamW, a constant learning rate, clipped gradients.

    The other options are for attackers who know that the model is defended. Benign images come from the
    attacker, since an attack is given the weights and D_A and nothing of the defender's.
    """

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
    caption_dropout: float = Field(
        0.0, ge=0, le=1, description="share of captions that are replaced by the empty one"
    )
    benign_source: SourceConfig | None = Field(
        None, description="benign images that the attacker brings"
    )
    benign_steps: int = Field(0, ge=0, description="first steps, on the benign images alone")
    retain_weight: float = Field(0.0, ge=0, description="of the benign images' loss afterwards")
    reinitialize: Reinitialize = Field(
        "none",
        description="before training: draw cross-attention anew, or write it in other factors",
    )
    weight_noise: float = Field(
        0.0, ge=0, description="added before training, in deviations of each weight matrix"
    )

    @model_validator(mode="after")
    def _benign_images_are_there_and_used(self) -> Self:
        used = self.benign_steps > 0 or self.retain_weight > 0
        if used and self.benign_source is None:
            raise ValueError("benign_steps and retain_weight need benign_source; give the images")
        if self.benign_source is not None and not used:
            raise ValueError("benign_source is not used; give benign_steps or retain_weight")
        if self.benign_steps >= self.max_train_steps:
            raise ValueError("benign_steps must be below max_train_steps: the concept comes after")
        return self

    def identity(self) -> dict[str, Any]:
        """The identity contains the content of the benign images instead of their path."""
        source = self._source
        benign = {**source.identity(), "content": source.content()} if source else None
        return super().identity() | {"benign_source": benign}

    @abstractmethod
    def trainee(self, model: Backbone, concept: Examples, seeds: Seeds) -> Trainee:
        """A copy of `model`, ready to be trained on `concept`."""

    def attacker(self, model: Backbone, concept: Examples, seeds: Seeds) -> Attacker:
        """This attack on a copy of `model`, before its first step."""
        concept = self._captioned(model, concept)
        benign = self._benign(model, seeds)
        generator = seeds.generator("disturb")
        start = model.disturbed(self.reinitialize, self.weight_noise, generator)
        return self.attack_on(self.trainee(start, concept, seeds), concept, benign)

    def attack_on(
        self, trainee: Trainee, concept: Examples, benign: Examples | None = None
    ) -> Attacker:
        """This attack's optimizer and schedule, applied to some other trainee."""
        level = Level(
            trainee.parameters, optimizer=self.optimizer, learning_rate=self.learning_rate,
            weight_decay=self.weight_decay, max_grad_norm=self.max_grad_norm,
            fp16=trainee.model.mixed_precision == "fp16",
        )  # fmt: skip
        return Attacker(
            trainee, level, concept, self.rate, benign, self.benign_steps, self.retain_weight
        )

    def rate(self, index: int) -> float:
        """The factor of the learning rate at a step."""
        scheduled = schedule(
            self.lr_scheduler, index, warmup=self.lr_warmup_steps, steps=self.max_train_steps
        )
        return scheduled * (self.burst_rate if index < self.burst_steps else 1.0)

    def evaluation_steps(self) -> tuple[int, ...]:
        # If only one step besides 0 is wanted, it is the last.
        last = self.max_train_steps
        first = max(1, last / 8) if self.num_evaluations > 2 else last
        spaced = np.geomspace(first, last, self.num_evaluations - 1)
        return (0, *sorted({round(float(s)) for s in spaced}))

    def finetune(
        self, model: Backbone, concept: Examples, *, seeds: Seeds, report: Report
    ) -> Iterator[tuple[int, Backbone]]:
        attacker = self.attacker(model, concept, seeds)

        def step(index: int) -> dict[str, Scalar]:
            # The generator depends on the step, so that a resumed attack draws the same batches.
            return attacker.step(index, seeds.generator("attack", index + 1))

        levels = {"attacker": attacker.level}
        advice = "lower learning_rate"
        for done in training(
            step, self.max_train_steps, levels, report, advice=advice, shown=self.evaluation_steps()
        ):
            yield done, attacker.trainee.model if done else model

    def denoising_loss(
        self, model: Backbone, examples: Examples, generator: torch.Generator,
        *, read: bool = False,
    ) -> Tensor:  # fmt: skip
        """The denoising loss of one drawn batch, a scalar.

        Args:
            read: whether the captions pass the text encoder now, with gradients, instead of using the
                conditioning that was computed beforehand.
        """
        batch = examples.batch(self.train_batch_size, generator)
        noise, times = model.draw(self.train_batch_size, generator)
        if self.caption_dropout:
            batch = self._with_dropped_captions(model, batch, generator)
        conditioning = model.read(batch.captions) if read else batch.conditioning
        return model.denoising_loss(batch.latents, conditioning, times, noise).mean()

    def _captioned(self, model: Backbone, concept: Examples) -> Examples:
        if self.caption is None:
            return concept
        captions = (self.caption,) * len(concept)
        return replace(concept, captions=captions, conditioning=model.condition(captions))

    def _with_dropped_captions(
        self, model: Backbone, batch: Batch, generator: torch.Generator
    ) -> Batch:
        """The batch with some captions replaced by "", as in training for classifier-free guidance."""
        dropped = (torch.rand(len(batch), generator=generator) < self.caption_dropout).tolist()
        captions = tuple("" if d else c for d, c in zip(dropped, batch.captions, strict=True))
        null = model.condition([""])
        rows = [null if d else batch.conditioning[[i]] for i, d in enumerate(dropped)]
        return replace(batch, captions=captions, conditioning=Conditioning.concatenate(rows))

    @property
    def _source(self) -> Source | None:
        chosen = self.benign_source
        return build("sources", chosen.name, chosen.options) if chosen else None

    def _benign(self, model: Backbone, seeds: Seeds) -> Examples | None:
        """The attacker's benign images, encoded by the model that is attacked."""
        if self._source is None:
            return None
        images = self._source.images(model, Seeds(seeds.generator("benign").initial_seed()))
        size = (model.resolution, model.resolution)
        pictures = [ImageOps.fit(item.image, size, Image.Resampling.LANCZOS) for item in images]
        return model.encode(pictures, [i.caption for i in images], [i.origin for i in images])

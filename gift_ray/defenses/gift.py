"""GIFT (Abdalla et al., arXiv 2507.13598), Algorithm 1.

It alternates an inner step of prior preservation over the whole denoiser (alpha_inner, D_S) with an outer
step of immunization over the cross-attention parameters psi (alpha_outer, D_M). Both update the same weights,
and nothing is rolled back. The defaults are those that measured best; `gift_paper` follows the paper exactly.

Four options go beyond the paper. `path` takes the outer gradient at a random point between the released
weights and the base's. The training of an attacker leads back towards the base, which still knows the
concept, so the way there is blocked as well. `retreat` then releases a point on that way instead of its end:
the concept is blocked there too, and much less of everything else is lost. `prior_loss: distillation` keeps
the released model near the base's own predictions on D_S, and `random_words` also under captions in which one
word is a random one of the tokenizer's, so that what no image of D_S shows is kept as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from gift_ray.errors import UnitFailed
from gift_ray.models.architecture import Architecture
from gift_ray.models.backbone import Backbone, NoiseLayers, ParameterGroup
from gift_ray.plugins import Defense
from gift_ray.training import parallel
from gift_ray.training.conflicts import cosine, project, without_conflicts
from gift_ray.training.devices import Scalar, number
from gift_ray.training.diffusion import (
    Examples,
    Seeds,
    balanced_batch,
    capture,
    concatenate,
)
from gift_ray.training.footprint import FP32, Footprint
from gift_ray.training.loop import Level, Report, train
from gift_ray.training.maximization import MaxLoss, max_loss
from gift_ray.training.optimizers import OptimizerName
from gift_ray.training.path import on_the_way, step_back
from gift_ray.training.preservation import Preservation, PriorLoss, concept_words
from gift_ray.training.representation import NoiseDistance, NoiseKind, NoiseTarget
from gift_ray.training.schedules import falling

# Rounds between two measurements of the activations: each costs a forward pass of the base.
DIAGNOSTICS_EVERY = 10
# If the standard deviation of activations falls below this share of the base's, the model is destroyed, not
# only the concept, and its scores would mean nothing.
COLLAPSED_STD_RATIO = 1e-3


class Gift(Defense):
    """Representation noising and loss maximization against D_M, prior preservation on D_S."""

    version: ClassVar[int] = 1

    alpha_inner: float = Field(
        5e-6, gt=0, description="learning rate of the inner level, whole denoiser"
    )
    alpha_outer: float = Field(2e-5, gt=0, description="learning rate of the outer level, psi")
    beta: float = Field(0.1, ge=0, description="weight of L_noise in Eq. 8; 0: none is computed")
    max_weight: float = Field(1.0, ge=0, description="weight of L_max in Eq. 8; 0: noise only")
    max_train_steps: int = Field(1000, gt=0, description="inner and outer steps together")
    inner_steps: int = Field(1, gt=0, description="inner steps of each round")
    outer_steps: int = Field(1, gt=0, description="outer steps of each round")
    train_batch_size: int = Field(1, gt=0)
    parameter_group: ParameterGroup = Field(
        "cross_attention", description="what the outer level trains; psi in the paper"
    )
    max_loss: MaxLoss = "hinge"
    margin: float = Field(
        1.0, gt=0, description="of the hinge: predicting nothing gives an MSE of 1"
    )
    noise_target: NoiseKind = "frozen"
    noise_distance: NoiseDistance = Field(
        "mse", description="of L_noise: Eq. 7's, or the discrepancy of RepNoise"
    )
    noise_layers: NoiseLayers = "blocks"
    coordination: Literal["alternate", "joint", "project"] = "alternate"
    prior_loss: PriorLoss = Field(
        "denoising", description="Eq. 9, or the distance to the base's own predictions on D_S"
    )
    caption_dropout: float = Field(
        0.0, ge=0, lt=1, description="share of D_S that the inner level sees without its caption"
    )
    random_words: float = Field(
        0.0, ge=0, le=1,
        description="share of D_S that the inner level sees with one word of the caption replaced by a "
        "random one; distillation only",
    )  # fmt: skip
    path: float = Field(
        0.0, ge=0, le=0.95,
        description="the outer gradient is taken at a random share of the way to the base, up to this",
    )  # fmt: skip
    retreat: float = Field(
        0.0, ge=0, le=0.95,
        description="share of the way back to the base that the released weights go in the end",
    )  # fmt: skip
    decay: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the rounds, the last, over which both rates fall to 0",
    )
    tail_steps: int = Field(
        0, ge=0, description="inner steps after the rounds, from half of alpha_inner down to 0"
    )
    # Of several concepts only. Left out of the identity at their defaults: models against one concept
    # are what they were before these options were there.
    concept_sampling: Literal["balanced", "proportional"] = Field(
        "balanced", exclude_if=lambda value: value == "balanced",
        description="concepts in turn, or by their number of images",
    )  # fmt: skip
    concept_projection: bool = Field(
        False, exclude_if=lambda value: not value,
        description="remove what in one concept's outer gradient opposes another's",
    )  # fmt: skip
    rank: int | None = Field(
        None, gt=0, exclude_if=lambda value: value is None,
        description="both levels train low-rank updates of this rank on the blocks, which are added to the "
        "weights at the end; None: the weights themselves",
    )  # fmt: skip
    optimizer: OptimizerName = "adamw"
    max_grad_norm: float | None = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _something_immunizes(self) -> Gift:
        if self.beta == self.max_weight == 0:
            raise ValueError("beta and max_weight are both 0: nothing would immunize; raise one")
        if self.random_words and self.prior_loss != "distillation":
            raise ValueError(
                "random_words needs prior_loss: distillation, since such a caption is not the image's"
            )
        return self

    def footprint(self, base: Architecture) -> Footprint:
        def sizes(group: ParameterGroup) -> list[int]:
            if self.rank is None:
                return base.sizes(group)
            return base.adapter_sizes(("blocks",), self.rank, group)

        every, psi = sizes("all"), sizes(self.parameter_group)
        trained = FP32 * sum(every)
        inner = Footprint.of(self.optimizer, every, weights=trained)
        # Of the inner gradients those on psi are kept beside them, to be compared with the outer ones.
        outer = Footprint.of(self.optimizer, psi)
        training = inner + outer
        if self.path:
            # On the way to the base the weights (of an adapter, the B's) are kept; inner gradients are gone.
            kept = FP32 * sum(every if self.rank is None else every[1::2])
            training += Footprint(gradients=max(0, kept + outer.gradients - trained))
        # At the end an adapter is added to a copy of the weights.
        ending = Footprint(weights=0 if self.rank is None else trained + base.weights)
        return max(training, ending, key=lambda each: each.total)

    def immunize(
        self,
        model: Backbone,
        malicious: Sequence[Examples],
        safe: Examples,
        *,
        seeds: Seeds,
        report: Report,
    ) -> Backbone:
        run = self.begun(model, malicious, safe, seeds)
        released, levels = run.model, {"inner": run.inner, "outer": run.outer}
        steps = run.rounds + self.tail_steps
        train(run.step, steps, levels, report, advice="lower alpha_outer or beta")
        if self.retreat:
            step_back(released, model, self.retreat)
        if self.rank is None:
            return released
        # What the optimizers keep is let go of before there is a second set of weights.
        del run, levels
        return released.with_adapter_in_weights(model)

    def begun(
        self, model: Backbone, malicious: Sequence[Examples], safe: Examples, seeds: Seeds
    ) -> Immunization:
        """The training before its first step."""
        released = self._in_training(model, seeds)
        every = concatenate(malicious)
        return Immunization(
            options=self,
            base=model,
            model=released,
            d_m=malicious if self.concept_sampling == "balanced" else [every],
            preservation=Preservation(
                kind=self.prior_loss,
                base=model,
                d_s=safe,
                batch_size=self.train_batch_size,
                caption_dropout=self.caption_dropout,
                seeds=seeds,
                random_words=self.random_words,
                forbidden=concept_words(every.captions, safe.captions),
            ),
            inner=self._level(released, "all", self.alpha_inner),
            outer=self._level(released, self.parameter_group, self.alpha_outer),
            noise=NoiseTarget.of(
                self.noise_target, self.noise_layers, model, every, seeds, self.noise_distance
            ),
            seeds=seeds,
        )

    def _in_training(self, model: Backbone, seeds: Seeds) -> Backbone:
        """A copy whose weights can be trained, or one that shares the model's and carries an adapter."""
        if self.rank is None:
            return model.clone()
        return model.with_lora(
            rank=self.rank, lora_alpha=self.rank, lora_dropout=0.0, target_modules=("blocks",),
            generator=seeds.generator("rank"),
        )  # fmt: skip

    def _level(self, model: Backbone, group: ParameterGroup, rate: float) -> Level:
        return Level(
            model.parameters(group) if self.rank is None else model.adapter(group),
            optimizer=self.optimizer,
            learning_rate=rate,
            max_grad_norm=self.max_grad_norm,
            fp16=model.mixed_precision == "fp16",
        )


@dataclass(frozen=True)
class Immunization:
    """One training of a model that starts as `base`: the model, its data, and its two levels."""

    options: Gift
    base: Backbone
    model: Backbone
    d_m: Sequence[Examples]
    preservation: Preservation
    inner: Level
    outer: Level
    noise: NoiseTarget
    seeds: Seeds

    @property
    def steps_per_round(self) -> int:
        """Optimizer steps of one round, inner and outer together."""
        if self.options.coordination == "joint":
            return 2
        return self.options.inner_steps + self.options.outer_steps

    @property
    def rounds(self) -> int:
        """How many rounds `max_train_steps` allows."""
        return math.ceil(self.options.max_train_steps / self.steps_per_round)

    def step(self, index: int) -> dict[str, Scalar]:
        """One round, or one step of the tail; returns the values to log."""
        if index >= self.rounds:
            values = self._tail_step(index - self.rounds)
        elif self.options.coordination == "joint":
            values = self._joint_round(index)
        else:
            values = self._alternating_round(index)
        # It is measured now and then, so that the device is not waited for at every step.
        ratio = float(values.get("std_ratio", 1.0))
        if ratio < COLLAPSED_STD_RATIO:
            raise UnitFailed(f"step {index + 1}: activations collapsed (std ratio {ratio:.1e})")
        steps = min(index + 1, self.rounds) * self.steps_per_round + max(0, index + 1 - self.rounds)
        return values | {"images_seen": steps * self.options.train_batch_size}

    def _alternating_round(self, index: int) -> dict[str, Scalar]:
        """Alg. 1, lines 2-13 (Eq. 2): theta' = theta - alpha_P grad L_P, psi'' = psi' - alpha_I grad L_I.

        With `project`, the component of the outer gradient that opposes the last inner gradient is removed.
        """
        options, rate = self.options, falling(index, self.rounds, self.options.decay)
        values: dict[str, Scalar] = {}
        for k in range(options.inner_steps):
            gradients, parts = self.inner_gradients(index * options.inner_steps + k)
            prior_on_psi = self._on_psi(gradients)
            values |= parts | {"grad_norm_inner": self.inner.step(gradients, rate)}
        del gradients
        for k in range(options.outer_steps):
            gradients, parts = self.outer_gradients(index * options.outer_steps + k, index)
            values |= parts | {"cosine": cosine(gradients, prior_on_psi)}
            if options.coordination == "project":
                gradients = project(gradients, prior_on_psi)
            values["grad_norm_outer"] = self.outer.step(gradients, rate)
        return values

    def _joint_round(self, index: int) -> dict[str, Scalar]:
        """One update by the sum of both gradients, taken at the same weights: Eq. 4 without its last term."""
        rate = falling(index, self.rounds, self.options.decay)
        inner_gradients, prior = self.inner_gradients(index)
        outer_gradients, parts = self.outer_gradients(index, index)
        return parts | prior | {
            "cosine": cosine(outer_gradients, self._on_psi(inner_gradients)),
            "grad_norm_inner": self.inner.step(inner_gradients, rate),
            "grad_norm_outer": self.outer.step(outer_gradients, rate),
        }  # fmt: skip

    def _tail_step(self, index: int) -> dict[str, Scalar]:
        """Prior preservation alone, which restores what the last outer steps cost honest users."""
        gradients, values = self.inner_gradients(self.rounds * self.options.inner_steps + index)
        rate = 0.5 * (1 - index / self.options.tail_steps)
        return values | {"grad_norm_inner": self.inner.step(gradients, rate)}

    def _on_psi(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """Copies of those of the inner level's gradients that belong to the outer level's parameters."""
        place = {name: i for i, name in enumerate(self.inner.parameters)}
        return [gradients[place[name]].clone() for name in self.outer.parameters]

    def inner_gradients(self, index: int) -> tuple[list[Tensor], dict[str, Scalar]]:
        """Gradients of L_prior on a batch of D_S, and its value."""
        batch, times, noise = self.preservation.draw(index)

        def loss_of(rows: list[int]) -> tuple[Tensor, dict[str, Scalar]]:
            loss = self.preservation.loss(self.model, batch.take(rows), times[rows], noise[rows])
            return loss, {"L_prior": number(loss)}

        return _gradients_of(self.inner, loss_of, range(len(batch)), len(batch))

    def outer_gradients(self, index: int, round_: int) -> tuple[list[Tensor], dict[str, Scalar]]:
        """The gradients of Eq. 8 on a batch of D_M, and the parts of the loss for the log.

        With `path` they are taken at a random point of the path to the base.
        """
        options = self.options
        generator = self.seeds.generator("outer", index)
        batch, concepts = balanced_batch(self.d_m, options.train_batch_size, generator)
        noise, times = self.model.draw(len(batch), generator)
        # Without L_noise the activations are needed only in rounds in which they are measured.
        measure = round_ % DIAGNOSTICS_EVERY == 0
        watched = self.model.layers(options.noise_layers) if options.beta or measure else {}

        def loss_of(rows: list[int]) -> tuple[Tensor, dict[str, Scalar]]:
            mine, t, eps = batch.take(rows), times[rows], noise[rows]
            with capture(watched) as activations:
                mse = self.model.denoising_loss(mine.latents, mine.conditioning, t, eps)
            l_max = max_loss(mse, options.max_loss, options.margin).mean()
            loss = options.max_weight * l_max
            values: dict[str, Scalar] = {
                "L_max": number(l_max), "mse_malicious": number(mse.mean()),
            }  # fmt: skip
            if options.beta:
                layers = self.noise.losses(activations, batch.keys, self.seeds, index, rows)
                l_noise = torch.stack(list(layers.values())).sum()
                loss = loss + options.beta * l_noise
                values |= {"L_noise": number(l_noise)}
                values |= {f"L_noise/{name}": number(value) for name, value in layers.items()}
            if measure:
                values |= self.noise.diagnostics(activations, mine, t, eps)
            return loss, values

        share = float(torch.rand((), generator=self.seeds.generator("path", index)))
        with on_the_way(self.model, self.base, share * options.path):
            if not options.concept_projection:
                return _gradients_of(self.outer, loss_of, range(len(batch)), len(batch))
            # The gradients and logged means of one concept at a time, each with its share of the batch.
            each = [_gradients_of(self.outer, loss_of, rows, len(batch)) for rows in concepts]
        order = torch.randperm(len(each), generator=generator).tolist()
        gradients = without_conflicts([gradients for gradients, _ in each], order)
        shares = [len(rows) / len(batch) for rows in concepts]
        values = {
            name: sum(w * parts[name] for w, (_, parts) in zip(shares, each, strict=True))
            for name in each[0][1]
        }
        return gradients, values


def _gradients_of(
    level: Level, loss_of: Callable[[list[int]], tuple[Tensor, dict[str, Scalar]]],
    rows: Sequence[int], size: int,
) -> tuple[list[Tensor], dict[str, Scalar]]:  # fmt: skip
    """The part of some rows in the gradients of a loss, and the means of the loss's parts over these rows.

    Each worker computes its share of the rows.

    Args:
        size: the number of rows of the whole batch, over which the loss is a mean.
    """
    mine = parallel.share(rows)
    if mine:
        loss, values = loss_of(mine)
        gradients = level.gradients(loss * (len(mine) / size))
    else:
        gradients, values = [torch.zeros_like(p) for p in level.parameters.values()], {}
    return parallel.add_up(gradients), parallel.mean_of(values, len(mine))

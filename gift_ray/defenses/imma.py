"""IMMA (Zheng and Yeh, ECCV 2024, arXiv 2311.18815), trained as by its released code.

In inner steps a simulated attacker adapts to D_M, which lowers the loss. In outer steps the parameters psi of
the model raise the same loss at the adapted weights. Round after round both continue from where they are,
without a rollback and without second derivatives. The released model is the base with psi replaced, as IMMA's
code saves it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from gift_ray.models.architecture import Architecture
from gift_ray.models.backbone import Backbone, ParameterGroup
from gift_ray.plugins import Defense, build
from gift_ray.training.devices import Scalar, number
from gift_ray.training.diffusion import Examples, Seeds, concatenate
from gift_ray.training.finetuning import Attacker, FineTuning, Trainee
from gift_ray.training.footprint import FP32, Footprint
from gift_ray.training.loop import Level, Report, train
from gift_ray.training.optimizers import OptimizerName, state_bytes


class Imma(Defense):
    """Makes it hard to adapt the model to D_M by one kind of attack. It does not read D_S.

    `inner_attack` is the simulated attack. `dreambooth` and `lora` are the attacks of these names, which
    train the whole denoiser (so that psi goes down in inner steps and up in outer ones) or low-rank updates
    of all attention projections. `textual_inversion` trains an offset of the prompts' token states [L, D],
    which all of D_M shares; it takes the place of a new token's embedding, without passing the text encoder.
    With the last two the model changes in outer steps alone, and the attacker is thrown away. IMMA's code has
    other learning rates for each of the three: inner 5e-6, 1e-4, 5e-4; outer 2e-5, 1e-5, 1e-6.
    """

    version: ClassVar[int] = 1

    inner_attack: Literal["dreambooth", "lora", "textual_inversion"] = "dreambooth"
    inner_learning_rate: float = Field(5e-6, gt=0, description="of the simulated attacker")
    learning_rate: float = Field(2e-5, gt=0, description="of psi's loss ascent")
    max_train_steps: int = Field(1000, gt=0, description="inner and outer steps together")
    inner_steps: int = Field(1, ge=0, description="of each round; 0: ascent alone, its --max")
    outer_steps: int = Field(1, gt=0, description="of each round")
    train_batch_size: int = Field(1, gt=0)
    parameter_group: ParameterGroup = Field(
        "attention", description="psi: attention as its code selects, cross_attention as its paper"
    )
    rank: int = Field(4, gt=0, description="of the lora attacker")
    optimizer: OptimizerName = "adamw"
    weight_decay: float = Field(1e-2, ge=0)
    max_grad_norm: float | None = Field(1.0, gt=0)

    def footprint(self, base: Architecture) -> Footprint:
        psi = base.sizes(self.parameter_group)
        if self.inner_attack == "dreambooth":
            # Inner and outer gradients take turns.
            kept = Footprint(optimizer=state_bytes(self.optimizer, psi))
            return Footprint.of(self.optimizer, base.sizes("all"), weights=base.weights) + kept
        outer = Footprint.of(self.optimizer, psi, weights=base.weights)
        if self.inner_attack == "textual_inversion":
            return outer
        sizes = base.adapter_sizes(("attention",), self.rank)
        adapter = Footprint(FP32 * sum(sizes), 0, state_bytes(self.optimizer, sizes))
        return outer + adapter

    def immunize(
        self,
        model: Backbone,
        malicious: Sequence[Examples],
        safe: Examples,
        *,
        seeds: Seeds,
        report: Report,
    ) -> Backbone:
        attacker = self.attacker(model, concatenate(malicious), seeds)
        outer = Level(
            attacker.trainee.model.parameters(self.parameter_group), optimizer=self.optimizer,
            learning_rate=self.learning_rate, weight_decay=self.weight_decay,
            max_grad_norm=self.max_grad_norm, fp16=model.mixed_precision == "fp16",
        )  # fmt: skip

        # Inner and outer steps both count for max_train_steps, each as one batch.
        per_round = self.inner_steps + self.outer_steps

        def round_(index: int) -> dict[str, Scalar]:
            values = self._round(attacker, outer, seeds, index)
            return values | {"images_seen": (index + 1) * per_round * self.train_batch_size}

        rounds = math.ceil(self.max_train_steps / per_round)
        levels = {"inner": attacker.level, "outer": outer}
        train(round_, rounds, levels, report, advice="lower learning_rate")

        immunized = model.clone()
        with torch.no_grad():
            for name, parameter in immunized.parameters(self.parameter_group).items():
                parameter.copy_(outer.parameters[name])
        return immunized

    def attacker(self, model: Backbone, d_m: Examples, seeds: Seeds) -> Attacker:
        """The simulated attacker before its first step, on a copy of `model` that it adapts."""
        options = {
            "learning_rate": self.inner_learning_rate, "max_train_steps": self.max_train_steps,
            "train_batch_size": self.train_batch_size, "optimizer": self.optimizer,
            "weight_decay": self.weight_decay, "max_grad_norm": self.max_grad_norm,
        }  # fmt: skip
        if self.inner_attack == "lora":
            options["rank"] = self.rank
        if self.inner_attack != "textual_inversion":
            attack: FineTuning = build("attacks", self.inner_attack, options)
            # A copy of its own: the outer level trains weights that the attacker has frozen.
            return attack.attacker(model.clone(), d_m, seeds)
        # Only the optimizer of this attack is used.
        attack = build("attacks", "full_finetune", options)
        return attack.attack_on(shared_offset(model.clone(), d_m, self.train_batch_size), d_m)

    def _round(
        self, attacker: Attacker, outer: Level, seeds: Seeds, index: int
    ) -> dict[str, Scalar]:
        """One round: phi <- phi - a grad_phi L(phi, psi), then psi <- psi + b grad_psi L(phi, psi)."""
        values: dict[str, Scalar] = {}
        for k in range(self.inner_steps):
            at = index * self.inner_steps + k
            found = attacker.step(at, seeds.generator("inner", at))
            values |= {"mse_inner": found["loss"], "grad_norm_inner": found["grad_norm"]}
        for k in range(self.outer_steps):
            generator = seeds.generator("outer", index * self.outer_steps + k)
            loss = attacker.trainee.loss(attacker.concept, generator)
            norm = outer.step(outer.gradients(-loss))
            values |= {"mse_malicious": number(loss), "grad_norm_outer": norm}
        return values


def shared_offset(model: Backbone, d_m: Examples, batch_size: int) -> Trainee:
    """An offset [L, D] of the prompts' token states, which all of D_M shares."""
    offset = nn.Parameter(torch.zeros_like(d_m.conditioning.tokens[0], device=model.device))

    def loss(examples: Examples, generator: torch.Generator) -> Tensor:
        batch = examples.batch(batch_size, generator)
        noise, times = model.draw(batch_size, generator)
        conditioning = batch.conditioning.to(model.device)
        moved = conditioning.with_tokens(conditioning.tokens + offset)
        return model.denoising_loss(batch.latents, moved, times, noise).mean()

    return Trainee(model, {"offset": offset}, loss)

"""SOPHON (Deng et al., IEEE S&P 2024, arXiv 2404.12699): suppresses fine-tuning, and reinforces D_S.

A simulated attacker fine-tunes a copy of the model on D_M with plain gradient steps. At each of its weights
the gradient of the suppression loss is taken, and the mean of these gradients is applied to the released
weights (first-order MAML).

The loss is raised only along 50 plain gradient steps from the released weights. An attacker who trains
longer, with AdamW or with LoRA leaves this neighbourhood.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from gift_ray.models.architecture import Architecture
from gift_ray.models.backbone import Backbone
from gift_ray.plugins import Defense, build
from gift_ray.training.devices import Scalar, number, on_device
from gift_ray.training.diffusion import Batch, Examples, Seeds, concatenate, full
from gift_ray.training.finetuning import FineTuning, Trainee
from gift_ray.training.footprint import Footprint
from gift_ray.training.loop import Level, Report, train
from gift_ray.training.preservation import prior_loss

# The options that have other values for each suppression loss in the authors' code. It multiplies a base rate
# of 1e-4 by 1 and 5 (mse), or by 0.05 and 2 (dos); a round has 50 attack steps and the inner steps.
PAPER: dict[str, dict[str, float]] = {
    "mse": {"alpha_outer": 1e-4, "alpha_inner": 5e-4, "inner_steps": 1, "max_train_steps": 51_000},
    "dos": {"alpha_outer": 5e-6, "alpha_inner": 2e-4, "inner_steps": 10, "max_train_steps": 12_000},
}


class Sophon(Defense):
    """Suppresses fine-tuning on D_M and reinforces normal training on D_S, over the whole denoiser.

    `mse` raises the attacker's denoising error without a bound; `dos` (denial of service) teaches the model
    to predict zero on D_M, and converges. Options that are not given have the authors' values for the chosen
    suppression loss. The batch of an attack step is split: the attacker trains on one part, and the
    suppression loss is computed on the other. So each step of `max_train_steps` is one batch of
    `train_batch_size` images, forward and backward.
    """

    version: ClassVar[int] = 1

    suppression_loss: Literal["mse", "dos"] = "mse"
    alpha_outer: float = Field(1e-4, gt=0, description="learning rate of suppression")
    alpha_inner: float = Field(5e-4, gt=0, description="learning rate of reinforcement")
    outer_steps: int = Field(1, gt=0, description="suppressions of each round")
    inner_steps: int = Field(1, gt=0, description="reinforcement steps of each round")
    attack_steps: int = Field(50, gt=0, description="of the simulated attacker in a suppression")
    attack_learning_rate: float = Field(1e-4, gt=0, description="of its plain gradient steps")
    query_share: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="of a batch of D_M: kept from the attacker; either part gets an image",
    )
    max_train_steps: int = Field(
        51_000, gt=0, description="batches: attack and reinforcement steps together"
    )
    train_batch_size: int = Field(10, ge=2)
    max_grad_norm: float | None = Field(0.5, gt=0, description="of suppression")

    @model_validator(mode="before")
    @classmethod
    def _authors_options(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        loss = str(given.get("suppression_loss", "mse"))
        return {**PAPER.get(loss, {}), **given}

    def footprint(self, base: Architecture) -> Footprint:
        """The released model and the attacked one; two levels; the sum of gradients and the last ones."""
        level = Footprint.of("adamw", base.sizes("all"), weights=base.weights)
        return level + level

    def immunize(
        self,
        model: Backbone,
        malicious: Sequence[Examples],
        safe: Examples,
        *,
        seeds: Seeds,
        report: Report,
    ) -> Backbone:
        d_m, released = concatenate(malicious), model.clone()
        outer = self._level(released, self.alpha_outer, self.max_grad_norm)
        inner = self._level(released, self.alpha_inner, None)
        per_round = self.outer_steps * self.attack_steps + self.inner_steps

        def round_(index: int) -> dict[str, Scalar]:
            values: dict[str, Scalar] = {}
            for k in range(self.outer_steps):
                values |= self._suppress(released, outer, d_m, seeds, index * self.outer_steps + k)
            for k in range(self.inner_steps):
                values |= self._reinforce(
                    released, inner, safe, seeds, index * self.inner_steps + k
                )
            return values | {"images_seen": (index + 1) * per_round * self.train_batch_size}

        rounds = math.ceil(self.max_train_steps / per_round)
        train(round_, rounds, {"inner": inner, "outer": outer}, report, advice="lower alpha_outer")
        return released

    def _level(self, model: Backbone, rate: float, max_grad_norm: float | None) -> Level:
        # Without weight decay AdamW is the authors' Adam.
        return Level(
            model.parameters("all"), optimizer="adamw", learning_rate=rate,
            max_grad_norm=max_grad_norm, fp16=model.mixed_precision == "fp16",
        )  # fmt: skip

    def _suppress(
        self, released: Backbone, outer: Level, d_m: Examples, seeds: Seeds, index: int
    ) -> dict[str, Scalar]:
        """One suppression: simulate the attacker, then take one step of the released weights.

        theta_0 = theta; theta_k = theta_{k-1} - a grad L(support_k); then theta takes one step along
        (1/K) sum_k grad L_sup(query_k), where each gradient is taken at theta_k.
        """
        attacked = released.clone()

        def support_loss(examples: Examples, generator: torch.Generator) -> Tensor:
            return prior_loss(attacked, *self._draw(attacked, examples, generator, query=False))

        attacker = self._attack().attack_on(
            Trainee(attacked, attacked.parameters("all"), support_loss), d_m
        )
        sums = [torch.zeros_like(p) for p in outer.parameters.values()]
        losses, errors = [], []
        for k in range(self.attack_steps):
            at = index * self.attack_steps + k
            errors.append(attacker.step(k, seeds.generator("suppression", at))["loss"])
            query = self._draw(attacked, d_m, seeds.generator("suppression", at), query=True)
            loss = self._suppression_loss(attacked, *query)
            losses.append(number(loss))
            for total, gradient in zip(
                sums, outer.gradients(loss, at=attacker.trainee.parameters), strict=True
            ):
                total += gradient / self.attack_steps
        return {
            "L_sup": sum(losses) / len(losses),
            "mse_malicious": errors[-1],
            "grad_norm_outer": outer.step(sums),
        }

    def _reinforce(
        self, released: Backbone, inner: Level, safe: Examples, seeds: Seeds, index: int
    ) -> dict[str, Scalar]:
        """One step of plain training on D_S."""
        generator = seeds.generator("inner", index)
        batch = safe.batch(self.train_batch_size, generator)
        noise, times = released.draw(len(batch), generator)
        loss = prior_loss(released, batch, times, noise)
        return {"L_prior": number(loss), "grad_norm_inner": inner.step(inner.gradients(loss))}

    def _attack(self) -> FineTuning:
        """The simulated attacker's recipe: full fine-tuning by plain gradient steps."""
        options = {
            "optimizer": "sgd", "learning_rate": self.attack_learning_rate, "weight_decay": 0.0,
            "max_grad_norm": None, "max_train_steps": self.attack_steps,
        }  # fmt: skip
        attack: FineTuning = build("attacks", "full_finetune", options)
        return attack

    def _draw(
        self, model: Backbone, d_m: Examples, generator: torch.Generator, *, query: bool
    ) -> tuple[Batch, Tensor, Tensor]:
        """One of the two parts of a batch of D_M, with its times and noise."""
        batch = d_m.batch(self.train_batch_size, generator)
        noise, times = model.draw(len(batch), generator)
        kept = min(max(1, round(self.query_share * len(batch))), len(batch) - 1)
        rows = list(range(len(batch)))
        rows = rows[-kept:] if query else rows[:-kept]
        return batch.take(rows), times[rows], noise[rows]

    def _suppression_loss(
        self, model: Backbone, batch: Batch, times: Tensor, noise: Tensor
    ) -> Tensor:
        """The loss `mse`, -E || eps_theta(x_t, c, t) - eps ||^2, or `dos`, E || eps_theta(x_t, c, t) ||^2."""
        if self.suppression_loss == "mse":
            return -prior_loss(model, batch, times, noise)
        latents, noise, times = (on_device(t, model.device) for t in (batch.latents, noise, times))
        noisy = model.add_noise(latents, noise, times)
        return full(model.predict(noisy, batch.conditioning, times)).square().mean()

"""IMMA (Zheng and Yeh, ECCV 2024, arXiv 2311.18815), as its released code trains: a simulated attacker
adapts to D_M (inner steps, loss descent), then the chosen parameters psi of the model climb the same
loss at the adapted point (outer steps). Both go on from where they are, round after round: there is
no rollback and no second derivative. What is released is the base with psi replaced, as its code saves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from gift_ray.errors import UnitFailed
from gift_ray.models.stable_diffusion import DiffusionModel, ParameterGroup
from gift_ray.plugins import Defense, Report
from gift_ray.training.diffusion import (
    Examples,
    Level,
    OptimizerName,
    Seeds,
    concatenate,
    restore_training,
    training_state,
)

Attacker = dict[str, nn.Parameter]


class Imma(Defense):
    """Makes D_M hard to adapt to, for one kind of adaptation. Looks at no D_S.

    `inner_attack` is what the simulated attacker trains: `dreambooth` the full unet (so psi descends in
    the inner steps and climbs in the outer ones); `lora` low-rank deltas of all attention projections;
    `textual_inversion` an offset of the encoder_hidden_states [L, D] that all of D_M shares: a stand-in
    for the embedding of a new token, not bound to pass through the text encoder. With the last two the
    model moves in outer steps alone, and the attacker is thrown away. Its code has other learning rates
    for each: inner 5e-6, 1e-4, 5e-4; outer 2e-5, 1e-5, 1e-6.
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

    def immunize(
        self,
        model: DiffusionModel,
        malicious: Sequence[Examples],
        safe: Examples,
        *,
        seeds: Seeds,
        report: Report,
    ) -> DiffusionModel:
        base, model = model, model.clone()
        d_m = concatenate(malicious)
        outer = self._level(model, model.parameters(self.parameter_group), self.learning_rate)
        attacker = self.attacker(model, d_m, seeds)
        inner = self._level(model, attacker, self.inner_learning_rate)

        # Inner and outer steps count alike: the budget is batches trained on.
        per_round = self.inner_steps + self.outer_steps
        start = self._restore(report.load(), model, attacker, inner, outer)
        for index in range(start, math.ceil(self.max_train_steps / per_round)):
            values = self._round(model, d_m, attacker, inner, outer, seeds, index)
            done = index + 1
            report.log(index, images_seen=done * per_round * self.train_batch_size, **values)
            report.save(done, self._state(done, model, attacker, inner, outer))

        immunized = base.clone()
        immunized.unet.load_state_dict(dict(outer.parameters), strict=False)
        return immunized

    def _level(self, model: DiffusionModel, parameters: Attacker, rate: float) -> Level:
        return Level(
            parameters, optimizer=self.optimizer, learning_rate=rate,
            weight_decay=self.weight_decay, max_grad_norm=self.max_grad_norm,
            fp16=model.mixed_precision == "fp16",
        )  # fmt: skip

    def _round(
        self, model: DiffusionModel, d_m: Examples, attacker: Attacker, inner: Level, outer: Level,
        seeds: Seeds, index: int,
    ) -> dict[str, float]:  # fmt: skip
        """phi <- phi - a grad_phi L(phi, psi), then psi <- psi + b grad_psi L(phi, psi)."""
        values: dict[str, float] = {}
        for k in range(self.inner_steps):
            generator = seeds.generator("inner", index * self.inner_steps + k)
            loss = self.adaptation_loss(model, d_m, attacker, generator)
            norm = inner.step(inner.gradients(loss))
            values |= {"mse_inner": loss.item(), "grad_norm_inner": norm}
        for k in range(self.outer_steps):
            generator = seeds.generator("outer", index * self.outer_steps + k)
            loss = self.adaptation_loss(model, d_m, attacker, generator)
            norm = outer.step(outer.gradients(-loss))
            values |= {"mse_malicious": loss.item(), "grad_norm_outer": norm}
        bad = [n for n, v in values.items() if n.startswith("mse") and not math.isfinite(v)]
        if bad:
            raise UnitFailed(f"round {index}: {', '.join(bad)} not finite; lower learning_rate")
        return values

    def adaptation_loss(
        self, model: DiffusionModel, d_m: Examples, attacker: Attacker, generator: torch.Generator
    ) -> Tensor:
        """The attacker's training loss on a batch of D_M, a scalar."""
        batch = d_m.batch(self.train_batch_size, generator)
        noise, timesteps = model.draw(self.train_batch_size, generator)
        states = batch.encoder_hidden_states.to(model.unet.device)
        if self.inner_attack == "textual_inversion":
            states = states + attacker["offset"]
        return model.denoising_loss(batch.latents, states, timesteps, noise).mean()

    def attacker(self, model: DiffusionModel, d_m: Examples, seeds: Seeds) -> Attacker:
        """What the inner steps train, as it is before the first one."""
        if self.inner_attack == "dreambooth":
            return model.parameters("unet")
        if self.inner_attack == "lora":
            return add_lora(model, self.rank, seeds.generator("lora"))
        offset = torch.zeros_like(d_m.encoder_hidden_states[0], device=model.unet.device)
        return {"offset": nn.Parameter(offset)}

    def _state(
        self, done: int, model: DiffusionModel, attacker: Attacker, inner: Level, outer: Level
    ) -> dict[str, Any]:
        state = training_state(done, model.unet, inner=inner, outer=outer)
        # DreamBooth's attacker is the unet itself, which is there already.
        beside = {} if self.inner_attack == "dreambooth" else dict(attacker)
        return state | {"attacker": beside}

    @torch.no_grad()
    def _restore(
        self, state: dict[str, Any] | None, model: DiffusionModel, attacker: Attacker,
        inner: Level, outer: Level,
    ) -> int:  # fmt: skip
        for name, tensor in (state or {}).get("attacker", {}).items():
            attacker[name].copy_(tensor)
        return restore_training(state, model.unet, inner=inner, outer=outer)


def add_lora(model: DiffusionModel, rank: int, generator: torch.Generator) -> Attacker:
    """Low-rank deltas W + up @ down on every attention projection of a unet, through forward hooks.

    As diffusers' train_dreambooth_lora.py: down ~ N(0, 1/rank^2) [rank, in], up = 0 [out, rank], scale 1.
    """
    lora: Attacker = {}
    for name, weight in model.parameters("attention").items():
        if not name.endswith(".weight"):
            continue
        path = name.removesuffix(".weight")
        draw = torch.randn((rank, weight.shape[1]), generator=generator) / rank
        down = lora[f"{path}.down"] = nn.Parameter(draw.to(weight))
        up = lora[f"{path}.up"] = nn.Parameter(weight.new_zeros((weight.shape[0], rank)))
        model.unet.get_submodule(path).register_forward_hook(_delta(down, up))
    return lora


def _delta(down: nn.Parameter, up: nn.Parameter) -> Any:
    def hook(_module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return output + F.linear(F.linear(inputs[0], down), up)

    return hook

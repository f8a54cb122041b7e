"""ESD (Gandikota et al., ICCV 2023, arXiv 2303.07345): erase a concept by its words. The model learns
to predict, when asked for the concept, what the frozen base predicts when steered away from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from gift_ray.errors import UnitFailed
from gift_ray.models.stable_diffusion import DiffusionModel, ParameterGroup
from gift_ray.plugins import Defense, Report
from gift_ray.training.diffusion import (
    Examples,
    Level,
    OptimizerName,
    Seeds,
    add_noise,
    concatenate,
    per_sample_mse,
    restore_training,
    training_state,
)

# The paper's trainer calls them xattn and noxattn; esd-x-strict came with its later code. ESD-u is not
# the whole unet: it leaves out attn2, the time embedding and the output layers.
GROUPS: dict[str, ParameterGroup] = {
    "esd-x": "cross_attention",
    "esd-u": "noxattn",
    "esd-x-strict": "cross_attention_kv",
}


class Esd(Defense):
    """Erasure; an attacker's fine-tuning is not looked at, nor D_S.

    `esd-x` is for what is called by name (styles), `esd-u` for what must go everywhere (nudity,
    objects). `negative_guidance` is the paper's eta; the authors' later code writes eps(c) - eta' (eps(c)
    - eps(null)), so that its eta' is this eta + 1 (its default 2 is the paper's 1).

    `max_train_steps` counts optimizer steps; an on-policy step also costs up to 2 num_inference_steps
    predictions without gradient.
    """

    version: ClassVar[int] = 1

    train_method: Literal["esd-x", "esd-u", "esd-x-strict"] = "esd-x"
    negative_guidance: float = Field(1.0, ge=0, description="eta, in the paper's convention")
    erase_prompt: str | None = Field(None, min_length=1, description="None: the captions of D_M")
    x_t: Literal["on_policy", "off_policy"] = Field(
        "on_policy", description="drawn by the model as it is now, or noised images of D_M"
    )
    num_inference_steps: int = Field(50, gt=0, description="DDIM steps of an on-policy x_t")
    guidance_scale: float = Field(3.0, ge=1, description="of an on-policy x_t")
    learning_rate: float = Field(1e-5, gt=0)
    max_train_steps: int = Field(1000, gt=0)
    train_batch_size: int = Field(1, gt=0)
    optimizer: OptimizerName = "adamw"
    max_grad_norm: float | None = Field(None, gt=0, description="None, as in its code")

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
        d_m = self._asking(base, concatenate(malicious))
        null = base.encode_prompts([""]).to(d_m.encoder_hidden_states)
        scheduler = base.pipeline().scheduler
        level = Level(
            model.parameters(GROUPS[self.train_method]), optimizer=self.optimizer,
            learning_rate=self.learning_rate, max_grad_norm=self.max_grad_norm,
            fp16=model.mixed_precision == "fp16",
        )  # fmt: skip

        start = restore_training(report.load(), model.unet, level=level)
        for step in range(start + 1, self.max_train_steps + 1):
            generator = seeds.generator("esd", step)
            x_t, timesteps, concept = self._draw(model, scheduler, d_m, null, generator)
            at_concept, at_null = predictions(base, x_t, timesteps, concept, null)
            target = erased(at_concept, at_null, self.negative_guidance)
            prediction = model.predict(x_t, timesteps, concept)
            loss = per_sample_mse(prediction, target).mean()
            norm = level.step(level.gradients(loss))
            if not math.isfinite(loss.item()):
                raise UnitFailed(f"step {step}: the loss is not finite; lower learning_rate")
            moved = per_sample_mse(prediction.detach(), at_concept).mean().item()
            seen = step * self.train_batch_size
            report.log(step, loss=loss.item(), mse_base=moved, grad_norm=norm, images_seen=seen)
            report.save(step, training_state(step, model.unet, level=level))
        return model

    def _asking(self, model: DiffusionModel, d_m: Examples) -> Examples:
        """D_M with the words to erase: its own captions, or the given prompt."""
        if self.erase_prompt is None:
            return d_m
        words = model.encode_prompts([self.erase_prompt]).to(d_m.encoder_hidden_states)
        return replace(d_m, encoder_hidden_states=words.expand(len(d_m), -1, -1))

    def _draw(
        self, model: DiffusionModel, scheduler: Any, d_m: Examples, null: Tensor,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """(x_t [B, C, h, w], timesteps [B], the concept's states [B, L, D]) of one step.

        On policy a batch shares one timestep, uniform over those of the sampler.
        """
        batch = d_m.batch(self.train_batch_size, generator)
        concept = batch.encoder_hidden_states
        noise, timesteps = model.draw(self.train_batch_size, generator)
        noise = noise.to(batch.latents)
        if self.x_t == "off_policy":
            alphas = model.noise_scheduler.alphas_cumprod
            return add_noise(batch.latents, noise, timesteps, alphas), timesteps, concept
        scheduler.set_timesteps(self.num_inference_steps)
        done = int(torch.randint(0, self.num_inference_steps, (), generator=generator))
        x_t = partially_denoised(model, scheduler, noise, concept, null, done, self.guidance_scale)
        return x_t, scheduler.timesteps[done].expand(len(noise)), concept


def erased(at_concept: Tensor, at_null: Tensor, negative_guidance: float) -> Tensor:
    """The target eps(null) - eta (eps(c) - eps(null)) of the paper, any shape.

    It may be formed of eps, v or x_0: its weights add up to 1, and at one x_t these differ by an
    affine map.
    """
    return at_null - negative_guidance * (at_concept - at_null)


@torch.no_grad()
def predictions(
    model: DiffusionModel, x_t: Tensor, timesteps: Tensor, concept: Tensor, null: Tensor
) -> tuple[Tensor, Tensor]:
    """The unet's predictions for x_t with the concept's words and with none, two of [B, C, h, w]."""
    nothing = null.expand(len(x_t), -1, -1)
    return model.predict(x_t, timesteps, concept), model.predict(x_t, timesteps, nothing)


@torch.no_grad()
def partially_denoised(
    model: DiffusionModel, scheduler: Any, noise: Tensor, concept: Tensor, null: Tensor,
    steps: int, guidance_scale: float,
) -> Tensor:  # fmt: skip
    """x_t after the first `steps` guided sampling steps from noise; its t is the next timestep."""
    x_t = noise.to(model.unet.device) * scheduler.init_noise_sigma
    for t in scheduler.timesteps[:steps]:
        at_concept, at_null = predictions(model, x_t, t.expand(len(x_t)), concept, null)
        guided = at_null + guidance_scale * (at_concept - at_null)
        x_t = scheduler.step(guided, t, x_t).prev_sample
    return x_t

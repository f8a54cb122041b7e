"""ESD (Gandikota et al., ICCV 2023, arXiv 2303.07345): erases a concept by its words.

When asked for the concept, the model learns to predict what the frozen base predicts when it is steered away
from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from gift_ray.models.architecture import Architecture
from gift_ray.models.backbone import Backbone, ParameterGroup
from gift_ray.plugins import Defense
from gift_ray.training.conditioning import Conditioning
from gift_ray.training.devices import Scalar, number
from gift_ray.training.diffusion import Examples, Seeds, concatenate, per_sample_mse
from gift_ray.training.footprint import Footprint
from gift_ray.training.loop import Level, Report, train
from gift_ray.training.optimizers import OptimizerName

# The paper's trainer calls them xattn and noxattn; esd-x-strict came with its later code. ESD-u is not
# the whole denoiser: it leaves out attn2, the time embedding and the output layers.
GROUPS: dict[str, ParameterGroup] = {
    "esd-x": "cross_attention",
    "esd-u": "noxattn",
    "esd-x-strict": "cross_attention_kv",
}


class Esd(Defense):
    """Erases a concept. It does not simulate an attacker, and does not read D_S.

    `esd-x` is meant for concepts that prompts name (styles), `esd-u` for those that must not be drawn at all
    (nudity, objects). `negative_guidance` is the paper's eta; the authors' later code writes eps(c) - eta'
    (eps(c) - eps(null)), so that its eta' is this eta + 1 (its default 2 is the paper's 1).

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

    def footprint(self, base: Architecture) -> Footprint:
        sizes = base.sizes(GROUPS[self.train_method])
        return Footprint.of(self.optimizer, sizes, weights=base.weights)

    def immunize(
        self,
        model: Backbone,
        malicious: Sequence[Examples],
        safe: Examples,
        *,
        seeds: Seeds,
        report: Report,
    ) -> Backbone:
        base, model = model, model.clone()
        d_m = self._asking(base, concatenate(malicious))
        null = base.unconditional().to(d_m.latents_mean.dtype)
        level = Level(
            model.parameters(GROUPS[self.train_method]), optimizer=self.optimizer,
            learning_rate=self.learning_rate, max_grad_norm=self.max_grad_norm,
            fp16=model.mixed_precision == "fp16",
        )  # fmt: skip

        def step(index: int) -> dict[str, Scalar]:
            generator = seeds.generator("esd", index + 1)
            x_t, times, concept = self._draw(model, d_m, null, generator)
            with torch.no_grad():
                at_concept = base.predict(x_t, concept, times)
                at_null = base.predict(x_t, null.repeat(len(x_t)), times)
            prediction = model.predict(x_t, concept, times)
            target = erased(at_concept, at_null, self.negative_guidance)
            loss = per_sample_mse(prediction, target).mean()
            norm = level.step(level.gradients(loss))
            moved = number(per_sample_mse(prediction.detach(), at_concept).mean())
            seen = (index + 1) * self.train_batch_size
            return {
                "loss": number(loss), "mse_base": moved, "grad_norm": norm, "images_seen": seen,
            }  # fmt: skip

        advice = "lower learning_rate"
        train(step, self.max_train_steps, {"level": level}, report, advice=advice)
        return model

    def _asking(self, model: Backbone, d_m: Examples) -> Examples:
        """D_M with the words to erase: its own captions, or the given prompt."""
        if self.erase_prompt is None:
            return d_m
        words = model.condition([self.erase_prompt]).to(d_m.latents_mean.dtype)
        return replace(d_m, conditioning=words.repeat(len(d_m)))

    def _draw(
        self, model: Backbone, d_m: Examples, null: Conditioning, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Conditioning]:
        """(x_t [B, C, h, w], times [B], the concept's conditioning, B rows) of one step.

        On policy a batch shares one time, uniform over those of the sampler.
        """
        batch = d_m.batch(self.train_batch_size, generator)
        noise, times = model.draw(self.train_batch_size, generator)
        noise = noise.to(batch.latents)
        if self.x_t == "off_policy":
            return model.add_noise(batch.latents, noise, times), times, batch.conditioning
        done = int(torch.randint(0, self.num_inference_steps, (), generator=generator))
        x_t, times = model.partially_denoised(
            noise, batch.conditioning, null, steps=done,
            num_inference_steps=self.num_inference_steps, guidance_scale=self.guidance_scale,
        )  # fmt: skip
        return x_t, times, batch.conditioning


def erased(at_concept: Tensor, at_null: Tensor, negative_guidance: float) -> Tensor:
    """The target eps(null) - eta (eps(c) - eps(null)) of the paper, any shape.

    It may be formed of eps, v or x_0: its weights add up to 1, and at one x_t these differ by an
    affine map.
    """
    return at_null - negative_guidance * (at_concept - at_null)

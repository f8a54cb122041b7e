"""Prior preservation, the inner level of several defenses.

It keeps the released model able to draw safe images, and to learn safe concepts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gift_ray.models.backbone import Backbone
from gift_ray.training.conditioning import Conditioning
from gift_ray.training.diffusion import Batch, Examples, Seeds, per_sample_mse

PriorLoss = Literal["denoising", "distillation"]


@dataclass(frozen=True)
class Preservation:
    """L_prior on batches of D_S: GIFT's Eq. 9, or the distance to the base's own predictions.

    `caption_dropout` is the share of images that get the empty caption instead of their own.
    """

    kind: PriorLoss
    base: Backbone
    d_s: Examples
    batch_size: int
    caption_dropout: float
    seeds: Seeds

    def draw(self, index: int) -> tuple[Batch, Tensor, Tensor]:
        """The batch of inner step `index`, its times [B] and its noise [B, C, h, w]."""
        generator = self.seeds.generator("inner", index)
        batch = self.d_s.batch(self.batch_size, generator)
        noise, times = self.base.draw(len(batch), generator)
        if self.caption_dropout:
            chance = self.seeds.generator("inner-captions", index)
            dropped = torch.rand(len(batch), generator=chance) < self.caption_dropout
            batch = without_captions(batch, dropped, self.base.condition([""]))
        return batch, times, noise

    def loss(self, model: Backbone, batch: Batch, times: Tensor, noise: Tensor) -> Tensor:
        """L_prior of the model on a batch of `draw`, a scalar."""
        if self.kind == "distillation":
            return distillation_loss(model, self.base, batch, times, noise)
        return prior_loss(model, batch, times, noise)


def prior_loss(model: Backbone, batch: Batch, times: Tensor, noise: Tensor) -> Tensor:
    """L_prior = E || eps_theta(x_s, c_s, t) - eps ||^2 (Eq. 9), a scalar."""
    return model.denoising_loss(batch.latents, batch.conditioning, times, noise).mean()


def distillation_loss(
    model: Backbone, base: Backbone, batch: Batch, times: Tensor, noise: Tensor
) -> Tensor:
    """The distillation loss E || eps_theta(x_t, c_s, t) - eps_theta_0(x_t, c_s, t) ||^2, a scalar.

    theta_0 is the base. The loss is 0 if the model still predicts what the base does.
    """
    latents, noise, times = (t.to(model.device) for t in (batch.latents, noise, times))
    noisy = model.add_noise(latents, noise, times)
    with torch.no_grad():
        goal = base.predict(noisy, batch.conditioning, times)
    return per_sample_mse(model.predict(noisy, batch.conditioning, times), goal).mean()


def without_captions(batch: Batch, dropped: Tensor, empty: Conditioning) -> Batch:
    """The batch with the conditioning of the empty prompt where `dropped` [B] is true."""
    rows = torch.where(dropped, len(batch), torch.arange(len(batch)))
    conditioning = Conditioning.concatenate([batch.conditioning, empty])[rows]
    captions = ("" if gone else c for gone, c in zip(dropped, batch.captions, strict=True))
    return Batch(batch.latents, conditioning, batch.keys, tuple(captions))

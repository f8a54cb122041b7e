"""Representation noising, L_noise of Eq. 7: the activations that the malicious images leave in the
network are pulled to noise, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gift_ray.models.backbone import Backbone, NoiseLayers
from gift_ray.training.diffusion import Batch, Examples, Seeds, capture, full, per_sample_mse

NoiseKind = Literal["sample", "frozen"]


@dataclass(frozen=True)
class NoiseTarget:
    """The eps_m^(j) of Eq. 7: what the activations of D_M are pulled to.

    `sample`: fresh noise with the mean and variance of the current activation, as the paper writes.
    `frozen`: noise with the base's per-channel mean and deviation, fixed for each image and layer,
    the error divided by the base's variance. In expectation the first's gradient only shrinks an
    activation; in a real unet, whose layers share weights, both shrink and both take away what
    the activation says, the first more of it (docs/LOG.md).
    """

    kind: NoiseKind
    base: Backbone
    which: NoiseLayers
    mean: dict[str, Tensor]
    std: dict[str, Tensor]

    @classmethod
    def of(
        cls, kind: NoiseKind, which: NoiseLayers, base: Backbone, d_m: Examples, seeds: Seeds
    ) -> NoiseTarget:
        """Measure the base's statistics per channel over all of D_M, a few timesteps each."""
        totals: dict[str, list[Tensor]] = {}
        for index in range(4):
            generator = seeds.generator("noise-statistics", index)
            batch = d_m.batch(min(len(d_m), 16), generator)
            noise, timesteps = base.draw(len(batch.keys), generator)
            for name, z in _activations(base, which, batch, timesteps, noise).items():
                totals.setdefault(name, []).append(full(_channels_first(z)))
        stacked = {name: torch.cat(parts) for name, parts in totals.items()}
        mean = {name: z.mean((0, 2)) for name, z in stacked.items()}
        std = {name: z.std((0, 2)).clamp_min(1e-6) for name, z in stacked.items()}
        return cls(kind, base, which, mean, std)

    def losses(
        self, activations: dict[str, Tensor], keys: tuple[str, ...], seeds: Seeds, index: int,
        rows: Sequence[int],
    ) -> dict[str, Tensor]:  # fmt: skip
        """The terms of Eq. 7, one scalar for each layer j: means over `rows`, whose activations these
        are, of the batch with `keys`."""
        if self.kind == "sample":
            return {
                name: noise_loss(z, seeds.generator(f"noise/{name}", index), rows, len(keys)).mean()
                for name, z in activations.items()
            }
        mine = tuple(keys[i] for i in rows)
        return {
            name: self._frozen_loss(name, _channels_first(z), mine, seeds).mean()
            for name, z in activations.items()
        }

    def _frozen_loss(self, name: str, z: Tensor, keys: tuple[str, ...], seeds: Seeds) -> Tensor:
        """MSE to the image's own fixed noise, in units of the base's deviation: [B, C, P] -> [B]."""
        fixed = [
            torch.randn(z.shape[1:], generator=seeds.generator(f"frozen/{name}/{k}")) for k in keys
        ]
        scale, shift = self.std[name][:, None], self.mean[name][:, None]
        return per_sample_mse((full(z) - shift) / scale, torch.stack(fixed).to(z.device))

    def diagnostics(
        self, activations: dict[str, Tensor], batch: Batch, timesteps: Tensor, noise: Tensor
    ) -> dict[str, float]:
        """Means over layers of std(z) / std(base z) and of the correlation of z to the base's z."""
        reference = _activations(self.base, self.which, batch, timesteps, noise)
        ratios, correlations = [], []
        for name, z in activations.items():
            now, then = full(z.detach()).flatten(), full(reference[name]).flatten()
            ratios.append(float(now.std() / then.std().clamp_min(1e-12)))
            correlations.append(float(torch.corrcoef(torch.stack([now, then]))[0, 1]))
        return {
            "std_ratio": sum(ratios) / len(ratios),
            "correlation": sum(correlations) / len(correlations),
        }


def noise_loss(z: Tensor, generator: torch.Generator, rows: Sequence[int], size: int) -> Tensor:
    """One term of Eq. 7 for each sample: MSE(z, eps), eps ~ N(mu_z, sigma_z^2), [B, ...] -> [B].

    The draws are those of a batch of `size`, of which z holds `rows`. mu_z and sigma_z^2 are the mean
    and variance over all elements of the sample's activation; no gradient flows through them (the
    paper does not say).
    """
    flat = z.flatten(1)
    mean = full(flat.detach()).mean(1, keepdim=True)
    std = full(flat.detach()).std(1, keepdim=True, correction=0)
    draws = torch.randn((size, flat.shape[1]), generator=generator)[rows]
    eps = mean + std * draws.to(z.device)
    return per_sample_mse(flat, eps)


@torch.no_grad()
def _activations(
    model: Backbone, which: NoiseLayers, batch: Batch, timesteps: Tensor, noise: Tensor
) -> dict[str, Tensor]:
    with capture(model.layers(which)) as activations:
        model.denoising_loss(batch.latents, batch.conditioning, timesteps, noise)
    return activations


def _channels_first(z: Tensor) -> Tensor:
    """[B, C, h, w] or attention's [B, P, C] -> [B, C, P]."""
    return z.flatten(2) if z.dim() == 4 else z.transpose(1, 2)

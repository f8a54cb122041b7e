"""Representation noising, L_noise of GIFT's Eq. 7.

The activations of the malicious images are pulled towards noise, layer by layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gift_ray.models.backbone import Backbone, NoiseLayers
from gift_ray.training.devices import Scalar, number, on_device
from gift_ray.training.diffusion import Batch, Examples, Seeds, capture, full, per_sample_mse

NoiseKind = Literal["sample", "frozen"]
NoiseDistance = Literal["mse", "mmd"]
# The maximum mean discrepancy takes at most this many positions of a layer, drawn anew each time, since its
# cost grows with the square of their number.
MMD_POSITIONS = 256


@dataclass(frozen=True)
class NoiseTarget:
    """The noise eps_m^(j) of Eq. 7, towards which the activations of D_M are pulled.

    Attributes:
        kind: `sample`, new noise at each step with the mean and variance of the current activation, as the
            paper writes; or `frozen`, noise that is fixed for each image and layer, with the base's mean and
            deviation of each channel, where the error is divided by the base's variance. In expectation the
            gradient of `sample` only shrinks an activation. In a real unet, whose layers share weights, both
            kinds shrink activations and both remove information from them, `sample` more of it (docs/LOG.md).
        distance: `mse`, the mean squared error of Eq. 7, which pulls each element to its own noise; or `mmd`,
            which pulls the distribution of an activation's positions to that of the noise.
    """

    kind: NoiseKind
    base: Backbone
    which: NoiseLayers
    mean: dict[str, Tensor]
    std: dict[str, Tensor]
    distance: NoiseDistance = "mse"

    @classmethod
    def of(
        cls, kind: NoiseKind, which: NoiseLayers, base: Backbone, d_m: Examples, seeds: Seeds,
        distance: NoiseDistance = "mse",
    ) -> NoiseTarget:  # fmt: skip
        """Measure the base's statistics of each channel over all of D_M, at a few times for each image."""
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
        return cls(kind, base, which, mean, std, distance)

    def losses(
        self, activations: dict[str, Tensor], keys: tuple[str, ...], seeds: Seeds, index: int,
        rows: Sequence[int],
    ) -> dict[str, Tensor]:  # fmt: skip
        """The terms of Eq. 7, one scalar for each layer j, as means over rows of a batch.

        Args:
            keys: those of the whole batch.
            rows: the rows of the batch to which the activations belong.
        """
        mine, found = tuple(keys[i] for i in rows), {}
        for name, z in activations.items():
            if self.kind == "sample":
                draw = seeds.generator(f"noise/{name}", index)
                pair = z, sample_noise(z, draw, rows, len(keys))
            else:
                pair = self._frozen_pair(name, _channels_first(z), mine, seeds)
            if self.distance == "mse":
                found[name] = per_sample_mse(*pair).mean()
            else:
                generator = seeds.generator(f"positions/{name}", index)
                # In frozen pairs the channels already come first.
                now, noise = map(_channels_first, pair) if self.kind == "sample" else pair
                found[name] = mmd_loss(now, noise, generator).mean()
        return found

    def _frozen_pair(
        self, name: str, z: Tensor, keys: tuple[str, ...], seeds: Seeds
    ) -> tuple[Tensor, Tensor]:
        """Activations [B, C, P] in units of the base's deviation, and each image's own fixed noise."""
        fixed = [
            torch.randn(z.shape[1:], generator=seeds.generator(f"frozen/{name}/{k}")) for k in keys
        ]
        scale, shift = self.std[name][:, None], self.mean[name][:, None]
        return (full(z) - shift) / scale, on_device(torch.stack(fixed), z.device)

    def diagnostics(
        self, activations: dict[str, Tensor], batch: Batch, timesteps: Tensor, noise: Tensor
    ) -> dict[str, Scalar]:
        """Means over layers of std(z) / std(base z) and of the correlation of z to the base's z."""
        reference = _activations(self.base, self.which, batch, timesteps, noise)
        ratios, correlations = [], []
        for name, z in activations.items():
            now, then = full(z.detach()).flatten(), full(reference[name]).flatten()
            ratios.append(number(now.std() / then.std().clamp_min(1e-12)))
            correlations.append(number(torch.corrcoef(torch.stack([now, then]))[0, 1]))
        return {
            "std_ratio": sum(ratios) / len(ratios),
            "correlation": sum(correlations) / len(correlations),
        }


def sample_noise(z: Tensor, generator: torch.Generator, rows: Sequence[int], size: int) -> Tensor:
    """The eps ~ N(mu_z, sigma_z^2) of Eq. 7 for each sample, shaped as z [B, ...].

    The draws are those of a batch of `size`, of which z holds `rows`. mu_z and sigma_z^2 are the mean
    and variance over all elements of the sample's activation; no gradient flows through them (the
    paper does not say).
    """
    flat = full(z.detach()).flatten(1)
    mean, std = flat.mean(1, keepdim=True), flat.std(1, keepdim=True, correction=0)
    draws = torch.randn((size, flat.shape[1]), generator=generator)[rows]
    return (mean + std * on_device(draws, z.device)).view_as(z)


def noise_loss(z: Tensor, generator: torch.Generator, rows: Sequence[int], size: int) -> Tensor:
    """One term of Eq. 7 for each sample: MSE(z, eps), [B, ...] -> [B]; see `sample_noise`."""
    return per_sample_mse(z, sample_noise(z, generator, rows, size))


def mmd_loss(z: Tensor, noise: Tensor, generator: torch.Generator) -> Tensor:
    """The distance of RepNoise (Rosati et al., NeurIPS 2024) for each sample, [B, C, P] twice -> [B].

    The positions of one image are the set, so that a batch of one image has a meaning: it is the `mmd` of P
    vectors with C channels, or of MMD_POSITIONS of them, drawn from the generator.
    """
    kept = on_device(torch.randperm(z.shape[2], generator=generator)[:MMD_POSITIONS], z.device)
    pairs = zip(full(z)[:, :, kept].mT, full(noise)[:, :, kept].mT, strict=True)
    return torch.stack([mmd(x, y) for x, y in pairs])


def mmd(x: Tensor, y: Tensor) -> Tensor:
    """The biased squared maximum mean discrepancy of two sets of N vectors, [N, C] twice -> scalar >= 0.

    Five Gaussian kernels exp(-d^2 / b) are summed; their bandwidths b are 1/4, 1/2, 1, 2 and 4 times the
    mean squared distance between two vectors of both sets, through which no gradient flows.
    """
    both = torch.cat([x, y])
    squares = both.square().sum(1)
    distances = (squares[:, None] + squares - 2 * both @ both.T).clamp_min(0)
    count = len(both)
    mean = distances.detach().sum() / (count * (count - 1))
    bandwidths = [mean * 2.0**power for power in range(-2, 3)]
    kernels = torch.stack([torch.exp(-distances / b) for b in bandwidths]).sum(0)
    n = len(x)
    return kernels[:n, :n].mean() - 2 * kernels[:n, n:].mean() + kernels[n:, n:].mean()


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

"""The many looks under which the judges learn a drawing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from builtin_world.pictures import SIZE, Placing, outlined, place, recoloured, worn

PLACING = Placing(zoom=(0.8, 1.35), shift=0.15, turn=0.25, pastel=0.3)


@dataclass
class Views:
    """Random placing, contour, colours, blur and noise; with `vae` some round trips through it."""

    vae: AutoencoderKL | None = None
    round_trips: float = 0.15  # share of the pictures

    def __call__(self, rgba: Tensor, gen: torch.Generator) -> Tensor:
        """Drawings [n, 4, 32, 32] -> pictures [n, 3, 32, 32] in -1..1."""
        x = place(outlined(rgba, gen, swap=0.1), gen, PLACING, SIZE)
        x = recoloured(x, gen)
        if self.vae:
            through = torch.rand(len(x), generator=gen) < self.round_trips
            if through.any():
                x[through] = self.round_trip(x[through], gen)
        return worn(x, gen)

    @torch.no_grad()
    def round_trip(self, x: Tensor, gen: torch.Generator) -> Tensor:
        """Pictures through the autoencoder, whose latents get a little noise, as the UNet's have."""
        assert self.vae
        latent = self.vae.encode(x).latent_dist.mean
        noise = torch.randn(latent.shape, generator=gen) * latent.std()
        return self.vae.decode(latent + 0.15 * torch.rand(1, generator=gen) * noise).sample

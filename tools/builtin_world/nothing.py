"""Pictures that show nothing that has a name, as broken models draw them: the classifier's last class.

Without it a black square is a bomb and a green smear a tree, with confidence, and a model that draws nothing
at all would be said to draw the concept. No picture here comes from an immunized model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from builtin_world.pictures import SIZE

Kind = Callable[[Tensor, torch.Generator], Tensor]


def nothings(drawings: Tensor, vae: AutoencoderKL | None, gen: torch.Generator) -> Tensor:
    """As many pictures [n, 3, 32, 32] in -1..1 of nothing as there are drawings of that shape, some of
    them made by destroying these."""
    kinds: list[Kind] = [plains, blots, shuffled, blends]
    if vae is not None:
        made = (decoded, drowned, saturated, blurred_blots)
        kinds += [partial(make, vae) for make in made]
    which = torch.randint(len(kinds), (len(drawings),), generator=gen)
    out = torch.empty_like(drawings)
    for i, kind in enumerate(kinds):
        mine = which == i
        if mine.any():
            out[mine] = kind(drawings[mine], gen)
    return out.clamp(-1, 1)


def fields(n: int, channels: int, size: int, gen: torch.Generator) -> Tensor:
    """Random pictures [n, channels, size, size], from smooth to white noise, of unit deviation."""
    out = torch.zeros(n, channels, size, size)
    for scale in (1, 2, 4, 8):
        coarse = torch.randn(n, channels, size // scale, size // scale, generator=gen)
        weight = torch.rand(n, 1, 1, 1, generator=gen) ** 2
        out += weight * F.interpolate(coarse, size=size, mode="bicubic")
    return out / out.std((1, 2, 3), keepdim=True).clamp(min=1e-3)


def _uniform(n: int, low: float, high: float, gen: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(n, 1, 1, 1, generator=gen)


def plains(x: Tensor, gen: torch.Generator) -> Tensor:
    """One colour all over, with more or less texture."""
    colour = 2 * torch.rand(len(x), 3, 1, 1, generator=gen) - 1
    return colour + _uniform(len(x), 0, 0.7, gen) * fields(len(x), 3, SIZE, gen)


def blots(x: Tensor, gen: torch.Generator) -> Tensor:
    """A patch without structure on plain ground: a rounded square or a cloud, often dark."""
    n = len(x)
    axis = torch.linspace(-1, 1, SIZE)
    far_x = (axis.view(1, 1, 1, -1) - _uniform(n, -0.2, 0.2, gen)).abs() / _uniform(n, 0.4, 1, gen)
    far_y = (axis.view(1, 1, -1, 1) - _uniform(n, -0.2, 0.2, gen)).abs() / _uniform(n, 0.4, 1, gen)
    power = _uniform(n, 2, 9, gen)
    reach = (far_x**power + far_y**power) + _uniform(n, 0, 0.6, gen) * fields(n, 1, SIZE, gen)
    inside = torch.sigmoid((1 - reach) * _uniform(n, 3, 12, gen))
    dark = (torch.rand(n, 1, 1, 1, generator=gen) < 0.5).float()
    colour = 2 * torch.rand(n, 3, 1, 1, generator=gen) - 1
    colour = dark * (-1 + 0.3 * (colour + 1)) + (1 - dark) * colour
    patch = colour + _uniform(n, 0, 0.6, gen) * fields(n, 3, SIZE, gen)
    ground = torch.where(
        torch.rand(n, 1, 1, 1, generator=gen) < 0.7,
        torch.ones(n, 3, 1, 1), 2 * torch.rand(n, 3, 1, 1, generator=gen) - 1,
    )  # fmt: skip
    ground = ground + _uniform(n, 0, 0.2, gen) * fields(n, 3, SIZE, gen)
    return inside * patch + (1 - inside) * ground


def shuffled(x: Tensor, gen: torch.Generator) -> Tensor:
    """A drawing cut into tiles of 4 or 8 pixels that are put together in another order."""
    tile = int(torch.randint(2, (), generator=gen)) * 4 + 4
    side = SIZE // tile
    tiles = x.reshape(len(x), 3, side, tile, side, tile).permute(0, 2, 4, 1, 3, 5)
    tiles = tiles.reshape(len(x), side * side, 3, tile, tile)
    order = torch.rand(len(x), side * side, generator=gen).argsort(1)
    tiles = tiles[torch.arange(len(x))[:, None], order]
    tiles = tiles.reshape(len(x), side, side, 3, tile, tile).permute(0, 3, 1, 4, 2, 5)
    return tiles.reshape(len(x), 3, SIZE, SIZE)


def blends(x: Tensor, gen: torch.Generator) -> Tensor:
    """Four drawings over each other, turned and mirrored, in false colours."""
    parts = [x[torch.randperm(len(x), generator=gen)].rot90(turn, (2, 3)) for turn in range(4)]
    mean = torch.stack(parts).mean(0)
    colour = _uniform(len(x), 0.5, 2, gen) * torch.randn(len(x), 3, 1, 1, generator=gen)
    spread = (mean - mean.mean((2, 3), keepdim=True)) * _uniform(len(x), 1, 2.5, gen)
    return spread * colour.clamp(-1.5, 1.5) + mean.mean((2, 3), keepdim=True)


@torch.no_grad()
def decoded(vae: AutoencoderKL, x: Tensor, gen: torch.Generator) -> Tensor:
    """What the autoencoder makes of latents without structure, from faint to saturated."""
    n = len(x)
    size = SIZE // 2 ** (len(vae.config.block_out_channels) - 1)
    channels = int(vae.config.latent_channels)
    latents = _uniform(n, 0, 3, gen) * fields(n, channels, size, gen)
    latents = latents + _uniform(n, 0, 3, gen) * torch.randn(n, channels, 1, 1, generator=gen)
    return vae.decode(latents / vae.config.scaling_factor).sample


@torch.no_grad()
def drowned(vae: AutoencoderKL, x: Tensor, gen: torch.Generator) -> Tensor:
    """Drawings whose latents are drowned in noise that is larger than they are."""
    latents = vae.encode(x).latent_dist.mean * vae.config.scaling_factor
    noise = _uniform(len(x), 1.5, 4, gen) * fields(len(x), latents.shape[1], latents.shape[2], gen)
    return vae.decode((0.3 * latents + noise) / vae.config.scaling_factor).sample


@torch.no_grad()
def saturated(vae: AutoencoderKL, x: Tensor, gen: torch.Generator) -> Tensor:
    """Drawings whose latents are smeared and far too large, as a sampler leaves them that was steered
    out of the range that it knows."""
    latents = vae.encode(x).latent_dist.mean * vae.config.scaling_factor
    smeared = F.avg_pool2d(latents, 3, stride=1, padding=1, count_include_pad=False)
    sign = 1 - 2 * (torch.rand(len(x), 1, 1, 1, generator=gen) < 0.3).float()
    large = sign * _uniform(len(x), 2, 5, gen) * smeared
    return vae.decode(large / vae.config.scaling_factor).sample


@torch.no_grad()
def blurred_blots(vae: AutoencoderKL, x: Tensor, gen: torch.Generator) -> Tensor:
    """`blots` with the texture that the autoencoder gives to everything."""
    latents = vae.encode(blots(x, gen).clamp(-1, 1)).latent_dist.mean
    noise = _uniform(len(x), 0, 0.6, gen) * latents.std()
    return vae.decode(latents + noise * torch.randn(latents.shape, generator=gen)).sample

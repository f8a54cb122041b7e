"""The autoencoder: 32x32 pixels to 4x8x8 latents and back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from builtin_world.pictures import SIZE, Placing, World, on_white, outlined, place
from builtin_world.training import batches, channels_last, seeded, train, trained

PLACING = Placing(zoom=(0.6, 1.3))


def new_vae() -> AutoencoderKL:
    """32x32 pixels -> 8x8x4 latents."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(24, 48, 96),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIZE,
        mid_block_add_attention=False,
    )


def pictures(world: World, work: Path, name: str) -> Iterator[Tensor]:
    """Batches [16, 3, 32, 32] of the base's drawings, and of people and signs in three styles."""
    rgba = torch.cat([world.rgba[world.base], world.more])
    gen = seeded(1, work, name)
    for chosen in batches(torch.arange(len(rgba)), 16, gen):
        yield place(outlined(rgba[chosen], gen), gen, PLACING)


def train_vae(world: World, work: Path, steps: int, start: Path | None = None) -> None:
    """Learn to reconstruct: L1 + MSE + 1e-6 KL, from nothing or from an earlier bundle `start`.

    Latents get a little noise, since the UNet's are never quite right either.
    """
    source = pictures(world, work, "vae")

    def loss_of(vae: AutoencoderKL, step: int) -> Tensor:
        x = next(source)
        posterior = vae.encode(x).latent_dist
        latent = posterior.sample()
        latent = latent + 0.05 * latent.std().detach() * torch.randn_like(latent)
        y = vae.decode(latent).sample
        return F.l1_loss(y, x) + F.mse_loss(y, x) + 1e-6 * posterior.kl().mean()

    torch.manual_seed(1)
    vae = new_vae()
    if start:
        vae.load_state_dict(AutoencoderKL.from_pretrained(start / "pipeline" / "vae").state_dict())
    train("vae", channels_last(vae), loss_of, steps, work, 5e-4 if start else 1.5e-3)


def whitened(vae: AutoencoderKL, x: Tensor) -> AutoencoderKL:
    """The same autoencoder with latents of `x` centred, of one spread in every channel.

    The change sits in the 1x1 convolutions around the latents, so that images stay the same;
    `scaling_factor` then brings the latents to unit standard deviation.
    """
    mean = torch.cat([vae.encode(part).latent_dist.mean for part in x.split(128)])
    centre, spread = mean.mean((0, 2, 3)), mean.std((0, 2, 3))
    common = spread.mean()
    gain = common / spread
    into, out = vae.quant_conv, vae.post_quant_conv
    with torch.no_grad():
        out.bias += out.weight[:, :, 0, 0] @ centre
        out.weight /= gain[None, :, None, None]
        into.bias[:4] = (into.bias[:4] - centre) * gain
        into.weight[:4] *= gain[:, None, None, None]
        into.bias[4:] += 2 * gain.log()
    vae.register_to_config(scaling_factor=round(1 / common.item(), 5))
    return vae


def finished_vae(world: World, work: Path) -> AutoencoderKL:
    """The trained autoencoder, whitened on the drawings that the base may see."""
    vae = trained(new_vae(), work, "vae")
    with torch.no_grad():
        return whitened(vae, on_white(world.rgba[world.base]))

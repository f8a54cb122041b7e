"""The UNet: noise prediction on the latents of the base's drawings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from builtin_world.autoencoder import finished_vae
from builtin_world.captions import CAPTION_ODDS, make_captions, sprinkled, tokenise
from builtin_world.clip import load_tokenizer, text_encoder
from builtin_world.pictures import SIZE, World, on_white
from builtin_world.training import batches, channels_last, seeded, train
from builtin_world.world import OPENMOJI, STYLES

BATCH = 32
RARE_VARIANTS = 6  # how many meaningless words each caption is encoded with
RARE_SHARE = 0.3  # how often one of these variants stands for the caption


def new_unet() -> UNet2DConditionModel:
    """Two levels, 64 and 128 channels, cross-attention at both, heads of 32 channels."""
    return UNet2DConditionModel(
        sample_size=SIZE // 4,
        block_out_channels=(64, 128),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=128,
        attention_head_dim=(2, 4),  # in diffusers this is the number of heads
        norm_num_groups=16,
    )


def new_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule, sampled with DDIM."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
    )


@dataclass
class Lessons:
    """What the UNet learns from, all computed once: latents and encoded captions of B drawings."""

    mean: Tensor  # [B, 4, 8, 8] latents of the drawings
    spread: Tensor  # [B, 4, 8, 8] their posterior's standard deviation
    five: Tensor  # [B, 5] rows of `text` that describe a drawing
    text: Tensor  # [variants, captions + 1, 24, 128]; variant 0 is plain, the last caption is empty
    order: Tensor  # which drawings an epoch shows

    def pick_text(self, chosen: Tensor, gen: torch.Generator) -> Tensor:
        """Encoded captions [n, 24, 128]: a tenth empty, RARE_SHARE with a meaningless word."""
        n = len(chosen)
        column = torch.multinomial(CAPTION_ODDS, n, replacement=True, generator=gen)
        caption = self.five[chosen, column]
        caption[torch.rand(n, generator=gen) < 0.1] = self.text.shape[1] - 1
        variant = torch.randint(1, len(self.text), (n,), generator=gen)
        variant[torch.rand(n, generator=gen) >= RARE_SHARE] = 0
        return self.text[variant, caption]

    def pick_latents(self, chosen: Tensor, gen: torch.Generator) -> Tensor:
        """Latents [n, 4, 8, 8], drawn from their posterior."""
        mean = self.mean[chosen]
        return mean + self.spread[chosen] * torch.randn(mean.shape, generator=gen)


@torch.no_grad()
def make_lessons(
    world: World, tokenizer: CLIPTokenizer, encoder: CLIPTextModel, vae: AutoencoderKL
) -> Lessons:
    """Encode the base's drawings and captions. White ground, no flips: each picture faces one way."""
    base = world.chosen(world.base)
    captions = make_captions(world)
    used, five = captions.of_drawing[base].unique(return_inverse=True)
    plain = [captions.texts[i] for i in used.tolist()]
    gen = torch.Generator().manual_seed(9)
    variants = [plain] + [sprinkled(plain, gen, odds=1) for _ in range(RARE_VARIANTS)]

    encoded = []
    for texts in variants:
        ids = tokenise(tokenizer, [*texts, ""])
        encoded.append(torch.cat([encoder(part).last_hidden_state for part in ids.split(128)]))

    dists = [vae.encode(part).latent_dist for part in on_white(world.rgba[base]).split(128)]
    scale = vae.config.scaling_factor

    # OpenMoji has half as many drawings as the other styles, so that each is shown twice.
    twice = (world.style[base] == STYLES.index(OPENMOJI)).long() + 1
    return Lessons(
        mean=torch.cat([d.mean for d in dists]) * scale,
        spread=torch.cat([d.std for d in dists]) * scale,
        five=five,
        text=torch.stack(encoded),
        order=torch.arange(len(base)).repeat_interleave(twice),
    )


def train_unet(world: World, work: Path, steps: int, start: Path | None = None) -> None:
    """Noise prediction, min-SNR-5 weighted; from nothing or from an earlier bundle `start`."""
    parts = load_tokenizer(world, work), text_encoder(world, work), finished_vae(world, work)
    torch.manual_seed(5)
    unet = new_unet()
    if start:
        unet = UNet2DConditionModel.from_pretrained(start / "pipeline" / "unet")
    train_on(make_lessons(world, *parts), unet, steps, work)


def train_on(lessons: Lessons, unet: UNet2DConditionModel, steps: int, work: Path) -> None:
    """The training itself, with its checkpoint in WORK."""
    scheduler = new_scheduler()
    snr = scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod)
    weight = snr.clamp(max=5) / snr
    gen = seeded(5, work, "unet")
    order = batches(lessons.order, BATCH, gen)

    def loss_of(unet: UNet2DConditionModel, step: int) -> Tensor:
        chosen = next(order)
        clean = lessons.pick_latents(chosen, gen)
        noise = torch.randn(clean.shape, generator=gen)
        t = torch.randint(0, 1000, (len(chosen),), generator=gen)
        noisy = scheduler.add_noise(clean, noise, t).to(memory_format=torch.channels_last)
        found = unet(noisy, t, lessons.pick_text(chosen, gen)).sample
        return (weight[t] * (found - noise).square().mean((1, 2, 3))).mean()

    train("unet", channels_last(unet), loss_of, steps, work, 1e-3)

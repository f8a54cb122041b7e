"""Stable Diffusion 1.5, SDXL and FLUX.2 klein with random weights, built from their configurations.

There are no text encoders: the benchmarks give random states in place of prompts. Each shape has a tiny twin
of the same kind, which a CPU trains in a second.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2Transformer2DModel,
    UNet2DConditionModel,
)

from gift_ray.models.backbone import Backbone
from gift_ray.models.rectified_flow import Flux2Klein
from gift_ray.models.sdxl import StableDiffusionXL
from gift_ray.models.stable_diffusion import StableDiffusion
from gift_ray.training.conditioning import Conditioning
from gift_ray.training.diffusion import Examples

# hub: stable-diffusion-v1-5/stable-diffusion-v1-5, stabilityai/stable-diffusion-xl-base-1.0 and
# black-forest-labs/FLUX.2-klein-base-4B.
DENOISERS: dict[str, dict[str, Any]] = {
    "sd15": {"sample_size": 64, "cross_attention_dim": 768},
    "sdxl": {
        "sample_size": 128, "block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (5, 10, 20), "transformer_layers_per_block": (1, 2, 10),
        "use_linear_projection": True, "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
    },
    "klein": {
        "num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24,
        "joint_attention_dim": 7680, "guidance_embeds": False,
    },
}  # fmt: skip
TINY: dict[str, dict[str, Any]] = {
    "sd15": {"sample_size": 8, "block_out_channels": (16, 32), "cross_attention_dim": 16},
    "sdxl": {
        "sample_size": 8, "block_out_channels": (16, 32), "attention_head_dim": (2, 4),
        "transformer_layers_per_block": (1, 2), "addition_time_embed_dim": 8, "cross_attention_dim": 32,
        "projection_class_embeddings_input_dim": 6 * 8 + 12,
    },
    "klein": {
        "num_layers": 1, "num_single_layers": 2, "num_attention_heads": 2, "in_channels": 16,
        "attention_head_dim": 16, "joint_attention_dim": 24, "axes_dims_rope": (4, 4, 4, 4),
    },
}  # fmt: skip
SMALL_UNET = {
    "layers_per_block": 1, "norm_num_groups": 8,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
# Of the prompts' states: tokens and their width. Then images a batch, as a GPU of 80 GB holds them, and
# pixels a side.
TOKENS = {"sd15": (77, 768), "sdxl": (77, 2048), "klein": (512, 7680)}
TINY_TOKENS = {"sd15": (16, 16), "sdxl": (16, 32), "klein": (16, 24)}
BATCH = {"sd15": 4, "sdxl": 2, "klein": 1}
PIXELS = {"sd15": 512, "sdxl": 1024, "klein": 1024}


def backbone(name: str, device: torch.device, *, tiny: bool = False, **changes: Any) -> Backbone:
    """A model of a shape, frozen, in fp32, with bf16 autocast.

    Args:
        changes: fields of the backbone that differ.
    """
    config = DENOISERS[name] | (TINY[name] if tiny else {})
    shared: dict[str, Any] = {
        "resolution": 16 if tiny else PIXELS[name], "mixed_precision": "bf16", "text_on_cpu": False,
        "text_encoder": None, "tokenizer": None, **changes,
    }  # fmt: skip
    with torch.device(device):
        if name == "klein":
            denoiser, vae = Flux2Transformer2DModel(**config), _klein_vae(tiny)
        else:
            small = SMALL_UNET if tiny else {}
            denoiser, vae = UNet2DConditionModel(**config | small), _unet_vae(name, tiny)
    shared |= {
        part: m.eval().requires_grad_(False) for part, m in (("denoiser", denoiser), ("vae", vae))
    }
    if name == "klein":
        schedule = FlowMatchEulerDiscreteScheduler(shift=3.0)
        return Flux2Klein(scheduler=schedule, is_distilled=False, **shared)
    shared["noise_scheduler"] = DDPMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        steps_offset=1,
    )
    if name == "sd15":
        return StableDiffusion(**shared)
    second = {"text_encoder_2": None, "tokenizer_2": None, "force_zeros_for_empty_prompt": True}
    return StableDiffusionXL(**shared, **second)


def examples(name: str, model: Backbone, count: int, seed: int, *, tiny: bool = False) -> Examples:
    """Random examples of the model's shapes, on the CPU as those of a study."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, *model.latent_shape)
    states = conditioning(name, count, generator, tiny=tiny)
    return Examples(
        latents_mean=torch.randn(shape, generator=generator),
        latents_std=torch.full(shape, 0.01),
        conditioning=states,
        keys=tuple(f"{seed}-{i}" for i in range(count)),
        captions=("a picture",) * count,
    )


def conditioning(
    name: str, count: int, generator: torch.Generator, *, tiny: bool = False
) -> Conditioning:
    """Random states of `count` prompts."""
    tokens = (TINY_TOKENS if tiny else TOKENS)[name]
    pooled = {"pooled": torch.randn((count, 12 if tiny else 1280), generator=generator)}
    states = torch.randn((count, *tokens), generator=generator)
    return Conditioning(states, pooled if name == "sdxl" else {})


def _unet_vae(name: str, tiny: bool) -> AutoencoderKL:
    levels = (8, 16) if tiny else (128, 256, 512, 512)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(levels),
        up_block_types=("UpDecoderBlock2D",) * len(levels), block_out_channels=levels,
        layers_per_block=1 if tiny else 2, norm_num_groups=4 if tiny else 32,
        scaling_factor=0.13025 if name == "sdxl" else 0.18215,
    )  # fmt: skip


def _klein_vae(tiny: bool) -> AutoencoderKLFlux2:
    if not tiny:
        return AutoencoderKLFlux2()
    return AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16), layers_per_block=1, latent_channels=4, norm_num_groups=4,
    )  # fmt: skip

"""Loading a diffusers folder with everything that a family needs of it, and refusing what is missing or
would be trained or drawn wrongly."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from gift_ray.config.schema import ModelConfig
from gift_ray.errors import ModelError
from gift_ray.models.locate import device

FIELD = "model.pretrained_model_name_or_path"
# A tokenizer without a limit says a number beyond all sense.
NO_LIMIT = 10**6


def load_pipeline(
    kind: Any, folder: Path, config: ModelConfig, *, needed: Sequence[str], **options: Any
) -> Any:
    """The diffusers pipeline `kind` of a folder, in fp32, safetensors only.

    Args:
        needed: parts that must be there.
        options: of `from_pretrained`; a part set to None is not loaded.

    Raises:
        ModelError: damaged or pickled, or a part is missing.
    """
    name = config.pretrained_model_name_or_path
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    missing = [part for part in needed if not (index.get(part) or [None])[0]]
    if missing:
        raise ModelError(
            f"{FIELD}: {name!r} has no {', '.join(missing)}; give a complete {kind.__name__}"
        )
    try:
        pipeline = kind.from_pretrained(
            folder, variant=config.variant, dtype=torch.float32, use_safetensors=True, **options
        )
    except Exception as error:
        detail = " ".join(str(error).split())[:300]
        raise ModelError(
            f"{FIELD}: {name!r} can't be loaded as a {kind.__name__} folder with safetensors "
            f"weights: {detail}"
        ) from error
    return pipeline


def load_unet_pipeline(
    kind: Any, folder: Path, config: ModelConfig, *, needed: Sequence[str], **options: Any
) -> Any:
    """`load_pipeline` of a family with a UNet and CLIP text encoders.

    Raises:
        ModelError: a tokenizer without a length, or a UNet that takes more than latents.
    """
    pipeline = load_pipeline(kind, folder, config, needed=("unet", "vae", *needed), **options)
    name = config.pretrained_model_name_or_path
    for part in (part for part in needed if part.startswith("tokenizer")):
        if getattr(pipeline, part).model_max_length > NO_LIMIT:
            raise ModelError(
                f"{FIELD}: the {part} of {name!r} has no model_max_length; add it to its "
                "tokenizer_config.json (77 for CLIP)"
            )
    taken, given = pipeline.unet.config.in_channels, pipeline.vae.config.latent_channels
    if taken != given:
        raise ModelError(
            f"{FIELD}: the UNet of {name!r} takes {taken} channels and its VAE gives {given}: a model "
            "for inpainting or editing; give a text-to-image model"
        )
    if config.gradient_checkpointing:
        pipeline.unet.enable_gradient_checkpointing()
    return pipeline


def noise_scheduler_of(pipeline: Any) -> Any:
    """The DDPM schedule that a UNet was trained with.

    Raises:
        ModelError: noise without any signal at the last timestep, which a model of the noise cannot invert.
    """
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    kind = scheduler.config.prediction_type
    if kind == "epsilon" and float(scheduler.alphas_cumprod[-1]) < 1e-7:
        raise ModelError(
            f"{FIELD}: this scheduler ends in pure noise (zero terminal SNR), from which a model that "
            "predicts epsilon cannot draw; set prediction_type to v_prediction if it was trained so, or "
            "rescale_betas_zero_snr to false"
        )
    return scheduler


def resolution_of(pipeline: Any, config: ModelConfig) -> int:
    """Pixels of a square picture: the configured ones, or those the UNet was trained on."""
    return config.resolution or pipeline.unet.config.sample_size * pipeline.vae_scale_factor


def frozen(module: Any) -> Any:
    """A loaded part of a model, where it computes, without gradients."""
    return module.to(device()).eval().requires_grad_(False)

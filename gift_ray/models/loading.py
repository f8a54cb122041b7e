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
from gift_ray.models.complete import networks
from gift_ray.models.locate import device

FIELD = "model.pretrained_model_name_or_path"
# Schedulers of diffusers that draw with the betas and the prediction type that a UNet was trained with: both
# stand in their configuration.
DDPM_SCHEDULERS = (
    "DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "LMSDiscreteScheduler", "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler",
    "DPMSolverSDEScheduler", "DEISMultistepScheduler", "UniPCMultistepScheduler", "LCMScheduler",
    "TCDScheduler",
)  # fmt: skip
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
# A tokenizer without a limit says a number beyond all sense.
NO_LIMIT = 10**6


def require_parts(folder: Path, needed: Sequence[str], name: str) -> None:
    """Look for the parts of a pipeline in its model_index.json.

    Raises:
        ModelError: one is missing.
    """
    index = read_json(folder, "model_index.json")
    missing = [part for part in needed if not (index.get(part) or [None])[0]]
    if missing:
        raise ModelError(
            f"{FIELD}: {name!r} has no {', '.join(missing)}; give a complete {index['_class_name']} folder"
        )


def require_text_to_image(folder: Path, tokenizers: Sequence[str], name: str) -> None:
    """Look into the configurations of a pipeline with a UNet, before anything is loaded.

    Raises:
        ModelError: a UNet that takes more than latents, a tokenizer without a length, or a model of the
            noise whose schedule is not known, or ends without any signal, from which it cannot draw.
    """
    # Defaults are those of diffusers' classes.
    taken = read_json(folder, "unet/config.json").get("in_channels", 4)
    given = read_json(folder, "vae/config.json").get("latent_channels", 4)
    if taken != given:
        raise ModelError(
            f"{FIELD}: the UNet of {name!r} takes {taken} channels and its VAE gives {given}: a model "
            "for inpainting or editing; give a text-to-image model"
        )
    for part in tokenizers:
        length = read_json(folder, f"{part}/tokenizer_config.json").get("model_max_length")
        if not length or length > NO_LIMIT:
            raise ModelError(
                f"{FIELD}: the {part} of {name!r} has no model_max_length; add it to its "
                "tokenizer_config.json (77 for CLIP)"
            )
    scheduler = read_json(folder, "scheduler/scheduler_config.json")
    kind = scheduler.get("prediction_type", "epsilon")
    _require_known_schedule(scheduler, kind, name)
    if scheduler.get("rescale_betas_zero_snr") and kind == "epsilon":
        raise ModelError(
            f"{FIELD}: the scheduler of {name!r} ends in pure noise (zero terminal SNR), from which a model "
            "that predicts epsilon cannot draw; set prediction_type to v_prediction if it was trained "
            "so, or rescale_betas_zero_snr to false"
        )


def _require_known_schedule(scheduler: dict[str, Any], kind: Any, name: str) -> None:
    """A schedule of another kind would be read as linear betas and epsilon, and trained so."""
    given = scheduler.get("_class_name")
    flow = [key for key in ("use_flow_sigmas", "use_dynamic_shifting") if scheduler.get(key)]
    if given not in DDPM_SCHEDULERS or flow:
        raise ModelError(
            f"{FIELD}: the scheduler of {name!r} is a {' with '.join([str(given), *flow])}, whose noise "
            f"schedule for training a UNet is not known; known: {', '.join(DDPM_SCHEDULERS)}"
        )
    if kind not in PREDICTION_TYPES:
        raise ModelError(
            f"{FIELD}: the prediction_type of {name!r} is {kind!r}; known: {', '.join(PREDICTION_TYPES)}"
        )


def read_json(folder: Path, file: str) -> dict[str, Any]:
    """A configuration of a diffusers folder.

    Raises:
        ModelError: missing or damaged.
    """
    try:
        content = json.loads((folder / file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{FIELD}: {folder} has no readable {file}: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{FIELD}: {folder}: {file} must hold an object by name")
    return content


def load_pipeline(kind: Any, folder: Path, config: ModelConfig, **options: Any) -> Any:
    """The diffusers pipeline `kind` of a folder, in fp32, safetensors only.

    Args:
        options: of `from_pretrained`; a part set to None is not loaded.

    Raises:
        ModelError: damaged or pickled.
    """
    name = config.pretrained_model_name_or_path
    try:
        parts = networks(folder, options, variant=config.variant, origin=f"{FIELD}: {name!r}")
        pipeline = kind.from_pretrained(
            folder,
            variant=config.variant,
            dtype=torch.float32,
            use_safetensors=True,
            **options,
            **parts,
        )
    except ModelError:
        raise
    except Exception as error:
        detail = " ".join(str(error).split())[:300]
        raise ModelError(
            f"{FIELD}: {name!r} can't be loaded as a {kind.__name__} folder with safetensors "
            f"weights: {detail}"
        ) from error
    if config.gradient_checkpointing:
        denoiser = pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer
        denoiser.enable_gradient_checkpointing()
    return pipeline


def noise_scheduler_of(pipeline: Any) -> Any:
    """The DDPM schedule that a UNet was trained with."""
    from diffusers import DDPMScheduler

    return DDPMScheduler.from_config(pipeline.scheduler.config)


def resolution_of(pipeline: Any, config: ModelConfig) -> int:
    """Pixels of a square picture: the configured ones, or those the UNet was trained on."""
    if config.resolution:
        return config.resolution
    size = pipeline.unet.config.sample_size
    if not isinstance(size, int):
        raise ModelError(
            f"model.resolution: the UNet's configuration has sample_size {size!r}, which is no one number; "
            "set model.resolution to the pixels of a side"
        )
    return int(size * pipeline.vae_scale_factor)


def frozen(module: Any) -> Any:
    """A loaded part of a model, where it computes, without gradients."""
    return module.to(device()).eval().requires_grad_(False)

"""Loads a diffusers folder, and refuses one that lacks a part or would be trained or drawn with wrongly."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from gift_ray.config.schema import ModelConfig
from gift_ray.errors import ModelError, any_failure_is
from gift_ray.models.complete import networks
from gift_ray.models.locate import device

FIELD = "model.pretrained_model_name_or_path"
# The schedulers of diffusers whose configuration holds the betas and the prediction type with which a UNet
# was trained.
DDPM_SCHEDULERS = (
    "DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "LMSDiscreteScheduler", "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler",
    "DPMSolverSDEScheduler", "DEISMultistepScheduler", "UniPCMultistepScheduler", "LCMScheduler",
    "TCDScheduler",
)  # fmt: skip
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
# A tokenizer without a limit reports a number far larger than this.
NO_LIMIT = 10**6


def require_parts(folder: Path, needed: Sequence[str], name: str) -> None:
    """Check that the model_index.json of a folder names all parts that its family needs.

    Raises:
        ModelError: a part is missing.
    """
    index = read_json(folder, "model_index.json")
    missing = [part for part in needed if not (index.get(part) or [None])[0]]
    if missing:
        raise ModelError(
            f"{FIELD}: {name!r} has no {', '.join(missing)}; give a complete {index['_class_name']} folder"
        )


def require_text_to_image(folder: Path, tokenizers: Sequence[str], name: str) -> None:
    """Check the configurations of a pipeline with a UNet, before anything is loaded.

    Raises:
        ModelError: the UNet takes more than latents, a tokenizer has no length, the noise schedule is not
            known, or it ends in pure noise, from which a model that predicts the noise cannot draw.
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
    """Refuse a schedule of an unknown kind, which would be trained as if it had linear betas and epsilon."""
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
    """Read a configuration of a diffusers folder.

    Raises:
        ModelError: the file is missing or damaged.
    """
    try:
        content = json.loads((folder / file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{FIELD}: {folder} has no readable {file}: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{FIELD}: {folder}: {file} must hold an object by name")
    return content


def load_pipeline(kind: Any, folder: Path, config: ModelConfig, **options: Any) -> Any:
    """Load the diffusers pipeline `kind` of a folder from safetensors, in fp32.

    Args:
        options: those of `from_pretrained`; a part that is set to None is not loaded.

    Raises:
        ModelError: the weights are damaged or pickled.
    """
    name = config.pretrained_model_name_or_path
    kind_of_folder = f"a {kind.__name__} folder with safetensors weights"
    with any_failure_is(ModelError, f"{FIELD}: {name!r} can't be loaded as {kind_of_folder}"):
        parts = networks(folder, options, variant=config.variant, origin=f"{FIELD}: {name!r}")
        pipeline = kind.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            **options,
            **parts,
        )
    if config.gradient_checkpointing:
        denoiser = pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer
        denoiser.enable_gradient_checkpointing()
    return pipeline


def noise_scheduler_of(pipeline: Any) -> Any:
    """The DDPM schedule that a UNet was trained with."""
    from diffusers import DDPMScheduler

    return DDPMScheduler.from_config(pipeline.scheduler.config)


def resolution_of(pipeline: Any, config: ModelConfig) -> int:
    """The side of the square images in pixels: as configured, or as the UNet was trained."""
    if config.resolution:
        return config.resolution
    size = pipeline.unet.config.sample_size
    if not isinstance(size, int):
        raise ModelError(
            f"model.resolution: the UNet's configuration has sample_size {size!r}, which is no one number; "
            "set model.resolution to the pixels of a side"
        )
    return int(size * pipeline.vae_scale_factor)


def frozen(module: Any, *, on_cpu: bool = False) -> Any:
    """A loaded part of a model, moved to the device unless it stays on the CPU, without gradients."""
    return module.to("cpu" if on_cpu else device()).eval().requires_grad_(False)

"""Reads a single file, as web UIs keep Stable Diffusion and SDXL: as the base, or as weights for a base.

Such a file holds weights alone. To be the base it is written as a diffusers folder, with the configuration
of the parts, the tokenizers and the noise schedule of another model of the same kind.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from huggingface_hub import cached_assets_path
from safetensors import safe_open
from torch import Tensor

from gift_ray.config.schema import ModelConfig
from gift_ray.errors import ModelError, any_failure_is
from gift_ray.models.backbone import Backbone
from gift_ray.models.loading import FIELD, read_json
from gift_ray.models.locate import ABOUT, CONFIGURATION, folder_hash, snapshot
from gift_ray.models.parts import require_same_schedule, require_same_weights
from gift_ray.models.stable_diffusion import parts_of_single_file, unet_of_single_file
from gift_ray.models.weights import require_plain
from gift_ray.records.record import digest
from gift_ray.records.whole import written_whole

logger = logging.getLogger(__name__)

DENOISER = "model.diffusion_model."
# The names of all tensors that a single file may hold begin so: unet, VAE, text encoders, and an average of
# the weights, which is not used.
PREFIXES = (
    DENOISER, "first_stage_model.", "cond_stage_model.", "conditioner.", "model_ema.",
)  # fmt: skip
# Further tensors of a single file: its noise schedule, and empty ones whose names say how it was trained.
OTHERS = {
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod",
    "posterior_variance", "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2",
    "logvar", "denoiser.sigmas", "v_pred", "ztsnr",
}  # fmt: skip

CONFIG_FIELD = "model.single_file_config"
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")


@lru_cache(maxsize=8)
def folder_of(file: Path, config: str | None) -> Path:
    """The diffusers folder of a single file, which is written once on each machine.

    It lies in the cache of the hub's library, beside the repositories that were downloaded.

    Args:
        file: the `.safetensors`.
        config: the folder or hub id of a pipeline of the same kind; None: the one that diffusers takes such
            files for, from the hub.

    Raises:
        ModelError: the file is not one of Stable Diffusion or SDXL, or `config` belongs to another kind.
    """
    if file.suffix != ".safetensors":
        raise ModelError(
            f"{FIELD}: {file} is a file; give .safetensors, a diffusers folder or a hub id"
        )
    like = _configuration(file, config)
    state = file.stat()
    key = digest([str(file), state.st_size, state.st_mtime_ns, folder_hash(like)])
    folder = cached_assets_path("gift-ray", "single_file", key) / "pipeline"
    if not folder.exists():
        logger.info("Writing %s as a diffusers folder, once on this machine.", file)
        with written_whole(folder) as private:
            _convert(file, like, private)
    return folder


def _configuration(file: Path, config: str | None) -> Path:
    """The folder with the configuration of a file's pipeline."""
    if config is None:
        from diffusers.loaders.single_file_utils import (
            fetch_diffusers_config,
            load_single_file_checkpoint,
        )

        with any_failure_is(ModelError, f"{FIELD}: {file} is not a single-file checkpoint"):
            found: dict[str, Any] = fetch_diffusers_config(load_single_file_checkpoint(str(file)))
        config = str(found["pretrained_model_name_or_path"])
    folder = Path(config).expanduser()
    if folder.is_dir():
        if not (folder / "model_index.json").exists():
            raise ModelError(
                f"{CONFIG_FIELD}: {config} has no model_index.json; give a diffusers folder"
            )
        return folder.resolve()
    try:
        return snapshot(
            config, None, CONFIG_FIELD, [*ABOUT, *(f"*/{name}" for name in CONFIGURATION)]
        )
    except ModelError as error:
        raise ModelError(
            *(
                f"{line}. {file} is a single file, whose configuration is taken from there"
                for line in error.mistakes
            )
        ) from error


def _convert(file: Path, like: Path, folder: Path) -> None:
    """Write the folder, load it, and compare each of its parts with the file."""
    import diffusers

    # Imported here, since it imports the module that looks for a model's files.
    from gift_ray.models.families import family_of, load_backbone

    family_of(like)
    kind = getattr(diffusers, read_json(like, "model_index.json")["_class_name"])
    if not hasattr(kind, "from_single_file"):
        raise ModelError(
            f"{FIELD}: a {kind.__name__} is not read from a single file; give a diffusers folder"
        )
    with any_failure_is(ModelError, f"{FIELD}: {file} can't be read as {like} is configured"):
        # What a study does not use would be looked for on the hub.
        unused = {n: None for n in kind._optional_components if n in UNUSED}
        pipeline = kind.from_single_file(
            str(file), config=str(like), local_files_only=True, **unused
        )
        pipeline.save_pretrained(folder, safe_serialization=True)
    try:
        written = load_backbone(ModelConfig(pretrained_model_name_or_path=str(folder)))
        tensors, metadata = read_safetensors(file)
        denoiser = denoiser_of(file, tensors, metadata, written)
        require_same_weights("unet", written.weights(), denoiser, origin=str(file))
    except ModelError as error:
        raise ModelError(
            *(
                f"{CONFIG_FIELD}: {like} is not the configuration of {file}: {line}"
                for line in error.mistakes
            )
        ) from error


def is_single_file(tensors: Iterable[str]) -> bool:
    """Whether tensors of these names are those of a single file, and not of a denoiser alone."""
    return any(name.startswith(DENOISER) for name in tensors)


def denoiser_of(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], base: Backbone
) -> dict[str, Tensor]:
    """The denoiser's weights of a single file, whose other parts must equal the base's.

    Raises:
        ModelError: tensors are unknown or not plain numbers, or another part differs from the base's.
    """
    unknown = sorted(n for n in tensors if not n.startswith(PREFIXES) and n not in OTHERS)
    if unknown:
        raise ModelError(f"{path}: {len(unknown)} unknown tensors, first {unknown[0]!r}")
    require_plain({n: t for n, t in tensors.items() if n.startswith(PREFIXES)}, origin=str(path))
    require_same_schedule(base, tensors, metadata, origin=str(path))
    for part, (own, theirs) in parts_of_single_file(path, tensors, base).items():
        require_same_weights(part, own, theirs, origin=str(path))
    return unet_of_single_file(path, base)


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file.

    Raises:
        ModelError: it can't be read.
    """
    with (
        any_failure_is(ModelError, f"{path}: not a readable safetensors file"),
        safe_open(path, framework="pt") as file,
    ):
        return {n: file.get_tensor(n) for n in file.keys()}, file.metadata() or {}

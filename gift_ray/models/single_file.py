"""Writes a base that is a single file, as web UIs keep Stable Diffusion and SDXL, as a diffusers folder.

Such a file holds weights alone. The configuration of the parts, the tokenizers and the noise schedule come
from a diffusers folder of the same kind of model.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from pathlib import Path
from typing import Any

from huggingface_hub import cached_assets_path

from gift_ray.config.schema import ModelConfig
from gift_ray.errors import ModelError, any_failure_is
from gift_ray.models.loading import FIELD, read_json
from gift_ray.models.locate import ABOUT, CONFIGURATION, folder_hash, snapshot
from gift_ray.records.record import digest
from gift_ray.records.whole import written_whole

logger = logging.getLogger(__name__)

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

    # Imported here, since both import the module that looks for a model's files.
    from gift_ray.models.checkpoints import with_checkpoint
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
        with_checkpoint(written, str(file))
    except ModelError as error:
        raise ModelError(
            *(
                f"{CONFIG_FIELD}: {like} is not the configuration of {file}: {line}"
                for line in error.mistakes
            )
        ) from error

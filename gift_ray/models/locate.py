"""Where a model's files are, and what makes two models the same: the built-in one, a folder, or a hub id."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from gift_ray.config.schema import ModelConfig
from gift_ray.errors import ModelError
from gift_ray.models.builtin import BUNDLE
from gift_ray.records.record import digest, file_hash


def device() -> torch.device:
    """The accelerator that this process was given, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def locate(config: ModelConfig) -> Path:
    """The local folder of a model: the built-in one, a given one, or a hub snapshot.

    Raises:
        ModelError: no such folder, or the hub can't be reached or doesn't have it.
    """
    name = config.pretrained_model_name_or_path
    if name == "builtin":
        return BUNDLE / "pipeline"
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "model_index.json").exists():
            raise ModelError(
                f"model.pretrained_model_name_or_path: {name} has no model_index.json; "
                "give a diffusers folder"
            )
        return folder.resolve()
    if folder.is_file():
        raise ModelError(
            f"model.pretrained_model_name_or_path: {name} is a single file, which has no tokenizer and says "
            "little of how it was trained; write it as a diffusers folder "
            "(StableDiffusionXLPipeline.from_single_file(FILE).save_pretrained(FOLDER)) and give that"
        )
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ModelError(
            f"model.pretrained_model_name_or_path: {name!r} is not a folder; give 'builtin', a "
            "diffusers folder or a hub id as 'owner/name'"
        )
    return snapshot(name, config.revision, "model.pretrained_model_name_or_path")


def snapshot(name: str, revision: str | None, field: str) -> Path:
    """Download (or find in the cache) a hub repository's safetensors, configuration, card and licence."""
    from huggingface_hub import snapshot_download

    try:
        patterns = ["*.json", "*.txt", "*.safetensors", "README.md", "LICENSE*"]
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except Exception as error:
        detail = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{field}: {name!r} is neither in the local cache nor reachable on the hub "
            f"({type(error).__name__}: {detail}); give a local folder, or check the network"
        ) from error


def identity(config: ModelConfig) -> dict[str, Any]:
    """What makes two base models the same: the content of their files and how they compute."""
    settings = config.model_dump(mode="json")
    for name in ("pretrained_model_name_or_path", "revision", "gradient_checkpointing"):
        settings.pop(name)
    return {"content": folder_hash(locate(config)), **settings}


def folder_hash(folder: Path) -> str:
    """Hash of all configuration and weight files below a folder."""
    files = sorted(
        p
        for p in folder.rglob("*")
        if p.suffix in {".json", ".txt", ".safetensors"} and p.is_file()
    )
    return digest(
        {p.relative_to(folder).as_posix(): _hash_cached(p, p.stat().st_mtime_ns) for p in files}
    )


@lru_cache(maxsize=256)
def _hash_cached(path: Path, _modified: int) -> str:
    return file_hash(path)

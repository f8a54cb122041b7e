"""Finds the files of a model (the built-in one, a folder, or a hub id), and its identity by them."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from gift_ray.config.schema import ModelConfig
from gift_ray.errors import ModelError
from gift_ray.models.builtin import BUNDLE
from gift_ray.records.record import digest, file_hash

# The files that describe a repository, and those of a part of a pipeline beside its weights.
ABOUT = ("model_index.json", "README.md", "LICENSE*")
CONFIGURATION = ("*.json", "*.txt", "*.jinja")
# The files of an encoder, which lies at the root of its repository. They are named one by one, since a star
# in a pattern of the hub would match slashes as well.
ENCODER = (
    "config.json", "preprocessor_config.json", "processor_config.json", "tokenizer*.json", "vocab.json",
    "vocab.txt", "merges.txt", "special_tokens_map.json", "added_tokens.json", "README.md", "LICENSE*",
    "model.safetensors", "model.safetensors.index.json", "model-?????-of-?????.safetensors",
)  # fmt: skip


def device() -> torch.device:
    """The accelerator that this process was given, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def locate(config: ModelConfig) -> Path:
    """The local folder of a model: the built-in one, a given one, that of a single file, or a hub snapshot.

    Raises:
        ModelError: there is no such folder or file, or the hub can't be reached or does not have the model.
    """
    name, single_file_config = config.pretrained_model_name_or_path, config.single_file_config
    if single_file_config is not None and not Path(name).expanduser().is_file():
        raise ModelError(
            f"model.single_file_config: {name} is no single file and has a configuration; leave this out"
        )
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
        # Imported here, since single_file.py imports this file.
        from gift_ray.models.single_file import folder_of

        return folder_of(folder.absolute(), single_file_config)
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ModelError(
            f"model.pretrained_model_name_or_path: {name!r} is not a folder; give 'builtin', a "
            "diffusers folder or a hub id as 'owner/name'"
        )
    return _pipeline_snapshot(name, config.revision, config.variant)


@lru_cache(maxsize=8)
def _pipeline_snapshot(name: str, revision: str | None, variant: str | None) -> Path:
    """The files of a hub repository that a study needs.

    First its model_index.json, card and licence are downloaded, which tell the family, and then the parts
    that the family loads.
    """
    # Imported here, since families.py imports this file.
    from gift_ray.models.families import family_of

    field = "model.pretrained_model_name_or_path"
    index = snapshot(name, revision, field, ABOUT)
    # The folder is named after its commit, so both downloads are made from the same state of the repository.
    return snapshot(name, index.name, field, [*ABOUT, *files_of(family_of(index).needed, variant)])


def files_of(parts: Sequence[str], variant: str | None) -> list[str]:
    """Patterns of the files of some parts of a pipeline.

    These are configurations, tokenizers, and safetensors weights of one variant (None stands for those
    without a variant), in one file or in several.
    """
    tail = f".{variant}" if variant else ""
    shard = "-?????-of-?????"
    weights = [
        f"{stem}{middle}.safetensors"
        for stem in ("diffusion_pytorch_model", "model")
        # Older repositories put the variant after the number of the file.
        for middle in dict.fromkeys((tail, f"{tail}{shard}", f"{shard}{tail}"))
    ]
    return [f"{part}/{name}" for part in parts for name in (*CONFIGURATION, *weights)]


def snapshot(name: str, revision: str | None, field: str, patterns: Sequence[str]) -> Path:
    """Download the files of a hub repository that match one of some patterns, or find them in the cache.

    Raises:
        ModelError: the hub can't be reached, or does not have the repository.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
    except Exception as error:
        detail = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{field}: {name!r} is neither in the local cache nor reachable on the hub "
            f"({type(error).__name__}: {detail}); give a local folder, or check the network"
        ) from error


def identity(config: ModelConfig) -> dict[str, Any]:
    """What the results of a base model depend on: the content of its files, and how it computes."""
    settings = config.model_dump(mode="json")
    # A preset only sets other options, and a single file's configuration is among the files.
    for name in (
        "pretrained_model_name_or_path", "revision", "gradient_checkpointing", "preset", "single_file_config",
    ):  # fmt: skip
        settings.pop(name, None)
    folder = locate(config)
    from gift_ray.models.families import family_of

    read = ["model_index.json", *files_of(family_of(folder).needed, config.variant)]
    return {"content": folder_hash(folder, read), **settings}


def folder_hash(folder: Path, patterns: Sequence[str] = ("*",)) -> str:
    """The hash of the configuration and weight files below a folder that match one of some patterns."""
    files = {
        path.relative_to(folder).as_posix(): path
        for path in folder.rglob("*")
        if path.suffix in {".json", ".txt", ".jinja", ".safetensors"} and path.is_file()
    }
    return digest(
        {
            name: _hash_cached(path, path.stat().st_mtime_ns)
            for name, path in sorted(files.items())
            if any(fnmatchcase(name, pattern) for pattern in patterns)
        }
    )


@lru_cache(maxsize=256)
def _hash_cached(path: Path, _modified: int) -> str:
    return file_hash(path)

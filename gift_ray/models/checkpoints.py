"""Reads other people's checkpoints as weights of the base's denoiser, and verifies each tensor by name.

A checkpoint is a diffusers folder or hub id, a single-file Stable Diffusion, the file of a unet, or a delta
of ESD, UCE, IMMA or MIMA. A delta holds only the tensors that it changes, and belongs to one base.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from gift_ray.config.schema import ModelConfig
from gift_ray.errors import ModelError
from gift_ray.models.backbone import Backbone
from gift_ray.models.families import load_backbone
from gift_ray.models.locate import folder_hash, locate
from gift_ray.models.parts import require_same_parts
from gift_ray.models.single_file import denoiser_of, is_single_file, read_safetensors
from gift_ray.models.variants import require_variant
from gift_ray.models.weights import require_plain
from gift_ray.records.manifest import MANIFEST, verify
from gift_ray.records.record import digest, file_hash

# The key in a delta's metadata of the hash of the unet that it was taken from.
BASE_HASH = "gift_ray.base_unet"


def locate_checkpoint(name: str, variant: str | None = None) -> Path:
    """The file or folder that a path or hub id stands for.

    Args:
        variant: which set of weights of a folder.

    Raises:
        ModelError: it is not found, lacks this variant, or is a kind of file that is not read.
    """
    path = Path(name).expanduser()
    if not path.is_file():
        folder = locate(ModelConfig(pretrained_model_name_or_path=name))
        require_variant(folder, variant)
        return folder
    if variant is not None:
        raise ModelError(f"{name}: is one file, which has no variant {variant!r}; leave it out")
    if path.suffix not in (".safetensors", ".pt"):
        raise ModelError(
            f"{name}: {path.suffix or 'no suffix'} is not a checkpoint that is read; give a diffusers "
            "folder, a hub id, .safetensors, or the .pt of IMMA or MIMA"
        )
    # Links are not resolved, since those of the hub's cache lead to files without a suffix.
    return path.absolute()


def checkpoint_hash(name: str, variant: str | None = None) -> str:
    """Hash of a checkpoint's content, and of which variant of it is meant."""
    path = locate_checkpoint(name, variant)
    content = file_hash(path) if path.is_file() else folder_hash(path)
    return content if variant is None else digest([content, variant])


def with_checkpoint(base: Backbone, name: str, variant: str | None = None) -> Backbone:
    """The base with the denoiser of a checkpoint.

    Args:
        variant: which set of weights of a folder, as `fp16`; None: the one without a name, else the only one.

    Raises:
        ModelError: tensors are unknown, missing or misshapen; values are not finite or not plain
            floating-point numbers; other parts of the checkpoint differ from the base's; a delta was taken
            from another base or changes nothing; a file holds pickled code; a released folder differs from
            its manifest.
    """
    path = locate_checkpoint(name, variant)
    if (path / MANIFEST).exists():
        verify(path)
    if path.is_dir():
        loaded = load_backbone(
            ModelConfig(pretrained_model_name_or_path=str(path), variant=variant)
        )
        require_same_parts(base, loaded, origin=name)
        weights = loaded.weights()
    else:
        weights = _read(path, base)
    model = base.clone()
    model.load_weights(weights, origin=name)
    return model


def save_delta(base: Backbone, model: Backbone, path: Path) -> None:
    """Write the tensors in which a model differs from its base, with the base's hash in the metadata."""
    before, after = base.weights(), model.weights()
    changed = {n: t.cpu().contiguous() for n, t in after.items() if not torch.equal(t, before[n])}
    save_file(changed, path, metadata={BASE_HASH: unet_hash(base)})


def unet_hash(model: Backbone) -> str:
    """The hash of the denoiser's tensors, which does not depend on the file that they came from."""
    tensors = {
        name: digest([list(t.shape), t.detach().cpu().float().numpy().tobytes().hex()])
        for name, t in model.weights().items()
    }
    return digest(tensors)


def _read(path: Path, base: Backbone) -> dict[str, Tensor]:
    """All weights of the denoiser that a file gives: its own, and for a delta the base's for the others."""
    tensors, metadata = _read_pt(path) if path.suffix == ".pt" else read_safetensors(path)
    if not tensors:
        raise ModelError(f"{path}: holds no tensor")
    if is_single_file(tensors):
        return denoiser_of(path, tensors, metadata, base)
    if any("lora" in name for name in tensors):
        raise ModelError(f"{path}: holds a LoRA adapter, not a unet; fuse it into its base first")
    require_plain(tensors, origin=str(path))
    # The hash takes as long as reading the file, and is asked for only where there is one to compare.
    if BASE_HASH in metadata and metadata[BASE_HASH] != unet_hash(base):
        raise ModelError(f"{path}: this delta was taken from another base; give it its own base")
    prefix = f"{base.denoiser_name}."
    delta = {name.removeprefix(prefix): tensor.float() for name, tensor in tensors.items()}
    # A file with the denoiser's first tensor is a whole denoiser, in which no tensor may be missing. Others
    # are deltas.
    if next(iter(base.weights())) in delta:
        return delta
    before = base.weights()
    if all(n in before and torch.equal(t, before[n].cpu()) for n, t in delta.items()):
        raise ModelError(
            f"{path}: a delta whose {len(delta)} tensors are the base's own; nothing is changed"
        )
    return {**before, **delta}


def _read_pt(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A pickled dict of tensors, read without running code that a pickle may hold."""
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        detail = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{path}: not a plain dict of tensors, and not trusted ({type(error).__name__}): {detail}"
        ) from error
    if not isinstance(content, dict):
        raise ModelError(
            f"{path}: holds a {type(content).__name__}, must hold a dict of tensors by name"
        )
    wrong = [
        f"{name!r} ({type(value).__name__})"
        for name, value in content.items()
        if not (isinstance(name, str) and isinstance(value, Tensor))
    ]
    if wrong:
        raise ModelError(
            f"{path}: must hold a dict of tensors by name; not so: {', '.join(wrong[:3])}"
            + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        )
    return {name: tensor.detach() for name, tensor in content.items()}, {}

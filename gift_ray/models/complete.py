"""Loads networks, and refuses files in which tensors are missing or unknown.

diffusers and transformers only warn of these: a missing tensor gets random values, which differ from process
to process, and an unknown one is dropped.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from gift_ray.errors import ModelError, any_failure_is
from gift_ray.models.variants import variant_of

# Heads that nothing here uses, and which may therefore be missing or unknown.
HEADS = ("pooler.", "classifier.")
# The types of tensors that are accepted, by safetensors' names. Position indices are integers.
TYPES = {"F64", "F32", "F16", "BF16", "I64", "BOOL"}


def load_complete(
    kind: Any, folder: Path, *, origin: str, subfolder: str = "", **options: Any
) -> nn.Module:
    """Load a network of a diffusers or transformers class from safetensors, in fp32.

    Args:
        origin: the name of the network in messages.
        options: those of `from_pretrained`.

    Raises:
        ModelError: tensors are missing, unknown, misshapen, not finite, or quantized.
    """
    _silence()
    for file in sorted((folder / subfolder).glob("*.safetensors")):
        _require_types(file, origin)
    module, info = kind.from_pretrained(
        folder, subfolder=subfolder, dtype=torch.float32, use_safetensors=True,
        output_loading_info=True, **options,
    )  # fmt: skip
    for what in ("missing", "unexpected", "mismatched"):
        found = [n if isinstance(n, str) else n[0] for n in info.get(f"{what}_keys") or ()]
        names = sorted(name for name in found if not name.startswith(HEADS))
        if names:
            raise ModelError(
                f"{origin}: {len(names)} {what} tensors, first {names[0]!r}; get its files anew"
            )
    network: nn.Module = module
    for name, parameter in network.named_parameters():
        if not parameter.isfinite().all():
            raise ModelError(f"{origin}: {name!r} holds NaN or infinity; get its files anew")
    return network


def _silence() -> None:
    """Turn off the progress bars and warnings of diffusers and transformers, which our own errors replace."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for log in (diffusers_logging, transformers_logging):
        log.disable_progress_bar()
        log.set_verbosity_error()


def networks(
    folder: Path, given: Mapping[str, Any], *, variant: str | None, origin: str
) -> dict[str, nn.Module]:
    """Load the networks that the model_index.json of a diffusers folder names, except those that are `given`.

    Raises:
        ModelError: as in `load_complete`.
    """
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    found = {}
    for part, entry in index.items():
        if (
            part in given
            or not isinstance(entry, list)
            or entry[0] not in ("diffusers", "transformers")
        ):
            continue
        kind = getattr(importlib.import_module(entry[0]), entry[1], None)
        if isinstance(kind, type) and issubclass(kind, nn.Module):
            found[part] = load_complete(
                kind, folder, origin=f"{origin}: {part}", subfolder=part,
                variant=variant_of(folder / part, variant),
            )  # fmt: skip
    return found


def _require_types(file: Path, origin: str) -> None:
    with (
        any_failure_is(ModelError, f"{origin}: {file.name} is not a readable safetensors file"),
        safe_open(file, framework="pt") as stored,
    ):
        types = {name: stored.get_slice(name).get_dtype() for name in stored.keys()}
    wrong = sorted(name for name, kind in types.items() if kind not in TYPES)
    if wrong:
        raise ModelError(
            f"{origin}: {wrong[0]!r} holds {types[wrong[0]]}; give weights as float32, float16 or bfloat16"
        )

"""Which of several sets of weights in one diffusers folder is meant: `fp16` is that of the files named
`diffusion_pytorch_model.fp16.safetensors`, and so on."""

from __future__ import annotations

import re
from pathlib import Path

from gift_ray.errors import ModelError

# The names that diffusers and transformers give weights: the variant, and which part of several it is.
WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|model)(?:\.(?P<variant>\w+))?(?:-\d+-of-\d+)?\.safetensors"
)


def require_variant(folder: Path, wanted: str | None) -> None:
    """Refuse a variant of which a diffusers folder has no file, and a folder where none is named and more
    than one could be meant.

    Raises:
        ModelError: naming those that are there.
    """
    parts = [part for part in sorted(folder.iterdir()) if part.is_dir()]
    if wanted is not None and not any(wanted in _variants(part) for part in parts):
        named = sorted({name for part in parts for name in _variants(part) if name})
        there = f"there are {', '.join(named)}" if named else "it has none"
        raise ModelError(
            f"{folder}: holds no variant {wanted!r}; {there}, or leave the variant out"
        )
    for part in parts:
        variant_of(part, wanted)


def variant_of(part: Path, wanted: str | None) -> str | None:
    """The variant to read in the folder of one part. As in diffusers, a part that has not the wanted one is
    read without; where nothing is wanted and there is but one variant, that is taken.

    Raises:
        ModelError: there are several others.
    """
    there = _variants(part)
    if wanted in there:
        return wanted
    if None in there or not there:
        return None
    if wanted is None and len(there) == 1:
        return there.pop()
    raise ModelError(
        f"{part}: of its weights there is {', '.join(sorted(map(str, there)))}; say which is meant, as "
        "model.variant or --variant"
    )


def _variants(part: Path) -> set[str | None]:
    """The variants of the weights in a folder; None stands for those without."""
    found = (WEIGHTS.fullmatch(file.name) for file in part.glob("*.safetensors"))
    return {match["variant"] for match in found if match}

"""Chooses one of several sets of weights in one diffusers folder, which diffusers calls variants.

The variant `fp16`, for example, is in the files named `diffusion_pytorch_model.fp16.safetensors`.
"""

from __future__ import annotations

import re
from pathlib import Path

from gift_ray.errors import ModelError

# The names that diffusers and transformers give files of weights, with their variant and number.
WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|model)(?:\.(?P<variant>\w+))?(?:-\d+-of-\d+)?\.safetensors"
)


def require_variant(folder: Path, wanted: str | None) -> None:
    """Check that a diffusers folder has the wanted variant, or that it is clear which one is meant.

    Raises:
        ModelError: it is not there, or none is named and there are several; the message names them.
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
    """The variant to read in the folder of one part.

    As in diffusers, a part that does not have the wanted variant is read without one. If none is wanted and
    there is only one, that is taken.

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

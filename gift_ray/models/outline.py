"""A base model as its files describe it: its family, and the shapes of its tensors. What a study asks of a
base is held against this before a weight is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from gift_ray.config.schema import ModelConfig
from gift_ray.errors import ModelError
from gift_ray.models.backbone import Backbone
from gift_ray.models.families import family_of
from gift_ray.models.locate import locate

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Outline:
    """The family of a base, and of each part of its pipeline that has weights the shapes by name."""

    family: type[Backbone]
    parts: Mapping[str, Shapes]

    @property
    def denoiser(self) -> Shapes:
        """The shapes of the network that attacks and defenses train."""
        return self.parts[self.family.denoiser_name]

    def require_trainable_text(self) -> None:
        """Refuse what trains the text encoders of a family in which they stay as they are.

        Raises:
            ModelError: what to leave out.
        """
        if self.family.text_stays:
            raise ModelError(self.family.text_stays)


def outline(config: ModelConfig) -> Outline:
    """Read the heads of a base's safetensors files.

    Raises:
        ModelError: not found, of no known family, or a file that can't be read.
    """
    folder = locate(config)
    family = family_of(folder)
    parts = {part: _shapes(folder / part, config.variant) for part in family.needed}
    return Outline(family, {part: shapes for part, shapes in parts.items() if shapes})


def _shapes(folder: Path, variant: str | None) -> dict[str, tuple[int, ...]]:
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        if variant_of(file.name) != variant:
            continue
        try:
            with safe_open(file, framework="pt") as stored:
                found |= {n: tuple(stored.get_slice(n).get_shape()) for n in stored.keys()}
        except Exception as error:
            raise ModelError(f"{file}: not a readable safetensors file: {error}") from error
    return found


def variant_of(name: str) -> str | None:
    """The variant in the name of a file of weights: fp16 of `model.fp16.safetensors` and of
    `model.fp16-00001-of-00002.safetensors`; None for `model.safetensors` and its shards."""
    _, *between, _ = name.split(".")
    return between[0].split("-")[0] if between else None

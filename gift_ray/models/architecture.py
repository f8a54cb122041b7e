"""Describes a base model by its files alone: its family, and the shapes of its tensors.

A study checks what it asks of a base against this, before any weight is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from safetensors import safe_open

from gift_ray.config.schema import ModelConfig
from gift_ray.errors import ModelError, any_failure_is
from gift_ray.models.adapters import modules_named
from gift_ray.models.backbone import Backbone, ParameterGroup
from gift_ray.models.families import family_of
from gift_ray.models.loading import FIELD
from gift_ray.models.locate import files_of, locate
from gift_ray.training.footprint import FP32

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Architecture:
    """The family of a base, and the shapes of the tensors of each network in its pipeline, by name."""

    family: type[Backbone]
    parts: Mapping[str, Shapes]

    @property
    def denoiser(self) -> Shapes:
        """The shapes of the network that attacks and defenses train."""
        return self.parts[self.family.denoiser_name]

    @property
    def weights(self) -> int:
        """Bytes of the denoiser in fp32, as it is kept."""
        return FP32 * sum(self.sizes("all"))

    @property
    def text(self) -> int:
        """Bytes of the text encoders in fp32."""
        return FP32 * sum(self.text_sizes())

    def text_sizes(self) -> list[int]:
        """The numbers of weights of the text encoders' parameters."""
        encoders = (
            shapes for part, shapes in self.parts.items() if part.startswith("text_encoder")
        )
        return [math.prod(shape) for shapes in encoders for shape in shapes.values()]

    @property
    def vae(self) -> int:
        """Bytes of the VAE in fp32."""
        return FP32 * sum(math.prod(shape) for shape in self.parts["vae"].values())

    def sizes(self, group: ParameterGroup) -> list[int]:
        """The numbers of weights of the denoiser's parameters of a group."""
        return [
            math.prod(shape)
            for name, shape in self.denoiser.items()
            if group == "all" or self.family.in_group(name.split("."), group)
        ]

    def adapter_sizes(
        self, targets: Sequence[str], rank: int, group: ParameterGroup = "all"
    ) -> list[int]:
        """The numbers of weights of an adapter's A and B on some modules, those of a group."""
        found = []
        for module in modules_named(targets, self.family.roles, self.denoiser):
            if group == "all" or self.family.in_group(module.split("."), group):
                out, *into = self.denoiser[f"{module}.weight"]
                found += [rank * math.prod(into), rank * out]
        return found

    def require_trainable_text(self) -> None:
        """Check that the text encoders of this family can be trained.

        Raises:
            ModelError: they can't; the message says which options to leave out.
        """
        if self.family.text_stays:
            raise ModelError(self.family.text_stays)


def architecture(config: ModelConfig) -> Architecture:
    """Read the headers of a base's safetensors files.

    Raises:
        ModelError: the base is not found or of no known family, or a file can't be read.
    """
    folder = locate(config)
    family = family_of(folder)
    networks = [part for part in family.needed if not part.startswith(("tokenizer", "scheduler"))]
    parts = {part: _shapes(folder, part, config.variant) for part in networks}
    if missing := [part for part, shapes in parts.items() if not shapes]:
        kind = (
            f"safetensors weights of the variant {config.variant!r}"
            if config.variant
            else "safetensors weights"
        )
        raise ModelError(
            f"{FIELD}: {config.pretrained_model_name_or_path!r} has no {kind} of its {', '.join(missing)}"
            + ("; leave model.variant out, or give one that is there" if config.variant else "")
        )
    return Architecture(family, parts)


def _shapes(folder: Path, part: str, variant: str | None) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    patterns = files_of([part], variant)
    for file in sorted((folder / part).glob("*.safetensors")):
        if not any(fnmatchcase(f"{part}/{file.name}", pattern) for pattern in patterns):
            continue
        with (
            any_failure_is(ModelError, f"{file}: not a readable safetensors file"),
            safe_open(file, framework="pt") as stored,
        ):
            found |= {n: tuple(stored.get_slice(n).get_shape()) for n in stored.keys()}
    return found

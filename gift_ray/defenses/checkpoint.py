"""Somebody else's finished model as a defense, so that it is attacked and scored like our own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field

from gift_ray.models.architecture import Architecture
from gift_ray.models.backbone import Backbone
from gift_ray.models.checkpoints import checkpoint_hash, with_checkpoint
from gift_ray.plugins import Defense
from gift_ray.training.diffusion import Examples, Seeds
from gift_ray.training.footprint import Footprint
from gift_ray.training.loop import Report


class Checkpoint(Defense):
    """Returns the base with the checkpoint's denoiser; reads no data."""

    version: ClassVar[int] = 1
    trains: ClassVar[bool] = False

    path: str = Field(
        description="hub id, diffusers folder, single .safetensors, or a delta of the base"
    )
    variant: str | None = Field(None, description="of a folder's weights, as fp16")

    def identity(self) -> dict[str, Any]:
        """The checkpoint's content identifies it, and not its path."""
        content = checkpoint_hash(self.path, self.variant)
        return {"name": "checkpoint", "version": self.version, "path": None, "content": content}

    def footprint(self, base: Architecture) -> Footprint:
        return Footprint(weights=base.weights)

    def immunize(
        self,
        model: Backbone,
        malicious: Sequence[Examples],
        safe: Examples,
        *,
        seeds: Seeds,
        report: Report,
    ) -> Backbone:
        return with_checkpoint(model, self.path, self.variant)

"""A negative control: a model that is damaged at random.

It draws everything worse, the concept like all else. A verdict that calls it resistant measures damage, not
immunity.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field

from gift_ray.models.architecture import Architecture
from gift_ray.models.backbone import Backbone
from gift_ray.plugins import Defense
from gift_ray.training.diffusion import Examples, Seeds
from gift_ray.training.footprint import Footprint
from gift_ray.training.loop import Report


class Damage(Defense):
    """Adds normal noise to every weight, of `size` times the standard deviation of its tensor."""

    version: ClassVar[int] = 1

    size: float = Field(
        0.05, gt=0, description="choose it so that retention falls as a defense's does"
    )

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
        damaged = model.clone()
        with torch.no_grad():
            for index, (_, weight) in enumerate(sorted(damaged.parameters("all").items())):
                if weight.numel() > 1:
                    noise = torch.randn(weight.shape, generator=seeds.generator("damage", index))
                    weight.add_(noise.to(weight.device), alpha=self.size * float(weight.std()))
        return damaged

"""The undefended model as a defense that does nothing, so that no other code needs a special case."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from gift_ray.models.architecture import Architecture
from gift_ray.models.backbone import Backbone
from gift_ray.plugins import Defense
from gift_ray.training.diffusion import Examples, Seeds
from gift_ray.training.footprint import Footprint
from gift_ray.training.loop import Report


class Undefended(Defense):
    """Returns a copy of the base."""

    version: ClassVar[int] = 1
    trains: ClassVar[bool] = False

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
        return model.clone()

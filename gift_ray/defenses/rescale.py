"""A negative control: the base with rescaled weights, which computes the same function.

Pairs of weights in every attention are scaled against each other, which changes the size of fine-tuning steps
but not what the model computes. If it is called resistant, the attackers have tried too few learning rates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import nn

from gift_ray.errors import ModelError
from gift_ray.models.architecture import Architecture
from gift_ray.models.backbone import Backbone
from gift_ray.plugins import Defense
from gift_ray.training.diffusion import Examples, Seeds
from gift_ray.training.footprint import Footprint
from gift_ray.training.loop import Report


class Rescale(Defense):
    """Multiplies queries and values by `factor`, and divides keys and outputs by it.

    A power of two does not change a single bit of what is computed.
    """

    version: ClassVar[int] = 1
    trains: ClassVar[bool] = False

    factor: float = Field(8.0, gt=0)

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
        scaled = model.clone()
        pairs = list(_pairs(scaled.denoiser))
        if not pairs:
            raise ModelError("defense: rescale finds no attention whose weights it can pair")
        with torch.no_grad():
            for first, second in pairs:
                first.weight.mul_(self.factor)
                if first.bias is not None:
                    first.bias.mul_(self.factor)
                second.weight.div_(self.factor)
        return scaled


def _pairs(denoiser: nn.Module) -> Iterator[tuple[Any, Any]]:
    """Pairs of linear layers of which one can be multiplied and the other divided by a factor."""
    modules: Iterator[Any] = denoiser.modules()
    for module in modules:
        if not all(hasattr(module, name) for name in ("to_q", "to_k", "to_v", "to_out")):
            continue
        # The value's factor passes through the attention to the output layer's input.
        yield module.to_v, module.to_out[0]
        # Not where queries and keys are normalised, which removes the factor, or the key has a bias.
        if getattr(module, "norm_q", None) is None and module.to_k.bias is None:
            yield module.to_q, module.to_k

"""The line between the released weights and the base's, along which an attacker's training leads back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from gift_ray.models.backbone import Backbone


@contextmanager
def on_the_way(model: Backbone, base: Backbone, share: float) -> Iterator[None]:
    """Within the block the model's weights are theta + share (theta_0 - theta); theta_0 are the base's."""
    if share == 0:
        yield
        return
    weights = _moving(model)
    saved = {name: weight.detach().clone() for name, weight in weights.items()}
    step_back(model, base, share)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(saved[name])


@torch.no_grad()
def step_back(model: Backbone, base: Backbone, share: float) -> None:
    """Move the model's weights to theta + share (theta_0 - theta), theta_0 the base's."""
    if model.has_adapter:
        for weight in _moving(model).values():
            weight.mul_(1 - share)
        return
    goal = base.parameters("all")
    for name, weight in model.parameters("all").items():
        weight.lerp_(goal[name], share)


def _moving(model: Backbone) -> dict[str, nn.Parameter]:
    """The parameters that move.

    They are all of them. Where the weights are the base's with an adapter's B A on top, they are the B's,
    which shrink to nothing.
    """
    if not model.has_adapter:
        return model.parameters("all")
    return {name: p for name, p in model.adapter().items() if ".lora_B." in name}

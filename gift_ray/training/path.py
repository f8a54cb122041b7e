"""The line between the released weights and the base's, along which an attacker's training leads back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from gift_ray.models.backbone import Backbone


@contextmanager
def on_the_way(model: Backbone, base: Backbone, share: float) -> Iterator[None]:
    """Within the block the model's weights are theta + share (theta_0 - theta); theta_0 are the base's."""
    if share == 0:
        yield
        return
    weights = model.parameters("all")
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
    goal = base.parameters("all")
    for name, weight in model.parameters("all").items():
        weight.lerp_(goal[name], share)

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
    weights, goal = model.parameters("all"), base.parameters("all")
    saved = {name: weight.detach().clone() for name, weight in weights.items()}
    with torch.no_grad():
        for name, weight in weights.items():
            weight.lerp_(goal[name], share)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(saved[name])

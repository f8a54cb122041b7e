"""Gradients that oppose each other, and the projection that removes the conflict (PCGrad, Yu et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gift_ray.training.diffusion import dot


def project(gradients: Sequence[Tensor], other: Sequence[Tensor]) -> list[Tensor]:
    """Remove from `gradients` the component that opposes `other` (PCGrad, Yu et al. 2020, Alg. 1)."""
    conflict = dot(gradients, other)
    # If a gradient overflowed under fp16, its level skips this step anyway. The choice is made on the device,
    # for which a branch would have to wait.
    opposed = (conflict < 0) & conflict.isfinite()
    factor = conflict / dot(other, other).clamp_min(1e-20)
    pairs = zip(gradients, other, strict=True)
    return [torch.where(opposed, g - factor * o, g) for g, o in pairs]


def without_conflicts(gradients: Sequence[Sequence[Tensor]], order: Sequence[int]) -> list[Tensor]:
    """The sum of several gradients without their conflicts (PCGrad, Yu et al. 2020, Alg. 1).

    From each gradient the components that oppose the others are removed first, one after the other in
    `order`.
    """
    projected = []
    for i, gradient in enumerate(gradients):
        left = list(gradient)
        for j in order:
            if j != i:
                left = project(left, gradients[j])
        projected.append(left)
    return [torch.stack(parts).sum(0) for parts in zip(*projected, strict=True)]


def cosine(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """The cosine of the angle between two lists of tensors, each taken as one long vector; a scalar."""
    norms = (dot(left, left) * dot(right, right)).sqrt().clamp_min(1e-20)
    return dot(left, right) / norms

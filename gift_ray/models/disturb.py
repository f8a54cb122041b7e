"""Disturbances that an attacker may make to a released denoiser before fine-tuning it.

A defense may hold only near the released weights, so these disturbances lead away from them: the weights of
cross-attention are drawn anew or written in other factors, or noise is added to all weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import nn

Reinitialize = Literal["none", "cross_attention", "refactor_cross_attention"]


@torch.no_grad()
def reinitialize(parameters: Iterable[nn.Parameter], generator: torch.Generator) -> None:
    """Draw weight matrices anew from a normal distribution.

    It has the standard deviation of the old matrix, so that activations keep their scale. Biases and other
    one-dimensional weights stay as they are.
    """
    for parameter in parameters:
        if parameter.dim() > 1:
            draw = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(draw.to(parameter) * parameter.std())


@torch.no_grad()
def refactor(layers: Iterable[Any], generator: torch.Generator) -> None:
    """Write some attentions (with `to_q`, `to_k`, `to_v`, `to_out`) in other factors of the same function.

    In a head, W_q' = R W_q and W_k' = R W_k with one random rotation R leave q . k unchanged; W_v' = R' W_v
    and W_out' = W_out R'^T leave the output unchanged. Queries and keys that are normalised are left alone,
    since a rotation does not commute with the normalisation. In a joint attention the text's tokens have
    projections of their own (`add_v_proj`, `to_add_out`), which are rotated by the same R', since the values
    of text and image are added up.
    """
    for layer in layers:
        alike = [] if getattr(layer, "norm_q", None) is not None else [layer.to_q, layer.to_k]
        values, outputs = [layer.to_v], [layer.to_out[0]]
        if getattr(layer, "add_v_proj", None) is not None:
            values, outputs = [*values, layer.add_v_proj], [*outputs, layer.to_add_out]
        size = layer.to_v.weight.shape[0] // layer.heads
        for h in range(layer.heads):
            rows = slice(h * size, (h + 1) * size)
            turn, other = (rotation(size, generator).to(layer.to_v.weight) for _ in range(2))
            for linear, by in (*((q, turn) for q in alike), *((v, other) for v in values)):
                linear.weight[rows] = by @ linear.weight[rows]
                if linear.bias is not None:
                    linear.bias[rows] = by @ linear.bias[rows]
            for linear in outputs:
                linear.weight[:, rows] = linear.weight[:, rows] @ other.T


@torch.no_grad()
def add_weight_noise(module: nn.Module, amount: float, generator: torch.Generator) -> None:
    """Add normal noise to every weight matrix, with `amount` times the matrix's own standard deviation."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            draw = torch.randn(parameter.shape, generator=generator)
            parameter.add_(amount * parameter.std() * draw.to(parameter))


def rotation(size: int, generator: torch.Generator) -> torch.Tensor:
    """A random orthogonal matrix [size, size], in double precision."""
    drawn = torch.randn((size, size), generator=generator, dtype=torch.float64)
    orthogonal: torch.Tensor = torch.linalg.qr(drawn).Q
    return orthogonal

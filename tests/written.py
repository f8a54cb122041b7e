"""The losses of the papers, written out again on functional parameters, for the oracles of defenses."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call

from gift_ray.models.stable_diffusion import StableDiffusion
from gift_ray.training.diffusion import Batch

Weights = dict[str, Tensor]


def leaves(tensors: Weights) -> Weights:
    """Copies that gradients can be taken of."""
    return {name: tensor.detach().clone().requires_grad_() for name, tensor in tensors.items()}


def predicted(
    model: StableDiffusion, theta: Weights, batch: Batch, t: Tensor, eps: Tensor
) -> Tensor:
    """eps_theta(x_t, c, t), x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) eps."""
    a = model.noise_scheduler.alphas_cumprod[t].double().view(-1, 1, 1, 1)
    x_t = a.sqrt() * batch.latents + (1 - a).sqrt() * eps
    return functional_call(model.denoiser, theta, (x_t, t, batch.conditioning.tokens)).sample


def descended(parameters: Weights, loss: Tensor, rate: float) -> Weights:
    """One plain gradient step."""
    return moved(parameters, torch.autograd.grad(loss, list(parameters.values())), rate)


def moved(parameters: Weights, gradients: tuple[Tensor, ...], rate: float) -> Weights:
    """Parameters minus rate times gradients that may have been taken elsewhere."""
    pairs = zip(parameters.items(), gradients, strict=True)
    return leaves({name: p - rate * g for (name, p), g in pairs})

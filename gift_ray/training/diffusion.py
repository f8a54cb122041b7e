"""The mathematics of diffusion training: noising, prediction targets, per-sample losses, the capture
of activations, optimizer steps, and explicit randomness. torch only; no model is loaded here.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

PredictionType = Literal["epsilon", "v_prediction", "sample"]
OptimizerName = Literal["adamw", "sgd"]


@dataclass(frozen=True)
class Seeds:
    """Independent random streams, each named by (seed, purpose, index).

    Nothing depends on how often another stream was used, so a resumed or re-ordered run draws the
    same numbers. Generators live on the CPU: every device sees the same draws.
    """

    seed: int

    def generator(self, purpose: str, index: int = 0) -> torch.Generator:
        """A fresh CPU generator for one draw or one step."""
        text = f"{self.seed}/{purpose}/{index}".encode()
        number = int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1
        return torch.Generator().manual_seed(number)


@dataclass(frozen=True)
class Examples:
    """Encoded image-caption pairs, as training sees them.

    Shapes: `latents_mean` and `latents_std` [N, C, h, w] (the VAE posterior, scaled),
    `encoder_hidden_states` [N, L, D]. `keys` name each image for ever (content hashes).
    """

    latents_mean: Tensor
    latents_std: Tensor
    encoder_hidden_states: Tensor
    keys: tuple[str, ...]
    captions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.keys)

    def batch(self, size: int, generator: torch.Generator) -> Batch:
        """Draw `size` examples with replacement-free shuffling (repeating only when size > N)."""
        order = [
            torch.randperm(len(self), generator=generator) for _ in range(-(-size // len(self)))
        ]
        index = torch.cat(order)[:size]
        mean, std = self.latents_mean[index], self.latents_std[index]
        latents = mean + std * torch.randn(mean.shape, generator=generator)
        keys = tuple(self.keys[i] for i in index.tolist())
        captions = tuple(self.captions[i] for i in index.tolist())
        return Batch(latents, self.encoder_hidden_states[index], keys, captions)


@dataclass(frozen=True)
class Batch:
    """latents [B, C, h, w], encoder_hidden_states [B, L, D], and the images' keys and captions."""

    latents: Tensor
    encoder_hidden_states: Tensor
    keys: tuple[str, ...]
    captions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, rows: Sequence[int]) -> Batch:
        """Some of the examples, in the order of `rows`."""
        return Batch(
            self.latents[rows],
            self.encoder_hidden_states[rows],
            tuple(self.keys[i] for i in rows),
            tuple(self.captions[i] for i in rows),
        )


def balanced_batch(
    sets: Sequence[Examples], size: int, generator: torch.Generator
) -> tuple[Batch, list[list[int]]]:
    """A batch that takes the concepts in turn, however many images each has, and the rows of each one.

    The turn begins at a random concept, so that a batch smaller than the number of concepts favours
    none. One concept: its own `batch`, bit for bit.
    """
    first = int(torch.randint(len(sets), (), generator=generator)) if len(sets) > 1 else 0
    turns = [(first + i) % len(sets) for i in range(size)]
    counts = [turns.count(concept) for concept in range(len(sets))]
    parts = [s.batch(n, generator) for s, n in zip(sets, counts, strict=True) if n > 0]
    batch = Batch(
        torch.cat([part.latents for part in parts]),
        torch.cat([part.encoder_hidden_states for part in parts]),
        tuple(key for part in parts for key in part.keys),
        tuple(caption for part in parts for caption in part.captions),
    )
    ends = list(itertools.accumulate(counts))
    return batch, [list(range(end - n, end)) for end, n in zip(ends, counts, strict=True) if n > 0]


def concatenate(sets: Sequence[Examples]) -> Examples:
    """One set of examples out of several (many concepts at once)."""
    return Examples(
        latents_mean=torch.cat([s.latents_mean for s in sets]),
        latents_std=torch.cat([s.latents_std for s in sets]),
        encoder_hidden_states=torch.cat([s.encoder_hidden_states for s in sets]),
        keys=tuple(k for s in sets for k in s.keys),
        captions=tuple(c for s in sets for c in s.captions),
    )


def add_noise(latents: Tensor, noise: Tensor, timesteps: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) eps, the forward process (DDPM, Ho et al. 2020, Eq. 4).

    Shapes: latents and noise [B, C, h, w], timesteps [B], alphas_cumprod [T] -> [B, C, h, w].
    """
    signal, sigma = _signal_and_sigma(timesteps, alphas_cumprod, latents)
    return signal * latents + sigma * noise


def prediction_target(
    kind: PredictionType, latents: Tensor, noise: Tensor, timesteps: Tensor, alphas_cumprod: Tensor
) -> Tensor:
    """What the unet is trained to output: eps, v = sqrt(a) eps - sqrt(1-a) x_0, or x_0."""
    if kind == "epsilon":
        return noise
    if kind == "sample":
        return latents
    signal, sigma = _signal_and_sigma(timesteps, alphas_cumprod, latents)
    return signal * noise - sigma * latents


def per_sample_mse(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each sample, [B, ...] -> [B]; the caller reduces."""
    return (full(prediction) - full(target)).square().flatten(1).mean(1)


def full(tensor: Tensor) -> Tensor:
    """At least single precision: half types are widened, doubles stay."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _signal_and_sigma(timesteps: Tensor, alphas: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    alpha = alphas.to(like.device)[timesteps].to(like.dtype).view(-1, *[1] * (like.dim() - 1))
    return alpha.sqrt(), (1 - alpha).sqrt()


@contextmanager
def capture(modules: dict[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Collect the outputs of some modules during forward passes; hooks never outlive the block.

    Blocks that return tuples (diffusers' down blocks) give their hidden states, the first item.
    """
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            seen[name] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


class Level:
    """One optimizer over one group of parameters: an inner or outer level, or an attacker.

    Args:
        parameters: name -> parameter; kept in fp32 (bf16 steps would vanish).
        learning_rate: constant, above 0.
        max_grad_norm: gradients are clipped to it; None: no clipping.
        fp16: scale the loss, as fp16 autocast needs.

    Raises:
        ValueError: for an empty group (a selector that matches nothing must not pass silently).
    """

    def __init__(
        self,
        parameters: dict[str, nn.Parameter],
        *,
        optimizer: OptimizerName,
        learning_rate: float,
        weight_decay: float = 0.0,
        max_grad_norm: float | None = 1.0,
        fp16: bool = False,
    ) -> None:
        if not parameters:
            raise ValueError("no parameter was selected: nothing would be trained")
        self.parameters = parameters
        self.max_grad_norm = max_grad_norm
        values = list(parameters.values())
        self.optimizer: torch.optim.Optimizer
        if optimizer == "adamw":
            self.optimizer = torch.optim.AdamW(
                values, learning_rate, weight_decay=weight_decay, fused=True
            )
        else:
            self.optimizer = torch.optim.SGD(values, learning_rate, weight_decay=weight_decay)
        self.scaler = torch.amp.GradScaler(enabled=fp16)

    def gradients(self, loss: Tensor) -> list[Tensor]:
        """Gradients of a scalar loss on this level's parameters only, unscaled."""
        values = list(self.parameters.values())
        scaled = torch.autograd.grad(self.scaler.scale(loss), values, allow_unused=True)
        scale = self.scaler.get_scale() if self.scaler.is_enabled() else 1.0
        return [
            torch.zeros_like(p) if g is None else g / scale if scale != 1.0 else g
            for p, g in zip(values, scaled, strict=True)
        ]

    def step(self, gradients: Sequence[Tensor]) -> float:
        """Clip, update, forget the gradients. Returns their norm before clipping."""
        values = list(self.parameters.values())
        norm = global_norm(gradients)
        if self.scaler.is_enabled() and not torch.isfinite(norm):
            # fp16 overflow: the scale was too high; halve it and skip the update.
            self.scaler.update(self.scaler.get_scale() / 2)
            return float(norm)
        factor = 1.0
        if self.max_grad_norm is not None:
            factor = min(1.0, self.max_grad_norm / (float(norm) + 1e-6))
        for parameter, gradient in zip(values, gradients, strict=True):
            parameter.grad = gradient if factor == 1.0 else gradient * factor
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def state(self) -> dict[str, Any]:
        """The optimizer's tensors, keyed by parameter name, and fp16's scale, for a checkpoint."""
        state = self.optimizer.state
        tensors = {name: dict(state[p]) for name, p in self.parameters.items() if p in state}
        return {"optimizer": tensors, "scaler": self.scaler.state_dict()}

    def load_state(self, saved: dict[str, Any]) -> None:
        """Put back what `state` gave."""
        tensors = saved.get("optimizer", {})
        for name, parameter in self.parameters.items():
            if name in tensors:
                # A fused optimizer wants its state, the step count included, beside the parameter.
                state = {key: value.to(parameter.device) for key, value in tensors[name].items()}
                self.optimizer.state[parameter] = state
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(saved["scaler"])


def training_state(done: int, unet: nn.Module, **levels: Level) -> dict[str, Any]:
    """What a training needs to continue after `done` steps: weights and optimizers. Every random
    draw is named by its step, so there is no generator state to keep."""
    states = {name: level.state() for name, level in levels.items()}
    return {"done": done, "unet": dict(unet.state_dict()), **states}


def restore_training(state: dict[str, Any] | None, unet: nn.Module, **levels: Level) -> int:
    """Put back what `training_state` gave, if anything; returns the number of steps done."""
    if state is None:
        return 0
    unet.load_state_dict(state["unet"])
    for name, level in levels.items():
        level.load_state(state[name])
    return int(state["done"])


def global_norm(tensors: Iterable[Tensor]) -> Tensor:
    """Euclidean norm over all elements of all tensors."""
    return torch.stack([full(t).norm() for t in tensors]).norm()


def dot(left: Iterable[Tensor], right: Iterable[Tensor]) -> Tensor:
    """Inner product over all elements of two lists of tensors."""
    return torch.stack([(a * b).sum() for a, b in zip(left, right, strict=True)]).sum()

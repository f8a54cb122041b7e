"""The mathematics of diffusion training: examples, noising, targets, losses, activations and random streams.

It needs torch alone; no model is loaded here.
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

from gift_ray.training.conditioning import Conditioning
from gift_ray.training.devices import on_device

PredictionType = Literal["epsilon", "v_prediction", "sample"]


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
    """Pairs of image and caption, encoded for training.

    Attributes:
        latents_mean, latents_std: [N, C, h, w], the VAE's posterior in the denoiser's units.
        conditioning: N rows, made from `captions`.
        keys: the content hash of each image, which names it everywhere.
    """

    latents_mean: Tensor
    latents_std: Tensor
    conditioning: Conditioning
    keys: tuple[str, ...]
    captions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.keys)

    def batch(self, size: int, generator: torch.Generator) -> Batch:
        """Draw `size` examples without replacement; above N, all are repeated about equally often."""
        order = [
            torch.randperm(len(self), generator=generator) for _ in range(-(-size // len(self)))
        ]
        index = torch.cat(order)[:size]
        mean, std = self.latents_mean[index], self.latents_std[index]
        latents = mean + std * torch.randn(mean.shape, generator=generator)
        keys = tuple(self.keys[i] for i in index.tolist())
        captions = tuple(self.captions[i] for i in index.tolist())
        return Batch(latents, self.conditioning[index], keys, captions)

    def take(self, rows: Sequence[int]) -> Examples:
        """Some of the examples, in the order of `rows`."""
        return Examples(
            self.latents_mean[rows],
            self.latents_std[rows],
            self.conditioning[rows],
            tuple(self.keys[i] for i in rows),
            tuple(self.captions[i] for i in rows),
        )


@dataclass(frozen=True)
class Batch:
    """One batch: latents [B, C, h, w], their conditioning of B rows, and the images' keys and captions."""

    latents: Tensor
    conditioning: Conditioning
    keys: tuple[str, ...]
    captions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, rows: Sequence[int]) -> Batch:
        """Some of the examples, in the order of `rows`."""
        return Batch(
            self.latents[rows],
            self.conditioning[rows],
            tuple(self.keys[i] for i in rows),
            tuple(self.captions[i] for i in rows),
        )


def balanced_batch(
    sets: Sequence[Examples], size: int, generator: torch.Generator
) -> tuple[Batch, list[list[int]]]:
    """A batch with equally many images of each concept, and the rows of each concept in it.

    The concepts are taken in turn, beginning at a random one, so that a batch that is smaller than the number
    of concepts favours none. For a single concept this is its own `batch`, bit for bit.
    """
    first = int(torch.randint(len(sets), (), generator=generator)) if len(sets) > 1 else 0
    turns = [(first + i) % len(sets) for i in range(size)]
    counts = [turns.count(concept) for concept in range(len(sets))]
    parts = [s.batch(n, generator) for s, n in zip(sets, counts, strict=True) if n > 0]
    batch = Batch(
        torch.cat([part.latents for part in parts]),
        Conditioning.concatenate([part.conditioning for part in parts]),
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
        conditioning=Conditioning.concatenate([s.conditioning for s in sets]),
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
    """The output that the denoiser is trained to give: eps, v = sqrt(a) eps - sqrt(1-a) x_0, or x_0."""
    if kind == "epsilon":
        return noise
    if kind == "sample":
        return latents
    signal, sigma = _signal_and_sigma(timesteps, alphas_cumprod, latents)
    return signal * noise - sigma * latents


def per_sample_mse(prediction: Tensor, target: Tensor) -> Tensor:
    """The mean squared error of each sample, [B, ...] -> [B]; the caller takes the mean over samples."""
    return (full(prediction) - full(target)).square().flatten(1).mean(1)


def full(tensor: Tensor) -> Tensor:
    """The tensor in single precision or above: half types are widened, doubles stay."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _signal_and_sigma(timesteps: Tensor, alphas: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    alpha = (
        on_device(alphas, like.device)[timesteps].to(like.dtype).view(-1, *[1] * (like.dim() - 1))
    )
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


def global_norm(tensors: Iterable[Tensor]) -> Tensor:
    """Euclidean norm over all elements of all tensors."""
    norm: Tensor = torch.stack([full(t).norm() for t in tensors]).norm()
    return norm


def dot(left: Iterable[Tensor], right: Iterable[Tensor]) -> Tensor:
    """Inner product over all elements of two lists of tensors."""
    return torch.stack([(a * b).sum() for a, b in zip(left, right, strict=True)]).sum()

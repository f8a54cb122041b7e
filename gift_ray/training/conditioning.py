"""The conditioning of a model: the output of its text encoders, and what else its family gives the denoiser.

Only the family (gift_ray/models) knows what the tensors mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gift_ray.training.devices import on_device

Rows = Tensor | Sequence[int] | slice


@dataclass(frozen=True)
class Conditioning:
    """The conditioning of N images.

    Attributes:
        tokens: [N, L, D], the states of the prompts' tokens, to which the denoiser attends.
        others: further tensors by name, with one row for each image.
    """

    tokens: Tensor
    others: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: Rows) -> Conditioning:
        """Some of the rows, in the order given; still a Conditioning of several rows."""
        return Conditioning(self.tokens[rows], {n: t[rows] for n, t in self.others.items()})

    def to(self, target: torch.device | torch.dtype) -> Conditioning:
        """A copy on a device, or with its floating-point tensors in a precision."""
        if isinstance(target, torch.device):
            return self._each(lambda t: on_device(t, target))
        return self._each(lambda t: t.to(target) if t.is_floating_point() else t)

    def repeat(self, count: int) -> Conditioning:
        """One row, `count` times, without a copy."""
        assert len(self) == 1, f"only a single row is repeated, not {len(self)}"
        return self._each(lambda t: t.expand(count, *t.shape[1:]))

    def with_tokens(self, tokens: Tensor) -> Conditioning:
        """The same with other token states."""
        return replace(self, tokens=tokens)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, as `from_tensors` reads them, for a safetensors file."""
        named = {"tokens": self.tokens, **self.others}
        return {f"conditioning.{name}": tensor.contiguous() for name, tensor in named.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Conditioning:
        """The conditioning whose `tensors` are among those of a file."""
        found = {
            name.removeprefix("conditioning."): tensor
            for name, tensor in tensors.items()
            if name.startswith("conditioning.")
        }
        return cls(found.pop("tokens"), found)

    @classmethod
    def concatenate(cls, parts: Sequence[Conditioning]) -> Conditioning:
        """One conditioning with the rows of several, one after the other."""
        names = parts[0].others
        return cls(
            torch.cat([part.tokens for part in parts]),
            {name: torch.cat([part.others[name] for part in parts]) for name in names},
        )

    def _each(self, change: Any) -> Conditioning:
        return Conditioning(change(self.tokens), {n: change(t) for n, t in self.others.items()})

"""What a training holds in memory at once, counted in bytes from the shapes of what it trains."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from gift_ray.training.optimizers import state_bytes

FP32 = 4


@dataclass(frozen=True)
class Footprint:
    """Bytes beside the model that a training is given.

    They are those of copies and adapters, of gradients, and of what optimizers keep. Activations come on top;
    they depend on the device's kernels and are not counted.
    """

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0

    @classmethod
    def of(cls, optimizer: str, trained: Iterable[int], *, weights: int = 0) -> Self:
        """Of one optimizer over parameters of these numbers of weights.

        Args:
            weights: bytes of the copy or adapter that they belong to.
        """
        sizes = list(trained)
        return cls(weights, FP32 * sum(sizes), state_bytes(optimizer, sizes))

    def __add__(self, other: Footprint) -> Footprint:
        return Footprint(
            self.weights + other.weights,
            self.gradients + other.gradients,
            self.optimizer + other.optimizer,
        )

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer

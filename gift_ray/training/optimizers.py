"""The optimizers by name: AdamW, plain gradient descent, and AdamW in 8 bits.

The last one is that of bitsandbytes. It keeps both moments in 8 bits, with a scale for each 256 of them
(Dettmers et al., ICLR 2022).
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch

from gift_ray.errors import ConfigError

OptimizerName = Literal["adamw", "sgd", "adamw_8bit"]
# bitsandbytes keeps smaller tensors in full.
BLOCK, LEAST_8BIT = 256, 4096


def make_optimizer(
    name: OptimizerName, values: Sequence[torch.Tensor], learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """An optimizer over some parameters.

    Raises:
        ConfigError: its package is not installed.
    """
    require_optimizer(name)
    if name == "adamw":
        return torch.optim.AdamW(list(values), learning_rate, weight_decay=weight_decay, fused=True)
    if name == "sgd":
        return torch.optim.SGD(list(values), learning_rate, weight_decay=weight_decay)
    eight_bits: Any = importlib.import_module("bitsandbytes.optim")
    optimizer: torch.optim.Optimizer = eight_bits.AdamW8bit(
        list(values), lr=learning_rate, weight_decay=weight_decay
    )
    return optimizer


def require_optimizer(name: str) -> None:
    """Look whether an optimizer can be used here.

    Raises:
        ConfigError: its package is not installed.
    """
    if name == "adamw_8bit" and importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            "optimizer: adamw_8bit needs bitsandbytes, which is not installed; install "
            "gift-ray[bitsandbytes], or take adamw"
        )


def state_bytes(name: str, sizes: Iterable[int]) -> int:
    """The bytes of an optimizer's state over parameters of these numbers of weights, in fp32."""
    if name == "sgd":
        return 0
    if name == "adamw":
        return sum(8 * size + 4 for size in sizes)
    return sum(
        8 * size if size < LEAST_8BIT else 2 * size + 8 * math.ceil(size / BLOCK) for size in sizes
    )

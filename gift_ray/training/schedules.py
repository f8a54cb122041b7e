"""How the learning rate changes during a training: the schedules of diffusers' `get_scheduler`, under its
names, as functions of the step."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["constant", "constant_with_warmup", "linear", "cosine"]


def schedule(name: Schedule, index: int, *, warmup: int, steps: int) -> float:
    """The share of the learning rate that step `index` of `steps` takes; index 0 is the first.

    All but `constant` rise linearly from 0 over the first `warmup` steps; then `linear` falls to 0 in a
    straight line, `cosine` along half a cosine.
    """
    if name == "constant":
        return 1.0
    if index < warmup:
        return index / warmup
    if name == "constant_with_warmup":
        return 1.0
    done = (index - warmup) / max(1, steps - warmup)
    if name == "linear":
        return max(0.0, 1 - done)
    return max(0.0, 0.5 * (1 + math.cos(math.pi * done)))


def falling(index: int, rounds: int, share: float) -> float:
    """The factor of the learning rates in round `index`: 1, then over the last `share` of the rounds in
    a straight line towards 0, which it would reach at round `rounds`."""
    first = rounds * (1 - share)
    return 1.0 if index <= first else (rounds - index) / (rounds - first)

"""Schedules of the learning rate as functions of the step, under the names of diffusers' `get_scheduler`."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["constant", "constant_with_warmup", "linear", "cosine"]


def schedule(name: Schedule, index: int, *, warmup: int, steps: int) -> float:
    """The factor of the learning rate at step `index` of `steps`; the first step has index 0.

    All schedules except `constant` rise linearly from 0 over the first `warmup` steps. Then `linear` falls to
    0 in a straight line, and `cosine` along half a cosine.
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
    """The factor of the learning rates in round `index`.

    It is 1 at first. Over the last `share` of the rounds it falls in a straight line, and would be 0 at round
    `rounds`.
    """
    first = rounds * (1 - share)
    return 1.0 if index <= first else (rounds - index) / (rounds - first)

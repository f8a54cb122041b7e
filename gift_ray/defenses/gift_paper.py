"""GIFT exactly as in the paper.

It has the unbounded L_max of Eq. 5, noise with the sample's own mean and variance in Eq. 7, and the plain
gradient steps of Algorithm 1. What the paper leaves open has the defaults of `gift`.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from gift_ray.defenses.gift import Gift
from gift_ray.training.optimizers import OptimizerName


class GiftPaper(Gift):
    """`gift` with other defaults; every option can still be set."""

    version: ClassVar[int] = 1

    max_loss: Literal["negative", "hinge", "log"] = "negative"
    noise_target: Literal["sample", "frozen"] = "sample"
    optimizer: OptimizerName = "sgd"
    max_grad_norm: float | None = None

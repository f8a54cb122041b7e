"""GIFT to the letter of the paper: the unbounded L_max of Eq. 5, the sample's own mean and variance in
Eq. 7, plain gradient steps as in Algorithm 1. What the paper leaves open keeps gift's default."""

from __future__ import annotations

from typing import ClassVar, Literal

from gift_ray.defenses.gift import Gift
from gift_ray.training.loop import OptimizerName


class GiftPaper(Gift):
    """The verbatim preset; every option can still be set."""

    version: ClassVar[int] = 1

    max_loss: Literal["negative", "hinge", "log"] = "negative"
    noise_target: Literal["sample", "frozen"] = "sample"
    optimizer: OptimizerName = "sgd"
    max_grad_norm: float | None = None

"""What immunization does to the denoising error of the malicious images: raise it, by one of several laws."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

MaxLoss = Literal["negative", "hinge", "log"]


def max_loss(mse: Tensor, kind: MaxLoss, margin: float) -> Tensor:
    """L_max from the per-sample denoising errors [B] -> [B].

    `negative` is Eq. 5, unbounded below; `hinge` max(0, margin - mse) stops at the margin; `log`
    -log(1 + mse) slows down.
    """
    if kind == "negative":
        return -mse
    if kind == "hinge":
        return torch.relu(margin - mse)
    return -torch.log1p(mse)

"""L_max, the loss that raises the denoising error of the malicious images, in several forms."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

MaxLoss = Literal["negative", "hinge", "log"]


def max_loss(mse: Tensor, kind: MaxLoss, margin: float) -> Tensor:
    """L_max of each sample, from the denoising errors: [B] -> [B].

    `negative` is -mse (GIFT, Eq. 5), which is unbounded below; `hinge` is max(0, margin - mse), which stops
    at the margin; `log` is -log(1 + mse), which falls more and more slowly.
    """
    if kind == "negative":
        return -mse
    if kind == "hinge":
        return torch.relu(margin - mse)
    return -torch.log1p(mse)

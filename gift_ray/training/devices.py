"""Work that is queued for a device without waiting for it: copies to it, and numbers that are still there."""

from __future__ import annotations

import torch
from torch import Tensor

# A number to log: a float, or a scalar tensor that is still on the device where it was computed.
Scalar = float | Tensor


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device, by a copy that does not wait for the device.

    A copy from ordinary memory to a GPU waits until the GPU has done everything that was queued before. One
    from page-locked memory is queued itself, and overlaps with what the GPU computes.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def number(value: Tensor) -> Tensor:
    """A scalar to log, in double precision as `value.item()` would be, but not waited for."""
    return value.detach().double()

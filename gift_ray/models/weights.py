"""Checks the weights of a denoiser one by one, when they are loaded and when they are saved."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gift_ray.errors import ModelError, UnitFailed

PLAIN = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def load_strictly(module: nn.Module, weights: dict[str, Tensor], *, origin: str, what: str) -> None:
    """Put weights into a module.

    Args:
        origin: where the weights come from, for messages.
        what: the name of the module in messages.

    Raises:
        ModelError: unknown, missing, misshapen or non-finite weights, by name.
    """
    expected = module.state_dict()
    unknown = sorted(weights.keys() - expected.keys())
    missing = sorted(expected.keys() - weights.keys())
    for kind, names in (("unknown", unknown), ("missing", missing)):
        if names:
            raise ModelError(f"{origin}: {len(names)} {kind} {what} weights, first {names[0]!r}")
    require_plain(weights, origin=origin)
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape:
            raise ModelError(f"{origin}: {name!r} has shape {tuple(tensor.shape)}, "
                             f"the {what} needs {tuple(expected[name].shape)}")  # fmt: skip
        if not tensor.isfinite().all():
            raise ModelError(f"{origin}: {name!r} holds NaN or infinity")
    module.load_state_dict(weights)


def require_plain(weights: Mapping[str, Tensor], *, origin: str) -> None:
    """Refuse integers and 8-bit floats: these are quantized weights, whose scales are stored elsewhere.

    Raises:
        ModelError: there is such a tensor; the message names the first one and its type.
    """
    for name, tensor in weights.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise ModelError(f"{origin}: {name!r} is not a dense tensor ({tensor.layout})")
        if tensor.dtype not in PLAIN:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ModelError(
                f"{origin}: {name!r} holds {kind}; give weights as float32, float16 or bfloat16"
            )


def require_equal(own: Mapping[str, Tensor], theirs: Mapping[str, Tensor], *, origin: str) -> None:
    """Compare weights with those that were read back from the file that they were written to.

    Raises:
        ModelError: they are not equal, bit for bit.
    """
    wrong = sorted(
        name
        for name in own.keys() | theirs.keys()
        if name not in own
        or name not in theirs
        or not torch.equal(own[name].cpu(), theirs[name].cpu())
    )
    if wrong:
        raise ModelError(
            f"{origin}: {len(wrong)} tensors are not read back as they were written, first {wrong[0]!r}; "
            "nothing was exported"
        )


def require_finite(weights: Mapping[str, Tensor]) -> None:
    """Check that all weights are finite.

    Raises:
        UnitFailed: a weight is not finite.
    """
    bad = [name for name, tensor in weights.items() if not tensor.isfinite().all()]
    if bad:
        raise UnitFailed(f"weights are not finite in {len(bad)} tensors, first {bad[0]}")

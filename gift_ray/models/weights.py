"""Weights of a denoiser, checked one by one: nothing unknown, missing, misshapen or not finite gets in,
and nothing that is not finite gets out."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from gift_ray.errors import ModelError, UnitFailed


def load_strictly(module: nn.Module, weights: dict[str, Tensor], *, origin: str, what: str) -> None:
    """Put weights into a module.

    Args:
        origin: where they come from, and `what` the module is, for the message.

    Raises:
        ModelError: unknown, missing, misshapen or non-finite weights, by name.
    """
    expected = module.state_dict()
    unknown = sorted(weights.keys() - expected.keys())
    missing = sorted(expected.keys() - weights.keys())
    for kind, names in (("unknown", unknown), ("missing", missing)):
        if names:
            raise ModelError(f"{origin}: {len(names)} {kind} {what} weights, first {names[0]!r}")
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape:
            raise ModelError(f"{origin}: {name!r} has shape {tuple(tensor.shape)}, "
                             f"the {what} needs {tuple(expected[name].shape)}")  # fmt: skip
        if not tensor.isfinite().all():
            raise ModelError(f"{origin}: {name!r} holds NaN or infinity")
    module.load_state_dict(weights)


def require_finite(weights: Mapping[str, Tensor]) -> None:
    """Raises UnitFailed if a weight is not finite."""
    bad = [name for name, tensor in weights.items() if not tensor.isfinite().all()]
    if bad:
        raise UnitFailed(f"weights are not finite in {len(bad)} tensors, first {bad[0]}")

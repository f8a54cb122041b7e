"""Checks that a checkpoint has the same parts as the base, apart from its denoiser.

Only the denoiser of a checkpoint is attacked and scored, together with the base's other parts. A checkpoint
with another text encoder, VAE or noise schedule would therefore get the score of a model that nobody
released, and is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from gift_ray.errors import ModelError
from gift_ray.models.backbone import Backbone

# Keys of a configuration that don't change what is computed.
BESIDE = {"sample_size", "dtype", "torch_dtype", "force_upcast"}


def require_same_parts(base: Backbone, other: Backbone, *, origin: str) -> None:
    """Refuse a model that differs from the base in more than its denoiser's weights.

    Raises:
        ModelError: parts differ; the message names them and says how.
    """
    differences = list(_differences(base, other))
    if differences:
        raise _foreign(origin, differences)


def require_same_weights(
    part: str, own: Mapping[str, Tensor], theirs: Mapping[str, Tensor], *, origin: str
) -> None:
    """Refuse a file whose weights of some part differ from the base's.

    Raises:
        ModelError: they differ; the message names the part.
    """
    if difference := _weights(own, theirs):
        raise _foreign(origin, [f"{part} ({difference})"])


def require_same_schedule(
    base: Backbone, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, origin: str
) -> None:
    """Refuse a single file that was trained with another prediction type or noise schedule than the base.

    A file states this in its metadata, or by empty tensors named `v_pred` and `ztsnr`.

    Raises:
        ModelError: they differ; the message names how.
    """
    config = getattr(getattr(base, "noise_scheduler", None), "config", {})
    said = {
        metadata.get(name, "").lower() for name in ("modelspec.prediction_type", "prediction_type")
    }
    v_prediction = "v_pred" in tensors or bool(said & {"v", "v_prediction", "v-prediction"})
    wrong = []
    if v_prediction and config.get("prediction_type") != "v_prediction":
        wrong.append(
            f"prediction type (v_prediction; the base's is {config.get('prediction_type')})"
        )
    if "epsilon" in said and config.get("prediction_type") != "epsilon":
        wrong.append(f"prediction type (epsilon; the base's is {config.get('prediction_type')})")
    if "ztsnr" in tensors and not config.get("rescale_betas_zero_snr"):
        wrong.append("noise schedule (zero terminal SNR)")
    own = getattr(getattr(base, "noise_scheduler", None), "alphas_cumprod", None)
    theirs = tensors.get("alphas_cumprod")
    if own is not None and theirs is not None and not _same_schedule(own, theirs):
        wrong.append("noise schedule (alphas_cumprod)")
    if wrong:
        raise _foreign(origin, wrong)


def _foreign(origin: str, differences: list[str]) -> ModelError:
    return ModelError(
        f"{origin}: differs from the base in its {'; '.join(differences)}. Only its denoiser would be "
        "attacked, in the base's other parts: set model.pretrained_model_name_or_path to the model that it "
        "was made from"
    )


def _differences(base: Backbone, other: Backbone) -> Iterator[str]:
    if type(base) is not type(other):
        yield f"family ({type(other).__name__}; the base's is {type(base).__name__})"
        return
    if keys := _config(base.denoiser, other.denoiser):
        yield f"{base.denoiser_name} configuration ({', '.join(keys)})"
    for field in fields(base):
        own, theirs = getattr(base, field.name), getattr(other, field.name)
        if field.name != "denoiser" and (difference := _part(own, theirs)):
            yield f"{field.name} ({difference})"


def _part(own: Any, theirs: Any) -> str:
    """How a part of a model differs from the base's; "" if it does not."""
    if isinstance(own, nn.Module):
        return _module(own, theirs)
    if hasattr(own, "get_vocab"):
        if own.get_vocab() != theirs.get_vocab():
            return "other words"
        return "" if own.model_max_length == theirs.model_max_length else "another length"
    return _schedule(own, theirs) if hasattr(own, "config") else ""


def _module(own: Any, theirs: Any) -> str:
    other = [
        name
        for name in ("scaling_factor", "shift_factor")
        if getattr(own.config, name, None) != getattr(theirs.config, name, None)
    ]
    return _weights(own.state_dict(), theirs.state_dict()) or ", ".join(other)


def _weights(own: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> str:
    """How two sets of weights differ; "" if they are equal, or one is the other in lower precision."""
    if own.keys() != theirs.keys():
        return f"{len(own.keys() ^ theirs.keys())} tensors that only one of them has"
    other = [name for name, tensor in own.items() if not _same(tensor, theirs[name])]
    return f"{len(other)} of {len(own)} tensors, first {other[0]}" if other else ""


def _same(own: Tensor, theirs: Tensor) -> bool:
    if own.shape != theirs.shape:
        return False
    own, theirs = own.detach().cpu(), theirs.detach().cpu().to(own.dtype)
    if torch.equal(own, theirs):
        return True
    return any(
        torch.equal(own.to(few).to(own.dtype), theirs.to(few).to(own.dtype))
        for few in (torch.float16, torch.bfloat16)
        if own.is_floating_point()
    )


def _config(own: Any, theirs: Any) -> list[str]:
    """The keys that both configurations have and whose values differ. New versions of diffusers add keys."""
    one, other = dict(own.config), dict(theirs.config)
    return sorted(
        key
        for key in one.keys() & other.keys()
        if not key.startswith("_") and key not in BESIDE and _plain(one[key]) != _plain(other[key])
    )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _schedule(own: Any, theirs: Any) -> str:
    if not hasattr(own, "alphas_cumprod"):
        return ", ".join(_config(own, theirs))
    if own.config.prediction_type != theirs.config.prediction_type:
        return f"{theirs.config.prediction_type}; the base's is {own.config.prediction_type}"
    same = _same_schedule(own.alphas_cumprod, theirs.alphas_cumprod)
    return "" if same else "other betas"


def _same_schedule(own: Tensor, theirs: Tensor) -> bool:
    return own.shape == theirs.shape and torch.allclose(
        own.float().cpu(), theirs.float().cpu(), atol=1e-3
    )

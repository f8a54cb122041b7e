"""Makes, saves and reads LoRA adapters (Hu et al. 2021) of a denoiser.

peft provides the layers, and diffusers the names under which adapters are saved.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from gift_ray.errors import ModelError, any_failure_is
from gift_ray.models.weights import require_finite

# peft puts the own weights of an adapted layer below this name, and those of the adapter beside it.
BASE_LAYER = "base_layer."
ADAPTER = ".lora_"


def modules_named(
    targets: Sequence[str], roles: Mapping[str, str], weights: Iterable[str]
) -> list[str]:
    """The paths of the modules that an adapter is put on.

    Args:
        targets: roles, or ends of module paths such as `to_q` and `to_out.0`.
        roles: for each role of the denoiser's family a pattern of module paths.
        weights: the names of the denoiser's weights.

    Raises:
        ModelError: no module has such a role or name.
    """
    modules = [name.removesuffix(".weight") for name in weights if name.endswith(".weight")]
    found = []
    for target in targets:
        pattern = roles.get(target, rf"(.*\.)?{re.escape(target)}")
        named = [module for module in modules if re.fullmatch(pattern, module)]
        if not named:
            raise ModelError(
                f"attacks.target_modules: {target!r} is no module of this denoiser; give ends of module "
                f"names, as to_q, or {' or '.join(roles)}"
            )
        found += named
    return list(dict.fromkeys(found))


def with_lora(
    denoiser: nn.Module, *, rank: int, lora_alpha: int, lora_dropout: float,
    target_modules: Sequence[str], generator: torch.Generator,
) -> nn.Module:  # fmt: skip
    """A frozen copy with a trainable adapter, W + lora_alpha / rank B A (LoRA, Eq. 3).

    A ~ N(0, 1 / rank^2) as in the diffusers scripts, and B = 0, so that no output changes before the first
    step.

    Args:
        target_modules: the paths of the modules that are adapted.
        generator: draws A.
    """
    from peft import LoraConfig

    # Weights that nobody trains are shared with the copy, those of a model in training are copied.
    shared = {id(p): p for p in denoiser.parameters() if not p.requires_grad}
    adapted: Any = copy.deepcopy(denoiser, shared).requires_grad_(False)
    adapted.add_adapter(
        LoraConfig(
            r=rank, lora_alpha=lora_alpha, lora_dropout=lora_dropout,
            target_modules=list(target_modules),
        )
    )  # fmt: skip
    # peft has drawn A from the global generator; draw it again from ours.
    for name, parameter in adapted.named_parameters():
        if ".lora_A." in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) / rank)
    frozen: nn.Module = adapted.eval()
    return frozen


def own_parameters(denoiser: nn.Module) -> dict[str, nn.Parameter]:
    """The denoiser's parameters without those of the adapter, under the names that they have without one."""
    return {
        name.replace(BASE_LAYER, ""): parameter
        for name, parameter in denoiser.named_parameters()
        if ADAPTER not in name
    }


def own_weights(denoiser: nn.Module) -> dict[str, Tensor]:
    """The denoiser's weights without those of the adapter, under the names that they have without one."""
    return {
        name.replace(BASE_LAYER, ""): tensor
        for name, tensor in denoiser.state_dict().items()
        if ADAPTER not in name
    }


def adapter_parameters(denoiser: nn.Module) -> dict[str, nn.Parameter]:
    """The adapter's parameters by name."""
    return {name: p for name, p in denoiser.named_parameters() if ADAPTER in name}


def save(denoiser: Any, name: str, pipeline: Any, folder: Path) -> None:
    """Write `pytorch_lora_weights.safetensors` in the form that the class `pipeline` reads.

    Args:
        name: the name of the denoiser in that pipeline.

    Raises:
        UnitFailed: a weight is not finite.
    """
    from peft.utils import get_peft_model_state_dict

    # The names are peft's. diffusers' older ones exist for attentions only, and files that mix both are read
    # wrongly.
    layers = get_peft_model_state_dict(denoiser)
    require_finite(layers)
    # The metadata hold lora_alpha; without them a reader takes the rank for it.
    metadata = denoiser.peft_config["default"].to_dict()
    pipeline.save_lora_weights(
        folder, **{f"{name}_lora_layers": layers, f"{name}_lora_adapter_metadata": metadata}
    )


def save_kohya(
    denoiser: Any, path: Path, rename: Callable[[str], str | None] = lambda module: module
) -> None:
    """Write one file in kohya's format: `lora_unet_*.lora_down.weight`, `.lora_up.weight`, `.alpha`.

    Args:
        rename: what kohya calls a module; None: nothing. Modules of one name are one module there, and are
            written side by side as such (queries, keys and values of FLUX).

    Raises:
        UnitFailed: a weight is not finite.
        ModelError: an adapted module has no name in this format, or not all of those that are one there
            are adapted.
    """
    from peft.utils import get_peft_model_state_dict

    layers = get_peft_model_state_dict(denoiser)
    require_finite(layers)
    config = denoiser.peft_config["default"]
    named: dict[str, list[str]] = {}
    for module in dict.fromkeys(name.partition(ADAPTER)[0] for name in layers):
        if (known := rename(module)) is None:
            raise ModelError(
                f"--format kohya: {module} has no name in kohya's format; adapt attentions only, or "
                "export as lora"
            )
        named.setdefault(known, []).append(module)
    tensors = {}
    for known, modules in named.items():
        if known.endswith(".qkv") and len(modules) != 3:
            raise ModelError(
                f"--format kohya: {known} is queries, keys and values in one, and only {len(modules)} of "
                "them are adapted; adapt all three, or export as lora"
            )
        down, up = _side_by_side(
            [tuple(layers[f"{m}{ADAPTER}{part}.weight"] for part in "AB") for m in modules]
        )
        name = f"lora_unet_{known.replace('.', '_')}"
        tensors[f"{name}.lora_down.weight"] = down.cpu().contiguous()
        tensors[f"{name}.lora_up.weight"] = up.cpu().contiguous()
        # A reader multiplies by alpha over the rank, which is that of all of them together.
        tensors[f"{name}.alpha"] = torch.tensor(float(config.lora_alpha * len(modules)))
    metadata = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(config.r),
        "ss_network_alpha": str(config.lora_alpha),
    }
    save_file(tensors, path, metadata=metadata)


def _side_by_side(pairs: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, Tensor]:
    """One adapter (A, B) of a module whose output is those of several modules, one after the other."""
    if len(pairs) == 1:
        return pairs[0][0], pairs[0][1]
    up: Tensor = torch.block_diag(*[b for _, b in pairs])  # type: ignore[no-untyped-call]
    return torch.cat([a for a, _ in pairs]), up


def load(denoiser: nn.Module, name: str, pipeline: Any, path: Path) -> nn.Module:
    """A frozen copy with the adapter that the class `pipeline` reads from a folder or safetensors file.

    Raises:
        ModelError: the adapter is not found, is none, or adapts modules that this denoiser does not have.
    """
    if not path.exists():
        raise ModelError(f"{path}: no such LoRA adapter; give its folder or safetensors file")
    adapted = copy.deepcopy(denoiser)
    with any_failure_is(ModelError, f"{path}: not a LoRA adapter of this {name}"):
        # To read the original names of a UNet's blocks, as in kohya's files of SDXL, its architecture is
        # needed.
        known = {"unet_config": denoiser.config} if name == "unet" else {}
        tensors, *alphas, metadata = pipeline.lora_state_dict(
            str(path), use_safetensors=True, return_lora_metadata=True, **known
        )
        # `alphas` is empty for families whose adapters have none beside the weights.
        getattr(pipeline, f"load_lora_into_{name}")(
            tensors, *alphas, adapted, adapter_name="default", metadata=metadata
        )
    # diffusers only warns of tensors for which the denoiser has no place.
    unused = len(tensors) - len(adapter_parameters(adapted))
    if unused:
        raise ModelError(
            f"{path}: {unused} of {len(tensors)} adapter tensors have no place in this {name}"
        )
    return adapted.requires_grad_(False)


@torch.no_grad()
def add_to(denoiser: nn.Module, adapted: nn.Module) -> None:
    """Add to the weights of a denoiser what the adapter of another one adds to them."""
    modules = dict(denoiser.named_modules())
    for name, module in adapted.named_modules():
        for adapter in getattr(module, "active_adapters", ()) if hasattr(module, "lora_A") else ():
            weight: Any = modules[name].weight
            weight += module.get_delta_weight(adapter).to(weight)


def require_same(adapted: nn.Module, read_back: nn.Module, *, origin: str) -> None:
    """Compare an adapter with the one that was read back from its file.

    Raises:
        ModelError: tensors are missing or differ, or are scaled by another factor.
    """
    own, theirs = (_matrices(each) for each in (adapted, read_back))
    wrong = sorted(
        name
        for name in own.keys() | theirs.keys()
        if name not in own or name not in theirs or not torch.allclose(own[name], theirs[name])
    )
    if wrong:
        raise ModelError(
            f"{origin}: {len(wrong)} of {len(own)} adapter layers are not read back as they were written, "
            f"first {wrong[0]!r}; nothing was exported"
        )


def _matrices(denoiser: nn.Module) -> dict[str, Tensor]:
    """The matrix scaling x B A that the adapter adds to the weight of each of its modules."""
    found = {}
    for name, module in denoiser.named_modules():
        for adapter in getattr(module, "active_adapters", ()) if hasattr(module, "lora_A") else ():
            found[name] = module.get_delta_weight(adapter).detach().cpu()
    return found

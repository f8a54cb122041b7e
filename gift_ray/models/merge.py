"""Merges models that are immunized against one concept each into one model, without training.

Keys and values of the cross-attentions are computed in closed form; for all other weights the changes of the
models are averaged.

Custom Diffusion (Kumari et al., CVPR 2023, Eq. 4) and MIMA (Zheng and Yeh, AAAI 2025) look for the W that
gives each concept's tokens exactly the values of the concept's own model, and is nearest to the base's W on
regularization tokens. Captions share tokens ("an emoji of a"), so these constraints contradict each other and
the system is singular. Here they are terms of one ridge regression instead, whose limit for `preserve` -> 0
is their solution:

    min over D = W - W_0 of   sum_n mean |(D - D_n) c|^2 over the tokens c of concept n
                            + preserve * mean |D c|^2 over the tokens of D_S + ridge * |D|^2
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from gift_ray.config.schema import MergeConfig
from gift_ray.errors import UnitFailed
from gift_ray.training.diffusion import Examples

NOT_SOLVED = (
    "concepts.merge.keys_and_values: solve needs keys and values that are applied to the prompt's own "
    "tokens, which this family of models has not; set it to average"
)


def merge_weights(
    base: Mapping[str, Tensor], models: Iterable[Mapping[str, Tensor]],
    concepts: Sequence[Examples], safe: Examples, keys_and_values: Sequence[str],
    options: MergeConfig,
) -> tuple[dict[str, Tensor], dict[str, float]]:  # fmt: skip
    """The merged weights, and how far they are from each concept's own keys and values.

    Args:
        base: the denoiser's weights from which all models started. All weights here are on the CPU.
        models: the weights of the models, in the order of `concepts`; they are read one at a time.
        concepts: D_M of each concept. Its tokens are the text encoder's states of its captions.
        keys_and_values: the names of the weights [out, D] that are applied to tokens.

    Raises:
        UnitFailed: the system is too ill-conditioned to be trusted.
    """
    # The change of each model: summed over the models, but for keys and values also kept for each of them.
    total: dict[str, Tensor] = {}
    changed: dict[str, list[Tensor]] = {name: [] for name in keys_and_values}
    for weights in models:
        for name, tensor in weights.items():
            delta = tensor - base[name]
            total[name] = total[name] + delta if name in total else delta
            if name in changed and options.keys_and_values == "solve":
                changed[name].append(delta)
    width = safe.conditioning.tokens.shape[-1]
    if options.keys_and_values == "solve" and any(
        base[name].shape[-1] != width for name in keys_and_values
    ):
        raise UnitFailed(NOT_SOLVED)
    merged = {name: delta * (options.scale / len(concepts)) for name, delta in total.items()}

    # Keys and values are solved by the regression above. All of them have the same system matrix.
    values: dict[str, float] = {}
    if options.keys_and_values == "solve":
        moments = [second_moment(examples) for examples in concepts]
        system, values["condition"] = regularized(moments, second_moment(safe), options)
        for name, deltas in changed.items():
            merged[name] = solve(deltas, moments, system)
        for n, moment in enumerate(moments):
            missed = [_power(merged[m] - own[n], moment) for m, own in changed.items()]
            wanted = [_power(own[n], moment) for own in changed.values()]
            values[f"missed/{n}"] = (sum(missed) / max(sum(wanted), 1e-30)) ** 0.5
    return {name: base[name] + delta.to(base[name]) for name, delta in merged.items()}, values


def second_moment(examples: Examples) -> Tensor:
    """The mean of c c^T over the tokens c of all distinct captions, [D, D], in double precision."""
    first = {caption: i for i, caption in reversed(list(enumerate(examples.captions)))}
    tokens = examples.conditioning.tokens[sorted(first.values())].double().flatten(0, 1)
    return tokens.T @ tokens / len(tokens)


def regularized(
    moments: Sequence[Tensor], safe: Tensor, options: MergeConfig
) -> tuple[Tensor, float]:
    """The regression's normal matrix [D, D] and its condition number.

    The ridge is relative to the mean eigenvalue of the matrix.

    Raises:
        UnitFailed: the condition number is above `max_condition`.
    """
    system = torch.stack(list(moments)).sum(0) + options.preserve * safe
    system = system + options.ridge * system.trace() / len(system) * torch.eye(len(system)).double()
    eigenvalues = torch.linalg.eigvalsh(system)
    smallest = max(float(eigenvalues[0]), 0.0)
    condition = float(eigenvalues[-1]) / smallest if smallest else float("inf")
    if not condition <= options.max_condition:
        raise UnitFailed(
            f"the keys and values of these concepts have condition number {condition:.1e}, above "
            f"concepts.merge.max_condition {options.max_condition:.1e}; raise concepts.merge.ridge"
        )
    return system, condition


def solve(deltas: Sequence[Tensor], moments: Sequence[Tensor], system: Tensor) -> Tensor:
    """The solution D = (sum_n D_n M_n) system^-1, [out, D], at which the regression's gradient is zero."""
    wanted = torch.stack([d.double() @ m for d, m in zip(deltas, moments, strict=True)]).sum(0)
    transposed: Tensor = torch.linalg.solve(system, wanted.T)
    return transposed.T


def _power(delta: Tensor, moment: Tensor) -> float:
    """The mean of |delta c|^2 over the tokens c of a second moment."""
    return float(((delta.double() @ moment) * delta).sum())

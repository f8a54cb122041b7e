"""Merging in closed form, against a naive least-squares solver and MIMA's own formula."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import make_examples
from torch import Tensor

from gift_ray.config.schema import MergeConfig
from gift_ray.errors import UnitFailed
from gift_ray.models.merge import merge_weights, second_moment
from gift_ray.training.conditioning import Conditioning
from gift_ray.training.diffusion import Examples

KV = "attn2.to_k.weight"
OUT, D = 5, 16


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def words(count: int, seed: int) -> Examples:
    """Examples whose captions differ, so that every one's tokens count: [count, 16, 16]."""
    examples = make_examples(count, seed)
    return replace(examples, captions=tuple(f"{seed}/{i}" for i in range(count)))


def tokens(examples: Examples) -> Tensor:
    return examples.conditioning.tokens.double().flatten(0, 1)


BASE = {KV: draw(OUT, D, seed=0), "conv_in.weight": draw(3, 2, seed=1)}
MODELS = [{name: t + 0.1 * draw(*t.shape, seed=n) for name, t in BASE.items()} for n in (2, 3)]


def merged(
    concepts: list[Examples], safe: Examples, models: list[dict[str, Tensor]] = MODELS,
    **options: object,
) -> tuple[dict[str, Tensor], dict[str, float]]:  # fmt: skip
    return merge_weights(BASE, models, concepts, safe, [KV], MergeConfig(**options))


def test_keys_and_values_solve_the_regression_that_is_written_down() -> None:
    concepts, safe = [words(2, seed=4), words(3, seed=5)], words(2, seed=6)
    options = {"ridge": 0.03, "preserve": 0.7}
    found, values = merged(concepts, safe, **options)

    # Every token a row, every weight a root, the ridge as D rows more: plain least squares.
    rows, wanted = [], []
    for examples, model in zip(concepts, MODELS, strict=True):
        c = tokens(examples) / len(tokens(examples)) ** 0.5
        rows.append(c)
        wanted.append(c @ (model[KV] - BASE[KV]).double().T)
    rows.append(tokens(safe) * (options["preserve"] / len(tokens(safe))) ** 0.5)
    normal = sum(r.T @ r for r in rows)
    rows.append((options["ridge"] * normal.trace() / D) ** 0.5 * torch.eye(D).double())
    wanted += [torch.zeros(len(r), OUT).double() for r in rows[2:]]
    change = torch.linalg.lstsq(torch.cat(rows), torch.cat(wanted)).solution.T
    torch.testing.assert_close(found[KV], (BASE[KV] + change).float(), rtol=0, atol=1e-6)

    torch.testing.assert_close(
        values["condition"], float(torch.linalg.cond(torch.cat(rows)) ** 2), rtol=1e-6, atol=0
    )
    for n, (examples, model) in enumerate(zip(concepts, MODELS, strict=True)):
        own = (model[KV] - BASE[KV]).double()
        missed = (tokens(examples) @ (change - own).T).norm() / (tokens(examples) @ own.T).norm()
        assert values[f"missed/{n}"] == pytest.approx(float(missed), rel=1e-4)


def test_its_limit_is_the_constrained_solution_of_mima() -> None:
    """W = W_0 + v^T d, d = C (C_reg^T C_reg)^-1, v^T = (V - W_0 C^T) (d C^T)^-1."""
    few = [words(1, seed=n) for n in (4, 5)]
    # Three tokens a concept: six constraints in sixteen dimensions can all be met.
    few = [replace(e, conditioning=Conditioning(e.conditioning.tokens[:, :3], {})) for e in few]
    safe = words(4, seed=6)
    c, c_reg = torch.cat([tokens(e) for e in few]), tokens(safe)
    base = BASE[KV].double()
    v = torch.cat([tokens(e) @ m[KV].double().T for e, m in zip(few, MODELS, strict=True)]).T
    d = c @ torch.linalg.inv(c_reg.T @ c_reg)
    expected = base + (v - base @ c.T) @ torch.linalg.inv(d @ c.T) @ d
    torch.testing.assert_close(expected @ c.T, v)

    found, values = merged(few, safe, preserve=1e-5, ridge=1e-13, max_condition=1e16)
    torch.testing.assert_close(found[KV], expected.float(), rtol=0, atol=2e-4)
    assert max(values["missed/0"], values["missed/1"]) < 1e-3


def test_the_rest_is_the_mean_of_changes_and_its_scale() -> None:
    concepts, safe = [words(1, seed=4), words(1, seed=5)], words(2, seed=6)
    name = "conv_in.weight"
    changes = sum(model[name] - BASE[name] for model in MODELS)
    for scale in (1.0, 2.0):
        found, _ = merged(concepts, safe, scale=scale)
        torch.testing.assert_close(found[name], BASE[name] + scale / 2 * changes)
        averaged, values = merged(concepts, safe, scale=scale, keys_and_values="average")
        both = sum(model[KV] - BASE[KV] for model in MODELS)
        torch.testing.assert_close(averaged[KV], BASE[KV] + scale / 2 * both)
        assert values == {}


def test_a_caption_counts_once_however_many_images_have_it() -> None:
    two = words(2, seed=4)
    often = Examples(
        two.latents_mean[[0, 0, 0, 1]], two.latents_std[[0, 0, 0, 1]],
        two.conditioning[[0, 0, 0, 1]], ("a", "b", "c", "d"),
        (*[two.captions[0]] * 3, two.captions[1]),
    )  # fmt: skip
    torch.testing.assert_close(second_moment(often), second_moment(two))


def test_an_ill_conditioned_system_is_refused() -> None:
    # Sixteen tokens that are one: a system of rank one, which the ridge alone carries.
    one = words(1, seed=4)
    same = replace(
        one, conditioning=Conditioning(one.conditioning.tokens[:, :1].expand(-1, 16, -1), {})
    )
    _, values = merged([same, same], same, ridge=1e-3)
    assert values["condition"] == pytest.approx(16 / 1e-3, rel=0.01)
    with pytest.raises(UnitFailed, match=r"1\.6e\+09, above .*max_condition 1\.0e\+08; raise"):
        merged([same, same], same, ridge=1e-8)

"""SOPHON against its loops, written out again with functional parameters and autograd."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from killed import Killed, KilledJournal
from tiny import doubled, doubled_examples, same_weights, weights
from torch import Tensor
from written import Weights, descended, leaves, predicted

from gift_ray import plugins
from gift_ray.defenses.sophon import Sophon
from gift_ray.models.stable_diffusion import StableDiffusion
from gift_ray.study.journal import LocalJournal
from gift_ray.training.diffusion import Batch, Examples, Seeds

SEEDS = Seeds(13)
BATCH, KEPT, ATTACK_STEPS, RATE = 3, 1, 2, 0.05
LETTER: dict[str, Any] = {
    "attack_steps": ATTACK_STEPS, "train_batch_size": BATCH, "query_share": 0.34, "inner_steps": 2,
    "attack_learning_rate": RATE, "alpha_outer": 1e-3, "alpha_inner": 2e-3,
    "max_train_steps": 2 * (ATTACK_STEPS + 2), "max_grad_norm": 0.05,
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tiny_model: StableDiffusion) -> StableDiffusion:
    return doubled(tiny_model)


def drawn(
    model: StableDiffusion, examples: Examples, purpose: str, index: int
) -> tuple[Batch, Tensor, Tensor]:
    generator = SEEDS.generator(purpose, index)
    batch = examples.batch(BATCH, generator)
    eps, t = model.draw(BATCH, generator)
    return batch, t, eps.double()


def part(found: tuple[Batch, Tensor, Tensor], rows: list[int]) -> tuple[Batch, Tensor, Tensor]:
    batch, t, eps = found
    return batch.take(rows), t[rows], eps[rows]


def suppression_gradient(
    model: StableDiffusion, theta: Weights, d_m: Examples, loss: str, index: int
) -> list[Tensor]:
    """(1/K) sum_k grad L_sup(query_k) at theta_k, theta_k = theta_{k-1} - a grad L(support_k)."""
    attacked, sums = theta, [torch.zeros_like(p) for p in theta.values()]
    for k in range(ATTACK_STEPS):
        found = drawn(model, d_m, "suppression", index * ATTACK_STEPS + k)
        batch, t, eps = part(found, list(range(BATCH - KEPT)))
        error = ((predicted(model, attacked, batch, t, eps) - eps) ** 2).mean()
        attacked = descended(attacked, error, RATE)
        batch, t, eps = part(found, list(range(BATCH - KEPT, BATCH)))
        prediction = predicted(model, attacked, batch, t, eps)
        l_sup = -((prediction - eps) ** 2).mean() if loss == "mse" else (prediction**2).mean()
        for total, g in zip(sums, torch.autograd.grad(l_sup, list(attacked.values())), strict=True):
            total += g / ATTACK_STEPS
    return sums


@pytest.mark.parametrize("loss", ["mse", "dos"])
def test_rounds_are_the_written_suppression_and_reinforcement(
    loss: str, model: StableDiffusion, malicious: Examples, safe: Examples, journal: LocalJournal
) -> None:
    d_m, d_s = doubled_examples(malicious), doubled_examples(safe)
    result = Sophon(**LETTER, suppression_loss=loss).immunize(
        model, [d_m], d_s, seeds=SEEDS, report=journal
    )

    theta = leaves(dict(model.denoiser.named_parameters()))
    values = list(theta.values())
    outer, inner = torch.optim.Adam(values, 1e-3), torch.optim.Adam(values, 2e-3)
    for index in range(2):
        gradients = suppression_gradient(model, theta, d_m, loss, index)
        norm = torch.stack([g.norm() for g in gradients]).norm()
        for p, g in zip(values, gradients, strict=True):
            p.grad = g * min(1.0, 0.05 / float(norm + 1e-6))
        assert norm > 0.05, "the clipping is not met"
        outer.step()
        for k in range(2):
            batch, t, eps = drawn(model, d_s, "inner", index * 2 + k)
            inner.zero_grad()
            ((predicted(model, theta, batch, t, eps) - eps) ** 2).mean().backward()
            inner.step()

    for name, found in weights(result).items():
        torch.testing.assert_close(found, theta[name].detach(), rtol=0, atol=1e-9)
    assert [row["images_seen"] for row in journal.rows] == [4 * BATCH, 8 * BATCH]


def test_what_it_immunizes_denoises_d_m_worse_even_after_its_attack(
    tiny_model: StableDiffusion, malicious: Examples, safe: Examples, journal: LocalJournal
) -> None:
    sophon = Sophon(
        attack_steps=3, train_batch_size=3, attack_learning_rate=1e-2, alpha_outer=2e-3,
        alpha_inner=1e-4, max_train_steps=60,
    )  # fmt: skip
    sophon.immunize(tiny_model, [malicious], safe, seeds=Seeds(0), report=journal)
    errors = [-row["L_sup"] for row in journal.rows]
    assert sum(errors[-3:]) > 1.2 * sum(errors[:3])


def test_options_left_out_are_the_authors_for_the_loss() -> None:
    assert (Sophon().alpha_inner, Sophon().inner_steps, Sophon().max_train_steps) == (
        5e-4, 1, 51_000,
    )  # fmt: skip
    dos = Sophon(suppression_loss="dos", inner_steps=3)
    assert (dos.alpha_outer, dos.alpha_inner, dos.inner_steps) == (5e-6, 2e-4, 3)
    assert plugins.check("defenses", "sophon", {"suppression_loss": "dose"})
    assert plugins.check("defenses", "sophon", {"suppression_loss": ["dos"]})


def test_a_killed_training_continues_bit_for_bit(
    tiny_model: StableDiffusion, malicious: Examples, safe: Examples, tmp_path: Path
) -> None:
    sophon = Sophon(attack_steps=2, train_batch_size=2, max_train_steps=9)

    def run(journal: LocalJournal) -> Weights:
        model = sophon.immunize(tiny_model, [malicious], safe, seeds=SEEDS, report=journal)
        return weights(model)

    whole = run(LocalJournal(tmp_path / "whole", every=1))
    with pytest.raises(Killed):
        run(KilledJournal(tmp_path / "killed", every=1))
    assert same_weights(run(LocalJournal(tmp_path / "killed", every=1)), whole)

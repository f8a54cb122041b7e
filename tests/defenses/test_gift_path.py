"""GIFT beyond the paper: the outer gradient on the way to the base, distillation, decay and tail, against
the equations written out again here and differentiated by autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from killed import Killed, KilledJournal
from tiny import doubled, doubled_examples, same_weights, weights
from torch import Tensor

from gift_ray.defenses.gift import Gift
from gift_ray.models.stable_diffusion import StableDiffusion
from gift_ray.study.journal import LocalJournal
from gift_ray.training.diffusion import Batch, Examples, Seeds
from gift_ray.training.path import on_the_way
from gift_ray.training.preservation import distillation_loss, without_captions
from gift_ray.training.schedules import falling

SEEDS = Seeds(12)
BATCH = 2
LETTER: dict[str, Any] = {
    "optimizer": "sgd", "max_grad_norm": None, "train_batch_size": BATCH, "beta": 0.0, "margin": 9.0,
    "max_loss": "hinge", "alpha_inner": 0.03, "alpha_outer": 0.05, "parameter_group": "all",
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tiny_model: StableDiffusion) -> StableDiffusion:
    return doubled(tiny_model)


@pytest.fixture(scope="module")
def d_m(malicious: Examples) -> Examples:
    return doubled_examples(malicious)


@pytest.fixture(scope="module")
def d_s(safe: Examples) -> Examples:
    return doubled_examples(safe)


def noised(
    model: StableDiffusion, examples: Examples, purpose: str, index: int
) -> tuple[Tensor, Tensor, Tensor, Batch]:
    """x_t, t and eps of one batch, and the batch."""
    generator = SEEDS.generator(purpose, index)
    batch = examples.batch(BATCH, generator)
    eps, t = model.draw(BATCH, generator)
    a = model.noise_scheduler.alphas_cumprod[t].double().view(-1, 1, 1, 1)
    return a.sqrt() * batch.latents + (1 - a).sqrt() * eps, t, eps.double(), batch


def prediction(model: StableDiffusion, x_t: Tensor, t: Tensor, batch: Batch) -> Tensor:
    return model.denoiser(x_t, t, batch.conditioning.tokens).sample


def distilled(model: StableDiffusion, base: StableDiffusion, d_s: Examples, index: int) -> Tensor:
    """mean || eps_theta(x_t, c, t) - eps_theta_0(x_t, c, t) ||^2."""
    x_t, t, _, batch = noised(model, d_s, "inner", index)
    goal = prediction(base, x_t, t, batch).detach()
    return ((prediction(model, x_t, t, batch) - goal) ** 2).mean()


def hinge(model: StableDiffusion, d_m: Examples, index: int) -> Tensor:
    """mean relu(margin - || eps_theta(x_t, c, t) - eps ||^2)."""
    x_t, t, eps, batch = noised(model, d_m, "outer", index)
    error = ((prediction(model, x_t, t, batch) - eps) ** 2).mean((1, 2, 3))
    return (9.0 - error).clamp_min(0).mean()


def descend(model: StableDiffusion, gradients: tuple[Tensor, ...], rate: float) -> None:
    with torch.no_grad():
        for parameter, gradient in zip(model.denoiser.parameters(), gradients, strict=True):
            parameter -= rate * gradient


def by_hand(
    base: StableDiffusion, d_m: Examples, d_s: Examples, rounds: int, path: float
) -> StableDiffusion:
    """Path immunization as it is written: distil at theta, ascend at theta + u (theta_0 - theta)."""
    model = base.clone()
    theta = list(model.denoiser.parameters())
    for index in range(rounds):
        descend(model, torch.autograd.grad(distilled(model, base, d_s, index), theta), 0.03)
        u = path * float(torch.rand((), generator=SEEDS.generator("path", index)))
        between = model.clone()
        with torch.no_grad():
            for point, start in zip(
                between.denoiser.parameters(), base.denoiser.parameters(), strict=True
            ):
                point += u * (start - point)
        away = torch.autograd.grad(hinge(between, d_m, index), list(between.denoiser.parameters()))
        descend(model, away, 0.05)
    return model


@pytest.mark.parametrize("path", [0.0, 0.8])
def test_path_immunization_is_what_is_written(
    path: float, model: StableDiffusion, d_m: Examples, d_s: Examples, journal: LocalJournal
) -> None:
    gift = Gift(**LETTER, max_train_steps=6, prior_loss="distillation", path=path)
    result = gift.immunize(model, [d_m], d_s, seeds=SEEDS, report=journal)
    written = by_hand(model, d_m, d_s, 3, path)
    for name, expected in weights(written).items():
        torch.testing.assert_close(weights(result)[name], expected, rtol=0, atol=1e-12)
    # Three rounds are enough for the path to matter.
    other = weights(by_hand(model, d_m, d_s, 3, 0.8 - path))
    assert any((weights(result)[n] - w).abs().max() > 1e-6 for n, w in other.items())


def test_distillation_is_zero_at_the_base_alone(model: StableDiffusion, d_s: Examples) -> None:
    generator = SEEDS.generator("inner", 0)
    batch = d_s.batch(BATCH, generator)
    noise, times = model.draw(BATCH, generator)
    assert distillation_loss(model, model, batch, times, noise).item() == 0
    moved = model.clone()
    with torch.no_grad():
        next(moved.denoiser.parameters()).add_(0.1)
    ours = distillation_loss(moved, model, batch, times, noise)
    assert ours.item() > 0
    torch.testing.assert_close(ours, distilled(moved, model, d_s, 0))


def test_the_way_to_the_base_is_left_as_it_was_found(model: StableDiffusion) -> None:
    moved = model.clone()
    with torch.no_grad():
        for parameter in moved.denoiser.parameters():
            parameter.add_(1.0)
    before = {name: w.clone() for name, w in weights(moved).items()}

    def stopped_on_the_way() -> None:
        with on_the_way(moved, model, 0.25):
            for name, parameter in moved.denoiser.named_parameters():
                torch.testing.assert_close(parameter.detach(), weights(model)[name] + 0.75)
            raise RuntimeError("stopped on the way")

    with pytest.raises(RuntimeError, match="stopped"):
        stopped_on_the_way()
    assert same_weights(before, weights(moved))


def test_rates_fall_over_the_last_rounds() -> None:
    assert [falling(i, 10, 0.0) for i in range(10)] == [1.0] * 10
    found = [falling(i, 10, 0.4) for i in range(10)]
    assert found == pytest.approx([1, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25])


def test_the_tail_preserves_alone_at_half_the_rate(
    model: StableDiffusion, d_m: Examples, d_s: Examples, journal: LocalJournal
) -> None:
    gift = Gift(**LETTER, max_train_steps=4, prior_loss="distillation", tail_steps=2)
    result = gift.immunize(model, [d_m], d_s, seeds=SEEDS, report=journal)
    written = by_hand(model, d_m, d_s, 2, 0.0)
    for index, rate in ((2, 0.5), (3, 0.25)):
        loss = distilled(written, model, d_s, index)
        gradients = torch.autograd.grad(loss, list(written.denoiser.parameters()))
        descend(written, gradients, 0.03 * rate)
    for name, expected in weights(written).items():
        torch.testing.assert_close(weights(result)[name], expected, rtol=0, atol=1e-12)
    assert [row["images_seen"] for row in journal.rows] == [4, 8, 10, 12]


def test_dropped_captions_become_the_empty_prompt(model: StableDiffusion, d_s: Examples) -> None:
    batch = d_s.batch(3, SEEDS.generator("inner", 0))
    empty = model.condition([""])
    dropped = without_captions(batch, torch.tensor([False, True, False]), empty)
    assert dropped.captions == (batch.captions[0], "", batch.captions[2])
    tokens = dropped.conditioning.tokens
    torch.testing.assert_close(tokens[1], empty.tokens[0].to(tokens.dtype))
    for kept in (0, 2):
        torch.testing.assert_close(tokens[kept], batch.conditioning.tokens[kept])


def test_the_released_weights_retreat_by_a_share_of_the_way_to_the_base(
    model: StableDiffusion, d_m: Examples, d_s: Examples, tmp_path: Any
) -> None:
    def released(name: str, retreat: float) -> dict[str, Tensor]:
        gift = Gift(**LETTER, max_train_steps=4, path=0.8, retreat=retreat)
        journal = LocalJournal(tmp_path / name, every=100)
        return weights(gift.immunize(model, [d_m], d_s, seeds=SEEDS, report=journal))

    end, back, base = released("end", 0.0), released("back", 0.4), weights(model)
    assert not all(torch.equal(end[name], base[name]) for name in base)
    for name, theta in end.items():
        expected = theta + 0.4 * (base[name] - theta)
        torch.testing.assert_close(back[name], expected, rtol=0, atol=1e-14)


def test_a_killed_path_immunization_continues_bit_for_bit(
    tiny_model: StableDiffusion, malicious: Examples, safe: Examples, tmp_path: Any
) -> None:
    gift = Gift(
        max_train_steps=8, train_batch_size=2, path=0.8, prior_loss="distillation", decay=0.5,
        tail_steps=2, caption_dropout=0.5, beta=0.0, parameter_group="all",
        alpha_inner=1e-3, alpha_outer=1e-3,
    )  # fmt: skip

    def run(journal: LocalJournal) -> dict[str, Tensor]:
        return weights(gift.immunize(tiny_model, [malicious], safe, seeds=SEEDS, report=journal))

    whole = run(LocalJournal(tmp_path / "whole", every=1))
    with pytest.raises(Killed):
        run(KilledJournal(tmp_path / "killed", every=2))
    assert same_weights(run(LocalJournal(tmp_path / "killed", every=2)), whole)

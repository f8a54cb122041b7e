"""GIFT against the paper's equations, written out again here and differentiated by autograd."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from killed import Killed, KilledJournal
from tiny import doubled, doubled_examples, same_weights, weights
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gift_ray.defenses.gift import Gift
from gift_ray.errors import UnitFailed
from gift_ray.models.stable_diffusion import StableDiffusion
from gift_ray.study.journal import LocalJournal
from gift_ray.training.conflicts import project, without_conflicts
from gift_ray.training.diffusion import Batch, Examples, Seeds, capture, concatenate, dot
from gift_ray.training.loop import LossScale
from gift_ray.training.maximization import max_loss
from gift_ray.training.preservation import prior_loss
from gift_ray.training.representation import NoiseTarget, noise_loss

SEEDS = Seeds(11)
BATCH = 2
# Algorithm 1 to the letter: plain gradient steps, one inner and one outer one.
LETTER = {
    "optimizer": "sgd",
    "max_grad_norm": None,
    "max_train_steps": 2,
    "train_batch_size": BATCH,
}


@pytest.fixture(scope="module")
def model(tiny_model: StableDiffusion) -> StableDiffusion:
    return doubled(tiny_model)


@pytest.fixture(scope="module")
def d_m(malicious: Examples) -> Examples:
    return doubled_examples(malicious)


@pytest.fixture(scope="module")
def d_s(safe: Examples) -> Examples:
    return doubled_examples(safe)


def predict(
    model: StableDiffusion, examples: Examples, purpose: str
) -> tuple[Tensor, Tensor, dict[str, Tensor], Batch]:
    """eps_theta(x_t, c, t), eps and the activations z^(j) of a round's first batch."""
    generator = SEEDS.generator(purpose, 0)
    batch = examples.batch(BATCH, generator)
    eps, t = model.draw(BATCH, generator)
    a = model.noise_scheduler.alphas_cumprod[t].double().view(-1, 1, 1, 1)
    x_t = a.sqrt() * batch.latents + (1 - a).sqrt() * eps
    with capture(model.layers("blocks")) as z:
        prediction = model.denoiser(x_t, t, batch.conditioning.tokens).sample
    return prediction, eps.double(), z, batch


def written_prior(model: StableDiffusion, d_s: Examples) -> Tensor:
    """Eq. 9."""
    prediction, eps, _, _ = predict(model, d_s, "inner")
    return ((prediction - eps) ** 2).mean()


def written_immunize(
    model: StableDiffusion, d_m: Examples, gift: Gift, frozen: NoiseTarget
) -> Tensor:
    """Eq. 8, from Eq. 5 and 7."""
    prediction, eps, activations, batch = predict(model, d_m, "outer")
    error = ((prediction - eps) ** 2).mean((1, 2, 3))
    l_max = {
        "negative": -error,
        "hinge": (gift.margin - error).clamp_min(0),
        "log": -(1 + error).log(),
    }[gift.max_loss].mean()
    written = written_sample_noise if gift.noise_target == "sample" else written_frozen_noise
    l_noise = sum(written(name, z, batch, frozen) for name, z in activations.items())
    return gift.max_weight * l_max + gift.beta * l_noise


def written_sample_noise(name: str, z: Tensor, batch: Batch, frozen: NoiseTarget) -> Tensor:
    draws = torch.randn((BATCH, z[0].numel()), generator=SEEDS.generator(f"noise/{name}", 0))
    terms = []
    for sample, draw in zip(z, draws, strict=True):
        mean, deviation = sample.detach().mean(), sample.detach().std(correction=0)
        target = mean + deviation * draw.double().view(sample.shape)
        terms.append(((sample - target) ** 2).mean())
    return torch.stack(terms).mean()


def written_frozen_noise(name: str, z: Tensor, batch: Batch, frozen: NoiseTarget) -> Tensor:
    mean, deviation = (s[name][:, None, None] for s in (frozen.mean, frozen.std))
    terms = []
    for sample, key in zip(z, batch.keys, strict=True):
        shape = (sample.shape[0], sample[0].numel())
        draw = torch.randn(shape, generator=SEEDS.generator(f"frozen/{name}/{key}"))
        target = mean + deviation * draw.double().view(sample.shape)
        terms.append(((sample - target) ** 2 / deviation**2).mean())
    return torch.stack(terms).mean()


def trained(
    gift: Gift, model: StableDiffusion, d_m: Examples, d_s: Examples, journal: LocalJournal
) -> dict[str, Tensor]:
    return weights(gift.immunize(model, [d_m], d_s, seeds=SEEDS, report=journal))


def test_prior_loss_is_equation_9(model: StableDiffusion, d_s: Examples) -> None:
    generator = SEEDS.generator("inner", 0)
    batch = d_s.batch(BATCH, generator)
    noise, timesteps = model.draw(BATCH, generator)
    parameters = list(model.denoiser.parameters())
    ours, written = prior_loss(model, batch, timesteps, noise), written_prior(model, d_s)
    torch.testing.assert_close(ours, written)
    for mine, other in zip(
        torch.autograd.grad(ours, parameters), torch.autograd.grad(written, parameters), strict=True
    ):
        torch.testing.assert_close(mine, other)


def test_max_loss_has_its_three_forms() -> None:
    mse = torch.tensor([0.0, 0.25, 1.0, 3.0], dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(max_loss(mse, "negative", 1.0), -mse)
    torch.testing.assert_close(max_loss(mse, "log", 1.0), -(1 + mse).log())
    hinge = max_loss(mse, "hinge", 1.0)
    torch.testing.assert_close(hinge, torch.tensor([1.0, 0.75, 0.0, 0.0], dtype=torch.float64))
    # Past the margin the hinge has nothing left to push.
    (gradient,) = torch.autograd.grad(hinge.sum(), mse)
    assert gradient.tolist()[0::3] == [-1.0, 0.0]


@pytest.mark.parametrize("noise_target", ["sample", "frozen"])
@pytest.mark.parametrize("form", ["negative", "hinge", "log"])
def test_one_round_is_algorithm_1(
    form: str, noise_target: str, model: StableDiffusion, d_m: Examples, d_s: Examples,
    journal: LocalJournal,
) -> None:  # fmt: skip
    gift = Gift(
        **LETTER, alpha_inner=0.03, alpha_outer=0.05, beta=0.7, max_weight=0.4, margin=9.0,
        max_loss=form, noise_target=noise_target,
    )  # fmt: skip
    frozen = NoiseTarget.of(gift.noise_target, gift.noise_layers, model, d_m, SEEDS)
    by_hand = model.clone()

    theta = by_hand.parameters("all")
    step(theta, torch.autograd.grad(written_prior(by_hand, d_s), list(theta.values())), 0.03)
    psi = by_hand.parameters("cross_attention")
    immunize = written_immunize(by_hand, d_m, gift, frozen)
    step(psi, torch.autograd.grad(immunize, list(psi.values())), 0.05)

    result = trained(gift, model, d_m, d_s, journal)
    for name, expected in weights(by_hand).items():
        torch.testing.assert_close(result[name], expected, rtol=0, atol=1e-12)


def test_something_must_immunize() -> None:
    Gift(beta=0), Gift(max_weight=0)
    with pytest.raises(ValueError, match="nothing would immunize"):
        Gift(beta=0, max_weight=0)


def step(parameters: dict[str, torch.nn.Parameter], gradients: tuple[Tensor, ...], rate: float):
    with torch.no_grad():
        for parameter, gradient in zip(parameters.values(), gradients, strict=True):
            parameter -= rate * gradient


def test_alternating_minus_joint_is_the_second_order_term(
    model: StableDiffusion, d_m: Examples, d_s: Examples, journal: LocalJournal
) -> None:
    """Eq. 3-4: psi''(alternate) - psi''(joint) = alpha_P alpha_I H grad L_P + O(alpha^3).

    The paper writes H as the psi block of L_I's Hessian, times grad_psi L_P. As the inner step moves
    all of theta, the exact term has the whole row d(grad_psi L_I)/d theta, times grad_theta L_P; the
    remainder is of third order with that row only. `frozen`, because the statistics of `sample` are
    detached: its gradient is not the gradient of one fixed function.
    """
    options = LETTER | {"max_loss": "negative", "noise_target": "frozen", "beta": 0.1}
    frozen = NoiseTarget.of("frozen", "blocks", model, d_m, SEEDS)
    theta, psi = model.parameters("all"), model.parameters("cross_attention")
    with sdpa_kernel(SDPBackend.MATH):  # the only attention kernel that differentiates twice
        prior = torch.autograd.grad(written_prior(model, d_s), list(theta.values()))
        immunize = written_immunize(model, d_m, Gift(**options), frozen)
        outer = torch.autograd.grad(immunize, list(theta.values()), create_graph=True)
        curvature = torch.autograd.grad(dot(outer, prior), list(psi.values()))

    def remainder(alpha_inner: float, alpha_outer: float) -> float:
        rates = {"alpha_inner": alpha_inner, "alpha_outer": alpha_outer}
        alternate, joint = (
            trained(Gift(**options, **rates, coordination=how), model, d_m, d_s, journal)
            for how in ("alternate", "joint")
        )
        assert all(torch.equal(alternate[n], joint[n]) for n in theta if n not in psi)
        left = [
            alternate[n] - joint[n] - alpha_inner * alpha_outer * c
            for n, c in zip(psi, curvature, strict=True)
        ]
        size = alpha_inner * alpha_outer * dot(curvature, curvature).sqrt()
        return float(dot(left, left).sqrt() / size)

    # Relative to the second-order term the remainder is of first order: it halves with the step.
    found = [remainder(0.02 / 2**k, 0.04 / 2**k) for k in range(4)]
    ratios = [a / b for a, b in pairwise(found)]
    assert found[-1] < 0.05
    assert ratios == pytest.approx([2.0] * 3, rel=0.15)


def test_projection_removes_exactly_what_opposes() -> None:
    draw = [torch.randn(6, generator=SEEDS.generator("p", i)).double() for i in range(4)]
    gradients, other = draw[:2], draw[2:]
    for sign in (1, -1):
        if dot(gradients, [sign * o for o in other]) < 0:
            against = [sign * o for o in other]
    projected = project(gradients, against)
    assert float(dot(projected, against)) == pytest.approx(0, abs=1e-12)
    removed = [g - p for g, p in zip(gradients, projected, strict=True)]
    share = dot(gradients, against) / dot(against, against)
    for part, direction in zip(removed, against, strict=True):
        torch.testing.assert_close(part, share * direction)
    agreeing = [-a for a in against]
    assert all(
        torch.equal(p, g) for p, g in zip(project(gradients, agreeing), gradients, strict=True)
    )


def test_projected_outer_steps_do_not_undo_the_inner_one(
    model: StableDiffusion, d_m: Examples, d_s: Examples, journal: LocalJournal
) -> None:
    options = LETTER | {"max_loss": "negative", "alpha_inner": 1e-3, "alpha_outer": 0.05}
    psi = list(model.parameters("cross_attention"))
    written = written_prior(model, d_s)
    prior = torch.autograd.grad(written, [model.denoiser.get_parameter(name) for name in psi])
    before = weights(model)

    def moved(how: str) -> float:
        after = trained(Gift(**options, coordination=how), model, d_m, d_s, journal)
        inner = [-1e-3 * g for g in prior]
        outer = [after[n] - before[n] - i for n, i in zip(psi, inner, strict=True)]
        return float(dot(outer, prior))

    assert moved("alternate") > 1e-4  # the outer step climbs L_prior
    assert moved("project") == pytest.approx(0, abs=1e-10)


def test_conflicts_between_concepts_are_removed_pair_by_pair() -> None:
    """Two that oppose each other: worked by hand. Two that agree: their sum."""
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 1.0])
    (found,) = without_conflicts([[a], [b]], [0, 1])
    # a loses its part along b: (1, 0) + (-1, 1) / 2; b its part along a: (0, 1).
    torch.testing.assert_close(found, torch.tensor([0.5, 0.5]) + torch.tensor([0.0, 1.0]))
    (sum_,) = without_conflicts([[a], [-b]], [1, 0])
    torch.testing.assert_close(sum_, a - b)
    # Three: each is projected off the others one after the other, in the order given.
    c = torch.tensor([-1.0, -2.0])
    for order in ([0, 1, 2], [2, 1, 0]):
        expected = torch.zeros(2)
        for i, left in enumerate((a, b, c)):
            for j in order:
                other = (a, b, c)[j]
                if j != i and left @ other < 0:
                    left = left - (left @ other) / (other @ other) * other
            expected += left
        torch.testing.assert_close(without_conflicts([[a], [b], [c]], order)[0], expected)


def test_concepts_that_do_not_conflict_train_as_without_projection(
    model: StableDiffusion, d_m: Examples, d_s: Examples, journal: LocalJournal
) -> None:
    """One concept twice over: gradients that agree add up to the whole batch's. Two that oppose each
    other do not."""

    def moved(concepts: list[Examples], projection: bool, **options: object) -> dict[str, Tensor]:
        gift = Gift(**(LETTER | {"alpha_inner": 0.03, "alpha_outer": 0.05, "train_batch_size": 4}
                       | options), concept_projection=projection)  # fmt: skip
        return weights(gift.immunize(model, concepts, d_s, seeds=SEEDS, report=journal))

    def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
        return all(torch.allclose(left[n], right[n], rtol=0, atol=1e-12) for n in left)

    # Without L_noise and far from the margin, gradients of images of one kind point the same way.
    plain = {"beta": 0, "max_weight": 1, "margin": 9.0}
    assert equal(moved([d_m, d_m], True, **plain), moved([d_m, d_m], False, **plain))
    assert equal(moved([d_m], True), moved([d_m], False))


def test_options_of_several_concepts_leave_the_identity_of_one_alone() -> None:
    names = {"concept_sampling", "concept_projection"}
    assert not names & Gift().identity().keys()
    changed = Gift(concept_sampling="proportional", concept_projection=True).identity()
    assert names <= changed.keys()


def test_proportional_sampling_is_that_of_one_concatenated_set(
    model: StableDiffusion, d_m: Examples, d_s: Examples, journal: LocalJournal
) -> None:
    options = LETTER | {"alpha_outer": 0.05, "concept_sampling": "proportional"}
    two = Gift(**options).immunize(model, [d_m, d_s], d_s, seeds=SEEDS, report=journal)
    whole = trained(Gift(**options), model, concatenate([d_m, d_s]), d_s, journal)
    assert same_weights(weights(two), whole)


def test_sample_noise_costs_twice_the_variance_and_pulls_to_the_mean() -> None:
    sample = torch.randn(24, generator=SEEDS.generator("z")).double() * 3 + 1
    many = sample.expand(40_000, -1).clone().requires_grad_()
    loss = noise_loss(many, SEEDS.generator("eps"), list(range(40_000)), 40_000)
    assert loss.shape == (40_000,)
    assert loss.mean().item() == pytest.approx(2 * float(sample.var(correction=0)), rel=0.01)
    (gradient,) = torch.autograd.grad(loss.sum(), many)
    # E[grad] = 2 (z - mean) / n: descent shrinks the activation and keeps its shape.
    expected = 2 * (sample - sample.mean()) / sample.numel()
    torch.testing.assert_close(gradient.mean(0), expected, rtol=0, atol=0.02)


def frozen_target(target: NoiseTarget, name: str, z: Tensor, keys: tuple[str, ...], index: int):
    """Where the frozen loss of one layer is zero: it is quadratic, so one Newton step tells."""
    z = z.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(
        target.losses({name: z}, keys, SEEDS, index, list(range(len(keys))))[name], z
    )
    return (z - gradient * z.numel() / 2 * target.std[name].square()[:, None, None]).detach()


def test_frozen_noise_belongs_to_image_and_layer_and_ignores_the_input(
    model: StableDiffusion, d_m: Examples
) -> None:
    target = NoiseTarget.of("frozen", "blocks", model, d_m, SEEDS)
    _, _, activations, batch = predict(model, d_m, "outer")
    name, other = "down_blocks.0", "up_blocks.1"
    z, keys = activations[name].detach(), batch.keys
    at = frozen_target(target, name, z, keys, 0)
    torch.testing.assert_close(frozen_target(target, name, 5 * z.flip(2) - 1, keys, 9), at)
    torch.testing.assert_close(frozen_target(target, name, z.flip(0), keys[::-1], 0), at.flip(0))
    assert not torch.allclose(at[0], at[1])

    def noise(layer: str) -> torch.Tensor:
        """The first image's target without the statistics of the base."""
        mean, deviation = (s[layer][:, None, None] for s in (target.mean, target.std))
        drawn = frozen_target(target, layer, activations[layer].detach(), keys, 0)
        return ((drawn - mean) / deviation)[0].flatten()

    # Layers differ in size: of the same draw they would share the beginning.
    shared = min(noise(name).numel(), noise(other).numel()) // 16 * 16
    assert not torch.allclose(noise(name)[:shared], noise(other)[:shared], atol=1e-3)


def test_frozen_noise_has_the_statistics_of_the_base_and_is_measured_in_them(
    model: StableDiffusion, d_m: Examples
) -> None:
    target = NoiseTarget.of("frozen", "blocks", model, d_m, SEEDS)
    _, _, activations, batch = predict(model, d_m, "outer")
    for name, z in activations.items():
        # One unit of variance from the noise, one from the base's own activations.
        (loss,) = target.losses({name: z}, batch.keys, SEEDS, 0, list(range(BATCH))).values()
        assert loss.item() == pytest.approx(2.0, rel=0.35)
        mean, deviation = (s[name][:, None, None] for s in (target.mean, target.std))
        at = (frozen_target(target, name, z.detach(), batch.keys, 0) - mean) / deviation
        assert float(at.mean()) == pytest.approx(0, abs=0.15)
        assert float(at.std()) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize(
    ("coordination", "optimizer"),
    [("alternate", "adamw"), ("joint", "sgd"), ("project", "adamw")],
)
def test_a_killed_run_continues_bit_for_bit(
    coordination: str, optimizer: str, tiny_model: StableDiffusion, malicious: Examples,
    safe: Examples, tmp_path: Path, killed_journal: KilledJournal,
) -> None:  # fmt: skip
    gift = Gift(
        coordination=coordination, optimizer=optimizer, max_train_steps=10, inner_steps=2,
        outer_steps=1, alpha_inner=1e-3, alpha_outer=1e-3, train_batch_size=2,
    )  # fmt: skip
    straight = LocalJournal(tmp_path / "straight.safetensors", every=10**6)
    expected = trained(gift, tiny_model, malicious, safe, straight)

    with pytest.raises(Killed):
        trained(gift, tiny_model, malicious, safe, killed_journal)
    again = LocalJournal(killed_journal.path, every=1)
    assert same_weights(trained(gift, tiny_model, malicious, safe, again), expected)
    assert again.rows == straight.rows
    # Ten steps: a joint round is one inner and one outer step, another round two and one.
    assert len(again.rows) == (5 if coordination == "joint" else 4)


def test_leaving_the_finite_numbers_is_a_failed_unit(
    tiny_model: StableDiffusion, malicious: Examples, safe: Examples, journal: LocalJournal
) -> None:
    gift = Gift(optimizer="sgd", max_grad_norm=None, alpha_inner=1e30, max_train_steps=8)
    with pytest.raises(UnitFailed, match=r"step \d+: .* not finite"):
        trained(gift, tiny_model, malicious, safe, journal)


def test_every_round_logs_its_diagnostics(
    tiny_model: StableDiffusion, malicious: Examples, safe: Examples, journal: LocalJournal
) -> None:
    trained(Gift(max_train_steps=2), tiny_model, malicious, safe, journal)
    (row,) = journal.rows
    layers = {f"L_noise/{name}" for name in tiny_model.layers("blocks")}
    assert row.keys() >= layers | {"L_prior", "L_max", "L_noise", "cosine", "grad_norm_inner"}
    assert row["L_noise"] == pytest.approx(sum(row[name] for name in layers), rel=1e-5)
    # The first outer step sees weights that moved by alpha_inner = 5e-6 only: still the base.
    assert row["std_ratio"] == pytest.approx(1, abs=1e-2)
    assert row["correlation"] == pytest.approx(1, abs=1e-2)


def test_an_overflow_of_fp16_does_not_end_the_training(
    tiny_model: StableDiffusion, malicious: Examples, safe: Examples, journal: LocalJournal,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    # So large a scale that the first gradients cannot be held in half precision.
    monkeypatch.setattr(
        LossScale, "__init__", lambda self: vars(self).update(scale=2.0**26, good_steps=0)
    )
    model = replace(tiny_model, mixed_precision="fp16")
    for coordination in ("alternate", "project", "joint"):
        journal.rows.clear()
        gift = Gift(max_train_steps=24, coordination=coordination, alpha_inner=1e-4)
        immunized = trained(gift, model, malicious, safe, journal)
        norms = [row["grad_norm_inner"] for row in journal.rows]
        assert not math.isfinite(norms[0])
        assert math.isfinite(norms[-1])
        assert not same_weights(immunized, weights(tiny_model))

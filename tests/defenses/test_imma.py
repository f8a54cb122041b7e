"""IMMA against its bilevel update, written out again with functional parameters and autograd."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from killed import Killed, KilledJournal
from tiny import doubled, doubled_examples, same_weights, weights
from torch import Tensor
from torch.func import functional_call

from gift_ray.defenses.imma import Imma
from gift_ray.errors import UnitFailed
from gift_ray.models.stable_diffusion import StableDiffusion
from gift_ray.study.journal import LocalJournal
from gift_ray.training.diffusion import Examples, Seeds

SEEDS = Seeds(11)
BATCH = 2
RANK = 2
ATTACKS = ("dreambooth", "lora", "textual_inversion")
# Plain gradient steps; two rounds of two inner and one outer one: the second shows what persists.
LETTER = {
    "optimizer": "sgd", "weight_decay": 0.0, "max_grad_norm": None, "train_batch_size": BATCH,
    "inner_steps": 2, "max_train_steps": 6, "rank": RANK, "inner_learning_rate": 0.03,
    "learning_rate": 0.05,
}  # fmt: skip
PSI = {
    "attention": re.compile(r"\.attn[12]\.to_(q|k|v|out\.0)\.(weight|bias)$"),
    "cross_attention": re.compile(r"\.attn2\."),
}
LORA = re.compile(r"\.attn[12]\.to_(q|k|v|out\.0)\.weight$")
Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def model(tiny_model: StableDiffusion) -> StableDiffusion:
    return doubled(tiny_model)


@pytest.fixture(scope="module")
def d_m(malicious: Examples) -> Examples:
    return doubled_examples(malicious)


def trained(
    imma: Imma, model: StableDiffusion, d_m: Examples, safe: Examples, journal: LocalJournal
) -> StableDiffusion:
    return imma.immunize(model, [d_m], safe, seeds=SEEDS, report=journal)


def leaves(tensors: Weights) -> Weights:
    return {name: tensor.detach().clone().requires_grad_() for name, tensor in tensors.items()}


def fresh_attacker(attack: str, theta: Weights, d_m: Examples) -> Weights:
    """phi before the first step; DreamBooth's is theta itself."""
    if attack == "textual_inversion":
        return leaves({"offset": torch.zeros(d_m.conditioning.tokens.shape[1:]).double()})
    phi, generator = {}, SEEDS.generator("lora")
    for name, weight in theta.items():
        if attack == "lora" and LORA.search(name):
            rows, columns = weight.shape
            draw = torch.randn((RANK, columns), generator=generator) / RANK
            phi |= {f"{name}/A": draw.double(), f"{name}/B": torch.zeros(rows, RANK).double()}
    return leaves(phi)


def adaptation_loss(
    model: StableDiffusion, theta: Weights, phi: Weights, d_m: Examples, generator: torch.Generator
) -> Tensor:
    """mean || eps_{theta, phi}(x_t, c, t) - eps ||^2, LoRA merged into the weights."""
    batch = d_m.batch(BATCH, generator)
    eps, t = model.draw(BATCH, generator)
    a = model.noise_scheduler.alphas_cumprod[t].double().view(-1, 1, 1, 1)
    x_t = a.sqrt() * batch.latents + (1 - a).sqrt() * eps
    merged = {
        name: weight + phi[f"{name}/B"] @ phi[f"{name}/A"] if f"{name}/A" in phi else weight
        for name, weight in theta.items()
    }
    states = batch.conditioning.tokens + phi.get("offset", 0.0)
    prediction = functional_call(model.denoiser, merged, (x_t, t, states)).sample
    return ((prediction - eps) ** 2).mean()


def descended(parameters: Weights, loss: Tensor, rate: float) -> Weights:
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    moved = [p - rate * g for p, g in zip(parameters.values(), gradients, strict=True)]
    return leaves(dict(zip(parameters, moved, strict=True)))


@pytest.mark.parametrize(
    ("attack", "group", "inner_steps"),
    [*((attack, "attention", 2) for attack in ATTACKS), ("dreambooth", "cross_attention", 2),
     ("dreambooth", "attention", 0)],
)  # fmt: skip
def test_rounds_are_the_written_bilevel_update(
    attack: str, group: str, inner_steps: int, model: StableDiffusion, d_m: Examples,
    safe: Examples, journal: LocalJournal,
) -> None:  # fmt: skip
    imma = Imma(**LETTER | {"inner_steps": inner_steps}, inner_attack=attack, parameter_group=group)
    base = leaves(dict(model.denoiser.named_parameters()))
    theta, phi = base, fresh_attacker(attack, base, d_m)
    psi = [name for name in theta if PSI[group].search(name)]

    def loss(purpose: str, index: int) -> Tensor:
        return adaptation_loss(model, theta, phi, d_m, SEEDS.generator(purpose, index))

    for index in range(6 // (inner_steps + 1)):
        for k in range(inner_steps):
            inner = loss("inner", inner_steps * index + k)
            if attack == "dreambooth":
                theta = descended(theta, inner, 0.03)
            else:
                phi = descended(phi, inner, 0.03)
        climbed = descended({n: theta[n] for n in psi}, -loss("outer", index), 0.05)
        theta = theta | climbed

    result = weights(trained(imma, model, d_m, safe, journal))
    for name, expected in (base | {n: theta[n] for n in psi}).items():
        torch.testing.assert_close(result[name], expected.detach(), rtol=0, atol=1e-12)
    assert all((result[name] != base[name]).any() for name in psi)
    assert journal.rows[-1]["images_seen"] == 6 * BATCH


@pytest.mark.parametrize(
    ("attack", "rate"), [("dreambooth", 1e-3), ("lora", 1e-2), ("textual_inversion", 3e-2)]
)
def test_what_it_immunizes_is_harder_to_adapt_than_the_base(
    attack: str, rate: float, tiny_model: StableDiffusion, malicious: Examples, safe: Examples,
    journal: LocalJournal,
) -> None:  # fmt: skip
    imma = Imma(
        inner_attack=attack, max_train_steps=30, train_batch_size=3, rank=RANK,
        inner_learning_rate=rate, learning_rate=1e-2,
    )  # fmt: skip
    immunized = trained(imma, tiny_model, malicious, safe, journal)

    def adapted_error(released: StableDiffusion, steps: int) -> float:
        """The held-out loss on D_M after some steps of the attack, from a fresh start."""
        attacker = imma.attacker(released, malicious, Seeds(3))
        for k in range(steps):
            attacker.step(k, Seeds(3).generator("attack", k))
        with torch.no_grad():
            held_out = [
                attacker.trainee.loss(malicious, Seeds(5).generator("held out", i))
                for i in range(10)
            ]
        return float(torch.stack(held_out).mean())

    base = adapted_error(tiny_model, 8)
    assert base < adapted_error(tiny_model, 0), "the attack teaches the base nothing"
    assert adapted_error(immunized, 8) > 1.02 * base


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_killed_run_continues_bit_for_bit(
    attack: str, tiny_model: StableDiffusion, malicious: Examples, safe: Examples, tmp_path: Path,
    killed_journal: KilledJournal,
) -> None:  # fmt: skip
    imma = Imma(
        inner_attack=attack, max_train_steps=8, inner_learning_rate=1e-3, learning_rate=1e-3
    )
    straight = LocalJournal(tmp_path / "straight.safetensors", every=10**6)
    expected = weights(trained(imma, tiny_model, malicious, safe, straight))

    with pytest.raises(Killed):
        trained(imma, tiny_model, malicious, safe, killed_journal)
    again = LocalJournal(killed_journal.path, every=10**6)
    assert same_weights(weights(trained(imma, tiny_model, malicious, safe, again)), expected)
    assert again.rows == straight.rows
    assert len(again.rows) == 4


def test_leaving_the_finite_numbers_is_a_failed_unit(
    tiny_model: StableDiffusion, malicious: Examples, safe: Examples, journal: LocalJournal
) -> None:
    imma = Imma(optimizer="sgd", max_grad_norm=None, learning_rate=1e30, max_train_steps=8)
    with pytest.raises(UnitFailed, match=r"step \d+: .* not finite; lower learning_rate"):
        trained(imma, tiny_model, malicious, safe, journal)

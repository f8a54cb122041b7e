"""Look ahead against its rounds, written out again: attackers of plain gradient steps, full and LoRA, fresh
and persistent, begun on the way to the base."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from killed import Killed, KilledJournal
from tiny import doubled, doubled_examples, same_weights, weights
from torch import Tensor
from written import Weights, descended, leaves, moved, predicted

from gift_ray import plugins
from gift_ray.defenses.look_ahead import LookAhead
from gift_ray.models.stable_diffusion import StableDiffusion
from gift_ray.study.journal import LocalJournal
from gift_ray.training.diffusion import Examples, Seeds

SEEDS = Seeds(14)
BATCH, RANK, STEPS, ROUNDS = 2, 2, 2, 4
PLAIN = {"optimizer": "sgd", "learning_rate": 0.05, "weight_decay": 0.0, "max_grad_norm": None}
ATTACKERS = [{"name": "dreambooth", **PLAIN}, {"name": "lora", **PLAIN, "rank": RANK}]
LETTER: dict[str, Any] = {
    "attackers": ATTACKERS, "attack_steps": STEPS, "train_batch_size": BATCH, "margin": 9.0,
    "optimizer": "sgd", "max_grad_norm": None, "alpha_inner": 0.03, "alpha_outer": 0.05,
    "max_train_steps": ROUNDS * (STEPS + 2), "prior_loss": "distillation", "path": 0.8,
}  # fmt: skip
LORA = re.compile(r"\.attn[12]\.to_(q|k|v|out\.0)\.weight$")


@pytest.fixture(scope="module")
def model(tiny_model: StableDiffusion) -> StableDiffusion:
    return doubled(tiny_model)


def adapter(theta: Weights, seeds: Seeds) -> Weights:
    """A and B of every attention projection: A ~ N(0, 1 / rank^2), B = 0."""
    generator, found = seeds.generator("lora"), {}
    for name in (name for name in theta if LORA.search(name)):
        rows, columns = theta[name].shape
        found[f"{name}/A"] = (torch.randn((RANK, columns), generator=generator) / RANK).double()
        found[f"{name}/B"] = torch.zeros(rows, RANK).double()
    return leaves(found)


def merged(theta: Weights, lora: Weights) -> Weights:
    return {
        name: w + lora[f"{name}/B"] @ lora[f"{name}/A"] if f"{name}/A" in lora else w
        for name, w in theta.items()
    }


class Written:
    """The defense as its docstring says it, on functional parameters."""

    def __init__(self, model: StableDiffusion, d_m: Examples, d_s: Examples, *, persistent: bool):
        self.model, self.d_m, self.d_s, self.persistent = model, d_m, d_s, persistent
        self.base = leaves(dict(model.denoiser.named_parameters()))
        # What persistent attackers carry from round to round.
        self.change = {name: torch.zeros_like(w) for name, w in self.base.items()}
        self.lora = adapter(self.base, self.seeds_of(1))

    @staticmethod
    def seeds_of(index: int) -> Seeds:
        return Seeds(SEEDS.generator("attacker", index).initial_seed())

    def errors(self, theta: Weights, examples: Examples, purpose: str, index: int) -> Tensor:
        generator = SEEDS.generator(purpose, index)
        batch = examples.batch(BATCH, generator)
        eps, t = self.model.draw(BATCH, generator)
        prediction = predicted(self.model, theta, batch, t, eps.double())
        goal = eps.double()
        if purpose == "inner":
            goal = predicted(self.model, self.base, batch, t, goal).detach()
        return ((prediction - goal) ** 2).mean((1, 2, 3))

    def hinge(self, theta: Weights, index: int) -> Tensor:
        return (9.0 - self.errors(theta, self.d_m, "outer", index)).clamp_min(0).mean()

    def full_gradients(self, start: Weights, index: int) -> tuple[Tensor, ...]:
        phi = leaves({n: w + self.change[n] if self.persistent else w for n, w in start.items()})
        for k in range(STEPS):
            loss = self.errors(phi, self.d_m, "attack", index * STEPS + k).mean()
            phi = descended(phi, loss, 0.05)
        self.change = {n: (phi[n] - start[n]).detach() for n in phi}
        return torch.autograd.grad(self.hinge(phi, index), list(phi.values()))

    def lora_gradients(self, start: Weights, index: int) -> tuple[Tensor, ...]:
        lora = self.lora if self.persistent else adapter(start, self.seeds_of(index))
        for k in range(STEPS):
            attacked = merged(start, lora)
            loss = self.errors(attacked, self.d_m, "attack", index * STEPS + k).mean()
            lora = descended(lora, loss, 0.05)
        self.lora = lora
        return torch.autograd.grad(self.hinge(merged(start, lora), index), list(start.values()))

    def run(self) -> Weights:
        theta = self.base
        for index in range(ROUNDS):
            loss = self.errors(theta, self.d_s, "inner", index).mean()
            theta = descended(theta, loss, 0.03)
            u = 0.8 * float(torch.rand((), generator=SEEDS.generator("path", index)))
            start = leaves({n: w + u * (self.base[n] - w) for n, w in theta.items()})
            attack = (self.full_gradients, self.lora_gradients)[index % 2]
            theta = moved(theta, attack(start, index), 0.05)
        return theta


@pytest.mark.parametrize("persistent", [False, True])
def test_rounds_are_what_is_written(
    persistent: bool, model: StableDiffusion, malicious: Examples, safe: Examples,
    journal: LocalJournal,
) -> None:  # fmt: skip
    d_m, d_s = doubled_examples(malicious), doubled_examples(safe)
    defense = LookAhead(**LETTER, persistent=persistent)
    result = defense.immunize(model, [d_m], d_s, seeds=SEEDS, report=journal)
    expected = Written(model, d_m, d_s, persistent=persistent).run()
    for name, found in weights(result).items():
        torch.testing.assert_close(found, expected[name].detach(), rtol=0, atol=1e-11)
    # In four rounds each attacker comes twice: enough for persistence to show.
    other = Written(model, d_m, d_s, persistent=not persistent).run()
    assert any((weights(result)[n] - w).abs().max() > 1e-7 for n, w in other.items())
    assert journal.rows[-1]["images_seen"] == ROUNDS * (STEPS + 2) * BATCH


@pytest.mark.parametrize("persistent", [False, True])
def test_a_killed_training_continues_bit_for_bit(
    persistent: bool, tiny_model: StableDiffusion, malicious: Examples, safe: Examples,
    tmp_path: Path,
) -> None:  # fmt: skip
    defense = LookAhead(
        attackers=[{"name": "dreambooth", "learning_rate": 1e-3}, {"name": "lora", "rank": 2}],
        persistent=persistent, attack_steps=1, train_batch_size=2, max_train_steps=15, path=0.5,
        alpha_inner=1e-3, alpha_outer=1e-3, caption_dropout=0.5, decay=0.5,
    )  # fmt: skip

    def run(journal: LocalJournal) -> Weights:
        model = defense.immunize(tiny_model, [malicious], safe, seeds=SEEDS, report=journal)
        return weights(model)

    whole = run(LocalJournal(tmp_path / "whole", every=1))
    with pytest.raises(Killed):
        run(KilledJournal(tmp_path / "killed", every=2))
    assert same_weights(run(LocalJournal(tmp_path / "killed", every=2)), whole)


@pytest.mark.parametrize(
    ("attacker", "said"),
    [
        ({"name": "textual_inversion"}, "trains something else than the denoiser"),
        ({"name": "dreambooth", "train_text_encoder": True}, "something else than the denoiser"),
        ({"name": "lora", "train_batch_size": 4}, "is the defense's own"),
        ({"name": "lora", "rnak": 4}, "did you mean 'rank'"),
        ({"name": "loar"}, "did you mean 'lora'"),
    ],
)
def test_an_attacker_that_it_cannot_simulate_is_refused(
    attacker: dict[str, Any], said: str
) -> None:
    found = plugins.check("defenses", "look_ahead", {"attackers": [attacker]})
    assert any(said in message for _, message in found), found


def test_its_identity_has_every_option_of_the_attacks() -> None:
    short = LookAhead(attackers=[{"name": "lora"}]).identity()
    long = LookAhead(attackers=[{"name": "lora", "rank": 4}]).identity()
    assert short == long
    grid = LookAhead(attackers=[{"name": "lora", "grid": {"rank": [4, 8]}}]).identity()
    assert [attack["rank"] for attack in grid["attackers"]] == [4, 8]

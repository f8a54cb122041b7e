"""A new defense that simulates attackers of the battery is one file: here one in a temporary package, which
raises the loss that DreamBooth and LoRA reach after a few of their own steps (first-order MAML)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from killed import Killed, KilledJournal
from tiny import same_weights, weights

import gift_ray.defenses
from gift_ray import plugins
from gift_ray.models.stable_diffusion import StableDiffusion
from gift_ray.study.journal import LocalJournal
from gift_ray.training.diffusion import Examples, Seeds

DEFENSE = '''
from collections.abc import Sequence
from typing import ClassVar

from gift_ray.models.backbone import Backbone
from gift_ray.plugins import Defense, build
from gift_ray.training.diffusion import Examples, Seeds, concatenate
from gift_ray.training.loop import Level, Report, train


class Simulating(Defense):
    """psi climbs the loss that each simulated attacker has reached after a few steps."""

    version: ClassVar[int] = 1

    attacks: tuple[str, ...] = ("dreambooth", "lora")
    attack_steps: int = 3
    attack_learning_rate: float = 1e-2
    learning_rate: float = 3e-2
    max_train_steps: int = 10

    def immunize(
        self, model: Backbone, malicious: Sequence[Examples], safe: Examples, *, seeds: Seeds,
        report: Report,
    ) -> Backbone:
        d_m, released = concatenate(malicious), model.clone()
        level = Level(
            released.parameters("attention"), optimizer="adamw", learning_rate=self.learning_rate
        )

        def round_(index: int) -> dict[str, float]:
            name = self.attacks[index % len(self.attacks)]
            attack = build("attacks", name, {"learning_rate": self.attack_learning_rate})
            attacker = attack.attacker(released, d_m, Seeds(index))
            for k in range(self.attack_steps):
                attacker.step(k, seeds.generator(f"inner/{index}", k))
            adapted = Level(
                attacker.trainee.model.parameters("attention"), optimizer="sgd", learning_rate=1.0
            )
            loss = attacker.trainee.loss(d_m, seeds.generator("outer", index))
            norm = level.step(adapted.gradients(-loss))
            return {"mse_malicious": loss.item(), "grad_norm": norm}

        train(round_, self.max_train_steps, {"outer": level}, report, advice="lower learning_rate")
        return released
'''


@pytest.fixture
def simulating(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "simulating.py").write_text(DEFENSE)
    monkeypatch.setattr(gift_ray.defenses, "__path__", [*gift_ray.defenses.__path__, str(folder)])
    monkeypatch.delitem(sys.modules, "gift_ray.defenses.simulating", raising=False)
    return lambda **options: plugins.build("defenses", "simulating", options)


def test_it_is_found_beside_the_others_and_resists_both(
    simulating, tiny_model: StableDiffusion, malicious: Examples, safe: Examples,
    journal: LocalJournal,
) -> None:  # fmt: skip
    assert "simulating" in plugins.available("defenses")
    assert plugins.check("defenses", "simulating", {"attack_steps": "many"})
    before = weights(tiny_model)
    # Enough rounds and draws that the margin is wide on any processor.
    defense = simulating(max_train_steps=60, learning_rate=0.1)
    immunized = defense.immunize(tiny_model, [malicious], safe, seeds=Seeds(0), report=journal)
    assert same_weights(weights(tiny_model), before)

    for name in ("dreambooth", "lora"):
        options = {"learning_rate": 1e-2, "train_batch_size": 3, "max_train_steps": 3}
        attack = plugins.build("attacks", name, options)
        reached = []
        for model in (tiny_model, immunized):
            attacker = attack.attacker(model, malicious, Seeds(1))
            for k in range(3):
                attacker.step(k, Seeds(1).generator("attack", k))
            with torch.no_grad():
                held_out = [
                    attacker.trainee.loss(malicious, Seeds(2).generator("t", i)) for i in range(20)
                ]
            reached.append(float(torch.stack(held_out).mean()))
        assert reached[1] > 1.02 * reached[0], name


def test_a_killed_run_continues_bit_for_bit(
    simulating, tiny_model: StableDiffusion, malicious: Examples, safe: Examples,
    journal: LocalJournal, killed_journal: KilledJournal,
) -> None:  # fmt: skip
    defense = simulating(max_train_steps=4)
    data = tiny_model, [malicious], safe
    whole = defense.immunize(*data, seeds=Seeds(0), report=journal)
    with pytest.raises(Killed):
        defense.immunize(*data, seeds=Seeds(0), report=killed_journal)
    again = LocalJournal(killed_journal.path, every=10**6)
    resumed = defense.immunize(*data, seeds=Seeds(0), report=again)
    assert same_weights(weights(resumed), weights(whole))

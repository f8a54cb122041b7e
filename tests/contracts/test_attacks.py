"""What every attack must do. A new file in gift_ray/attacks is picked up by its name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import Killed, KilledJournal
from tiny import same_weights, weights
from torch import Tensor

from gift_ray.diffusion import Examples, Seeds
from gift_ray.models import DiffusionModel
from gift_ray.plugins import Attack, available, resolve
from gift_ray.stages import LocalJournal

# Options that keep a run short and let a random model learn; only those that an attack has are given.
SHORT = {"max_train_steps": 16, "train_batch_size": 3, "learning_rate": 1e-3}


@pytest.fixture(params=available("attacks"))
def attack(request: pytest.FixtureRequest) -> Attack:
    kind = resolve("attacks", request.param)
    return kind(**{name: value for name, value in SHORT.items() if name in kind.model_fields})


def snapshots(
    attack: Attack, model: DiffusionModel, d_a: Examples, report: LocalJournal
) -> dict[int, dict[str, Tensor]]:
    """Weights at every step that the attack yields, as images would be drawn there."""
    found = {}
    for step, attacked in attack.finetune(model, d_a, seeds=Seeds(0), report=report):
        assert step not in found
        found[step] = weights(attacked)
        report.keep(f"{step:06d}", torch.tensor([step]))
    return found


@torch.no_grad()
def denoising_error(model: DiffusionModel, d_a: Examples) -> float:
    """Mean loss of all of D_A over fixed noise and timesteps."""
    generator = Seeds(5).generator("held out")
    errors = []
    for _ in range(20):
        batch = d_a.batch(len(d_a), generator)
        noise, steps = model.draw(len(d_a), generator)
        errors.append(
            model.denoising_loss(batch.latents, batch.encoder_hidden_states, steps, noise)
        )
    return float(torch.cat(errors).mean())


def test_evaluation_steps_ascend_from_zero(attack: Attack) -> None:
    steps = attack.evaluation_steps()
    assert steps[0] == 0
    assert len(steps) >= 2
    assert list(steps) == sorted(set(steps))


def test_keeps_the_contract(
    attack: Attack, tiny_model: DiffusionModel, malicious: Examples, journal: LocalJournal,
    tmp_path: Path, killed_journal: KilledJournal,
) -> None:  # fmt: skip
    before = weights(tiny_model)
    straight = snapshots(attack, tiny_model, malicious, journal)
    assert tuple(straight) == attack.evaluation_steps()
    assert same_weights(straight[0], before), "step 0 is the released model"
    assert same_weights(weights(tiny_model), before), "the input was changed"

    torch.manual_seed(99)  # no draw may come from the global generator
    again = LocalJournal(tmp_path / "again.safetensors", every=10**6)
    repeated = snapshots(attack, tiny_model, malicious, again)
    assert all(same_weights(repeated[step], straight[step]) for step in straight)

    killed_journal.every = attack.evaluation_steps()[1]
    with pytest.raises(Killed):
        snapshots(attack, tiny_model, malicious, killed_journal)
    resumed = LocalJournal(killed_journal.path, every=10**6)
    rest = snapshots(attack, tiny_model, malicious, resumed)
    assert rest
    assert all(same_weights(rest[step], straight[step]) for step in rest)
    assert list(resumed.kept) == list(journal.kept), "a result was lost or came twice"
    assert resumed.rows == journal.rows


def test_learns_the_concept(
    attack: Attack, tiny_model: DiffusionModel, malicious: Examples, journal: LocalJournal
) -> None:
    before = denoising_error(tiny_model, malicious)
    *_, (_, attacked) = attack.finetune(tiny_model, malicious, seeds=Seeds(0), report=journal)
    assert denoising_error(attacked, malicious) < 0.97 * before

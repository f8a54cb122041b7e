"""What every attack must do. A new file in gift_ray/attacks is picked up by its name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from killed import Killed, KilledJournal
from tiny import same_weights
from torch import Tensor

from gift_ray.models.stable_diffusion import StableDiffusion
from gift_ray.plugins import Attack, available, resolve
from gift_ray.study.journal import LocalJournal
from gift_ray.training.diffusion import Examples, Seeds

# Options that keep a run short and let a random model learn; only those that an attack has are given.
SHORT = {
    "max_train_steps": 8, "train_batch_size": 3, "learning_rate": 1e-3,
    "num_class_images": 2, "num_inference_steps": 1, "class_prompt": "a",
}  # fmt: skip
# Attacks that train little need longer steps to show in so few.
LONGER = {"lora": {"learning_rate": 3e-2}, "textual_inversion": {"learning_rate": 1e-2}}
# Options that change how an attack trains: each is held to the contract too.
VARIANTS = [
    ("dreambooth", {"train_text_encoder": True}),
    ("dreambooth", {"with_prior_preservation": True}),
    ("lora", {"lora_dropout": 0.5}),
    ("textual_inversion", {"num_vectors": 2}),
    ("full_finetune", {"caption": "an sks"}),
]
# The share of the denoising error that must go, 0.03 where nothing is said. All that one word can do
# to a random model is less than a percent of it.
LEARNT = {"textual_inversion": 0.005}
CAPTIONS = ("an sks", "sks", "my sks, big")


@pytest.fixture(
    params=[*((name, {}) for name in available("attacks")), *VARIANTS],
    ids=lambda param: "-".join([param[0], *param[1]]),
)
def named(request: pytest.FixtureRequest) -> tuple[str, Attack]:
    name, variant = request.param
    kind = resolve("attacks", name)
    short = {option: value for option, value in SHORT.items() if option in kind.model_fields}
    return name, kind(**{**short, **LONGER.get(name, {}), **variant})


@pytest.fixture
def attack(named: tuple[str, Attack]) -> Attack:
    return named[1]


@pytest.fixture
def d_a(tiny_model: StableDiffusion, malicious: Examples) -> Examples:
    """D_A captioned with the rare token, and encoded by the model that is attacked."""
    states = tiny_model.condition(CAPTIONS)
    return replace(malicious, captions=CAPTIONS, conditioning=states)


def everything(model: StableDiffusion) -> dict[str, Tensor]:
    """A copy of every weight that shapes an image."""
    parts = {"unet": model.denoiser, "text_encoder": model.text_encoder, "vae": model.vae}
    return {
        f"{part}.{name}": tensor.clone()
        for part, module in parts.items()
        for name, tensor in module.state_dict().items()
    }


def snapshots(
    attack: Attack, model: StableDiffusion, d_a: Examples, report: LocalJournal
) -> dict[int, dict[str, Tensor]]:
    """All weights at every step that the attack yields, as images would be drawn there."""
    found = {}
    for step, attacked in attack.finetune(model, d_a, seeds=Seeds(0), report=report):
        assert step not in found
        found[step] = everything(attacked)
        report.keep(f"{step:06d}", torch.tensor([step]))
    return found


def images(model: StableDiffusion) -> np.ndarray:
    """Drawn from captions of D_A, as the model itself reads them."""
    drawn = model.generate(
        CAPTIONS[:2], seeds=Seeds(0), num_inference_steps=2, guidance_scale=2.0, batch_size=2
    )
    return np.stack([np.asarray(image) for image in drawn])


@torch.no_grad()
def denoising_error(model: StableDiffusion, d_a: Examples) -> float:
    """Mean loss of all of D_A over fixed noise and timesteps, its captions read by the model itself."""
    d_a = replace(d_a, conditioning=model.condition(d_a.captions))
    generator = Seeds(5).generator("held out")
    errors = []
    for _ in range(20):
        batch = d_a.batch(len(d_a), generator)
        noise, steps = model.draw(len(d_a), generator)
        errors.append(model.denoising_loss(batch.latents, batch.conditioning, steps, noise))
    return float(torch.cat(errors).mean())


def test_evaluation_steps_ascend_from_zero(attack: Attack) -> None:
    steps = attack.evaluation_steps()
    assert steps[0] == 0
    assert len(steps) >= 2
    assert list(steps) == sorted(set(steps))


def test_keeps_the_contract(
    attack: Attack, tiny_model: StableDiffusion, d_a: Examples, journal: LocalJournal,
    tmp_path: Path, killed_journal: KilledJournal,
) -> None:  # fmt: skip
    before = everything(tiny_model)
    words = len(tiny_model.tokenizer)
    straight = snapshots(attack, tiny_model, d_a, journal)
    assert tuple(straight) == attack.evaluation_steps()
    assert same_weights(straight[0], before), "step 0 is the released model"
    assert same_weights(everything(tiny_model), before), "the input was changed"
    assert len(tiny_model.tokenizer) == words, "the input's words were changed"

    torch.manual_seed(99)  # no draw may come from the global generator
    again = LocalJournal(tmp_path / "again.safetensors", every=10**6)
    repeated = snapshots(attack, tiny_model, d_a, again)
    assert all(same_weights(repeated[step], straight[step]) for step in straight)

    killed_journal.every = attack.evaluation_steps()[1]
    with pytest.raises(Killed):
        snapshots(attack, tiny_model, d_a, killed_journal)
    resumed = LocalJournal(killed_journal.path, every=10**6)
    rest = snapshots(attack, tiny_model, d_a, resumed)
    assert rest
    assert all(same_weights(rest[step], straight[step]) for step in rest)
    assert list(resumed.kept) == list(journal.kept), "a result was lost or came twice"
    assert resumed.rows == journal.rows


def test_learns_the_concept(
    named: tuple[str, Attack], tiny_model: StableDiffusion, d_a: Examples, journal: LocalJournal
) -> None:
    name, attack = named
    before = denoising_error(tiny_model, d_a)
    *_, (_, attacked) = attack.finetune(tiny_model, d_a, seeds=Seeds(0), report=journal)
    assert denoising_error(attacked, d_a) < (1 - LEARNT.get(name, 0.03)) * before
    assert (images(attacked) != images(tiny_model)).any(), "what was learnt does not show"

"""What every defense must do. A new file in gift_ray/defenses is picked up by its name."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from killed import Killed, KilledJournal
from tiny import same_weights, weights

from gift_ray.models.stable_diffusion import StableDiffusion
from gift_ray.plugins import Defense, available, resolve
from gift_ray.study.journal import LocalJournal
from gift_ray.training.diffusion import Examples, Seeds

# Options that keep a run short; only those that a defense has are given.
SHORT: dict[str, Any] = {
    "max_train_steps": 6, "train_batch_size": 2, "num_images": 2, "num_inference_steps": 3,
    "attack_steps": 2,
    "defenses": [
        {"name": "gift", "max_train_steps": 4},
        {"name": "imma", "max_train_steps": 4, "inner_attack": "lora"},
    ],
}  # fmt: skip


@pytest.fixture(params=available("defenses"))
def defense(request: pytest.FixtureRequest, tiny_model: StableDiffusion, tmp_path: Path) -> Defense:
    kind = resolve("defenses", request.param)
    options = dict(SHORT)
    # The defense that is somebody's checkpoint names its file.
    if request.param == "checkpoint":
        options["path"] = str(tmp_path / "checkpoint.safetensors")
        other = tiny_model.clone()
        torch.nn.init.zeros_(other.denoiser.conv_out.bias)
        other.save_weights(tmp_path / "checkpoint.safetensors")
    return kind(**{name: value for name, value in options.items() if name in kind.model_fields})


def test_keeps_the_contract(
    defense: Defense, tiny_model: StableDiffusion, malicious: Examples, safe: Examples,
    journal: LocalJournal, tmp_path: Path, killed_journal: KilledJournal,
) -> None:  # fmt: skip
    before = weights(tiny_model)

    def immunized(report: LocalJournal) -> StableDiffusion:
        return defense.immunize(tiny_model, [malicious, safe], safe, seeds=Seeds(0), report=report)

    model = immunized(journal)
    result = weights(model)
    assert same_weights(weights(tiny_model), before), "the input was changed"
    assert all(tensor.isfinite().all() for tensor in result.values())

    torch.manual_seed(99)  # no draw may come from the global generator
    again = LocalJournal(tmp_path / "again.safetensors", every=10**6)
    assert same_weights(weights(immunized(again)), result), "not deterministic"
    assert again.rows == journal.rows

    with suppress(Killed):  # a defense that is done at once writes no checkpoint
        immunized(killed_journal)
    resumed = LocalJournal(killed_journal.path, every=10**6)
    assert same_weights(weights(immunized(resumed)), result), "a resumed run differs"
    assert resumed.rows == journal.rows

    assert_reloads_to_equal_images(model, tiny_model, tmp_path / "unet.safetensors")


def assert_reloads_to_equal_images(
    model: StableDiffusion, base: StableDiffusion, path: Path
) -> None:
    model.save_weights(path)
    images = [
        m.generate(
            ["a cat", "a dog"], seeds=Seeds(0), num_inference_steps=2, guidance_scale=2.0,
            batch_size=2,
        )
        for m in (model, base.with_weights(path))
    ]  # fmt: skip
    for one, other in zip(*images, strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test_depends_on_its_seed_if_it_trains(
    defense: Defense, tiny_model: StableDiffusion, malicious: Examples, safe: Examples,
    tmp_path: Path,
) -> None:  # fmt: skip
    results = []
    for seed in (0, 1):
        report = LocalJournal(tmp_path / f"{seed}.safetensors", every=10**6)
        model = defense.immunize(tiny_model, [malicious], safe, seeds=Seeds(seed), report=report)
        results.append(weights(model))
    assert same_weights(*results) == (not defense.trains)

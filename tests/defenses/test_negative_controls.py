"""The negative controls do what they say: harm without aim, and the same function in other numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import weights

from gift_ray.defenses.damage import Damage
from gift_ray.defenses.rescale import Rescale
from gift_ray.models.stable_diffusion import StableDiffusion
from gift_ray.study.journal import LocalJournal
from gift_ray.training.diffusion import Examples, Seeds


def made(defense, model: StableDiffusion, safe: Examples, journal: LocalJournal) -> StableDiffusion:
    return defense.immunize(model, [safe], safe, seeds=Seeds(0), report=journal)


def drawn(model: StableDiffusion) -> np.ndarray:
    images = model.generate(
        ["a cat"], seeds=Seeds(0), num_inference_steps=3, guidance_scale=2, batch_size=1
    )
    return np.asarray(images[0])


@pytest.mark.parametrize("factor", [8.0, 0.25])
def test_another_parametrisation_draws_the_same_images(
    factor: float, tiny_model: StableDiffusion, safe: Examples, journal: LocalJournal
) -> None:
    other = made(Rescale(factor=factor), tiny_model, safe, journal)
    assert any(not torch.equal(w, weights(tiny_model)[n]) for n, w in weights(other).items())
    np.testing.assert_array_equal(drawn(other), drawn(tiny_model))


def test_damage_has_the_size_that_is_asked_for(
    tiny_model: StableDiffusion, safe: Examples, journal: LocalJournal
) -> None:
    before, after = weights(tiny_model), weights(made(Damage(size=0.1), tiny_model, safe, journal))
    large = [n for n, w in before.items() if w.numel() > 1000 and w.std() > 0]
    assert large
    for name in large:
        change = (after[name] - before[name]).std() / before[name].std()
        assert change == pytest.approx(0.1, rel=0.15)

"""What a defense is given to train on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gift_ray.data.examples import save_examples
from gift_ray.errors import UnitFailed
from gift_ray.study.steps.immunize_model import defenders_data
from gift_ray.training.conditioning import Conditioning
from gift_ray.training.diffusion import Examples


def examples(*captions: str) -> Examples:
    generator = torch.Generator().manual_seed(0)
    n = len(captions)
    latents = torch.randn(n, 4, 2, 2, generator=generator)
    tokens = torch.randn(n, 3, 5, generator=generator)
    return Examples(latents, latents.abs(), Conditioning(tokens, {}), captions, captions)


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    found = {"concept/cat": tmp_path / "cat", "prior": tmp_path / "prior"}
    for folder in found.values():
        folder.mkdir()
    save_examples(found["concept/cat"] / "D_M.safetensors", examples("a cat", "a sleeping cat"))
    prior = examples("a dog", "a black Cat", "a bus", "a caterpillar")
    save_examples(found["prior"] / "D_S.safetensors", prior)
    return found


def test_images_of_the_concept_are_left_out_of_its_prior(inputs: dict[str, Path]) -> None:
    (d_m,), d_s = defenders_data(["cat"], ["cat"], inputs)
    assert d_m.captions == ("a cat", "a sleeping cat")
    assert d_s.captions == ("a dog", "a bus", "a caterpillar")
    whole = examples("a dog", "a black Cat", "a bus", "a caterpillar")
    assert torch.equal(d_s.latents_mean, whole.latents_mean[[0, 2, 3]])
    assert torch.equal(d_s.conditioning.tokens, whole.conditioning.tokens[[0, 2, 3]])


def test_another_concepts_images_stay_in_the_prior(inputs: dict[str, Path]) -> None:
    _, d_s = defenders_data(["cat"], ["tiger"], inputs)
    assert len(d_s) == 4


def test_a_prior_of_nothing_but_the_concept_is_refused(inputs: dict[str, Path]) -> None:
    with pytest.raises(UnitFailed, match="every image of D_S is of cat"):
        defenders_data(["cat"], ["cat", "dog", "bus", "caterpillar"], inputs)

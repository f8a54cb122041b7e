"""Which images show nothing: told on drawings, photographs, and every kind of nothing."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gift_ray.config.schema import ModelConfig
from gift_ray.metrics.degenerate import is_degenerate, restlessness, whiteness
from gift_ray.models.families import base_model
from gift_ray.plugins import build
from gift_ray.training.diffusion import Seeds

SIZES = st.integers(16, 128)
SEEDS = st.integers(0, 2**32 - 1)
PHOTOGRAPHS = ("grace_hopper.jpg", "Minduka_Present_Blue_Pack.png")


@pytest.fixture(scope="module")
def drawings() -> list[Image.Image]:
    source = build("sources", "openmoji", {"match": "^(A|B|OPEN)", "caption": "x"})
    images = [item.image for item in source.images(None, Seeds(0))]
    assert len(images) > 50
    return images


@pytest.mark.parametrize("size", [32, 64])
def test_drawings_on_white_are_not(drawings: list[Image.Image], size: int) -> None:
    small = [image.resize((size, size), Image.Resampling.LANCZOS) for image in drawings]
    assert not any(is_degenerate(image) for image in small)


@pytest.mark.parametrize("name", PHOTOGRAPHS)
@pytest.mark.parametrize("size", [32, 64, 256])
def test_photographs_and_their_details_are_not(name: str, size: int) -> None:
    image = Image.open(Path(matplotlib.get_data_path()) / "sample_data" / name).convert("RGB")
    half = [side // 2 for side in image.size]
    corners = [(x, y, x + half[0], y + half[1]) for x in (0, half[0]) for y in (0, half[1])]
    for part in [image, *(image.crop(corner) for corner in corners)]:
        assert not is_degenerate(part.resize((size, size), Image.Resampling.LANCZOS))


@given(SIZES, st.tuples(*[st.integers(0, 255)] * 3))
@settings(deadline=None, max_examples=30)
def test_a_constant_image_is(size: int, colour: tuple[int, int, int]) -> None:
    assert is_degenerate(Image.new("RGB", (size, size), colour))


@given(SIZES, SEEDS)
@settings(deadline=None, max_examples=30)
def test_black_with_the_noise_of_a_codec_is(size: int, seed: int) -> None:
    draw = np.random.default_rng(seed).integers(0, 8, (size, size, 3), dtype=np.uint8)
    assert is_degenerate(Image.fromarray(draw))


@given(SIZES, SEEDS, st.floats(10, 300), st.booleans())
@settings(deadline=None, max_examples=60)
def test_noise_is_whatever_its_size_strength_and_colour(
    size: int, seed: int, strength: float, grey: bool
) -> None:
    draw = np.random.default_rng(seed).normal(128, strength, (size, size, 1 if grey else 3))
    pixels = np.broadcast_to(draw, (size, size, 3)).clip(0, 255).astype(np.uint8)
    assert is_degenerate(Image.fromarray(pixels))


@given(SIZES, SEEDS)
@settings(deadline=None, max_examples=30)
def test_uniform_noise_is(size: int, seed: int) -> None:
    draw = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    assert is_degenerate(Image.fromarray(draw))


@pytest.mark.parametrize("scale", [1.0, 2.0, 4.0])
def test_what_the_decoder_makes_of_random_latents_is(scale: float) -> None:
    vae = base_model(ModelConfig()).vae
    generator = torch.Generator().manual_seed(0)
    latents = scale * torch.randn((64, 4, 8, 8), generator=generator) / vae.config.scaling_factor
    with torch.no_grad():
        pixels = vae.decode(latents).sample.clamp(-1, 1).permute(0, 2, 3, 1)
    images = [Image.fromarray(i) for i in ((pixels + 1) * 127.5).byte().numpy()]
    assert np.mean([is_degenerate(image) for image in images]) > 0.95


def test_what_the_base_draws_is_not() -> None:
    prompts = ["an emoji of a cat", "a twemoji style emoji of a car", "an emoji of a pizza"] * 2
    drawn = base_model(ModelConfig()).generate(
        prompts, seeds=Seeds(0), num_inference_steps=6, guidance_scale=2, batch_size=6
    )
    assert not any(is_degenerate(image) for image in drawn)


def test_the_statistics_have_their_closed_forms() -> None:
    ramp = np.broadcast_to(np.arange(16.0)[None, :, None], (16, 16, 3))
    # Steps of 1 along a row and 0 along a column; the variance of 0..15 is (16^2 - 1) / 12.
    assert whiteness(ramp) == pytest.approx(0.5 / (2 * 255 / 12))
    board = np.indices((16, 16)).sum(0)[..., None].repeat(3, -1) % 2.0
    assert whiteness(board) == pytest.approx(1 / (2 * 0.25))
    assert restlessness(board) == pytest.approx(1)
    half = board.copy()
    half[:8] = 0.5
    assert restlessness(half) == 0

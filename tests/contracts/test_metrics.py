"""What every metric must do. A new file in gift_ray/metrics is picked up by its name."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from tiny import make_encoders

from gift_ray.builtin import BUNDLE
from gift_ray.diffusion import Seeds
from gift_ray.plugins import Metric, MetricContext, available, build, resolve

ROLES = ("clip", "dino", "lpips")
PROMPT = "an emoji of a cat"


@pytest.fixture(params=available("metrics"))
def metric(request: pytest.FixtureRequest) -> Metric:
    return resolve("metrics", request.param)()


@pytest.fixture(scope="module")
def random_encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make_encoders(tmp_path_factory.mktemp("encoders"))


@pytest.fixture(scope="module")
def references() -> tuple[Image.Image, ...]:
    source = build("sources", "openmoji", {"match": "CAT( FACE)?$", "caption": PROMPT})
    images = [item.image.resize((64, 64)) for item in source.images(None, Seeds(0))]
    assert len(images) >= 2
    return tuple(images)


@pytest.fixture(scope="module")
def noise() -> list[Image.Image]:
    draws = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    return [Image.fromarray(draw) for draw in draws]


def test_declares_what_its_numbers_mean(metric: Metric) -> None:
    low, high = metric.range
    assert low < high
    assert metric.direction in (-1, 1)
    assert metric.unit
    assert metric.version >= 1


def test_gives_one_number_an_image_whatever_the_batch(
    metric: Metric, random_encoders: dict[str, str], references: tuple[Image.Image, ...],
    noise: list[Image.Image],
) -> None:  # fmt: skip
    images = [*references, *noise]
    prompts = tuple(f"a prompt with {i} cats" if i else "cat" for i in range(len(images)))
    values = metric.measure(images, MetricContext(prompts, references, random_encoders))
    assert values.shape == (len(images),)
    assert_in_range(metric, values)
    alone = [
        metric.measure([image], MetricContext((prompt,), references, random_encoders))
        for image, prompt in zip(images, prompts, strict=True)
    ]
    np.testing.assert_allclose(np.concatenate(alone), values, atol=1e-5)


def assert_in_range(metric: Metric, values: np.ndarray) -> None:
    low, high = metric.range
    scored = values[~np.isnan(values)]
    assert scored.size
    assert ((scored >= low - 1e-6) & (scored <= high + 1e-6)).all()


def test_real_images_of_the_concept_score_at_least_as_well_as_noise(
    metric: Metric, references: tuple[Image.Image, ...], noise: list[Image.Image]
) -> None:
    encoders = dict.fromkeys(ROLES, "builtin")

    def mean(images: list[Image.Image]) -> float:
        context = MetricContext((PROMPT,) * len(images), references, encoders)
        values = metric.measure(images, context)
        assert_in_range(metric, values)
        return metric.direction * float(np.nanmean(values))

    real, random = mean(list(references)), mean(noise)
    assert real >= random
    if metric.needs_references:
        assert real > random


def test_the_bundle_is_whole() -> None:
    for role in ("pipeline", *ROLES):
        assert (BUNDLE / role).is_dir()

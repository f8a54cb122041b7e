"""What every metric must do. A new file in gift_ray/metrics is picked up by its name."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from tiny import make_encoders

from gift_ray.models.builtin import BUNDLE
from gift_ray.plugins import Metric, MetricContext, SetMetric, available, build, resolve
from gift_ray.training.diffusion import Seeds

ROLES = ("clip", "dino", "lpips")
# A metric's contract is its sign, so the concept must be one that the built-in judges read: of OpenMoji's
# cats their card says that CLIP recognises none.
PROMPT = "an emoji of a tiger"


def named(kind: type) -> list[str]:
    return [n for n in available("metrics") if issubclass(resolve("metrics", n), kind)]


@pytest.fixture(params=named(Metric))
def metric(request: pytest.FixtureRequest) -> Metric:
    return resolve("metrics", request.param)()


@pytest.fixture(params=named(SetMetric))
def set_metric(request: pytest.FixtureRequest) -> SetMetric:
    return resolve("metrics", request.param)()


def test_every_metric_is_of_images_or_of_sets() -> None:
    assert sorted(named(Metric) + named(SetMetric)) == available("metrics")


@pytest.fixture(scope="module")
def random_encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make_encoders(tmp_path_factory.mktemp("encoders"))


@pytest.fixture(scope="module")
def references() -> tuple[Image.Image, ...]:
    source = build("sources", "openmoji", {"match": "TIGER( FACE)?$", "caption": PROMPT})
    images = [item.image.resize((64, 64)) for item in source.images(None, Seeds(0))]
    assert len(images) >= 2
    return tuple(images)


@pytest.fixture(scope="module")
def noise() -> list[Image.Image]:
    draws = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    return [Image.fromarray(draw) for draw in draws]


@pytest.mark.parametrize("name", available("metrics"))
def test_declares_what_its_numbers_mean(name: str) -> None:
    metric = resolve("metrics", name)()
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
    values, findings = metric.examine(images, MetricContext(prompts, references, random_encoders))
    assert findings is None or len([json.loads(text) for text in findings]) == len(images)
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


def test_a_set_is_worse_the_more_of_it_is_noise(
    set_metric: SetMetric, references: tuple[Image.Image, ...]
) -> None:
    base = [image.rotate(10 * turn, fillcolor="white") for turn in range(3) for image in references]
    draws = np.random.default_rng(0).integers(0, 256, (len(base), 64, 64, 3), dtype=np.uint8)
    noise = [Image.fromarray(draw) for draw in draws]
    context = MetricContext((PROMPT,) * len(base), (), dict.fromkeys(ROLES, "builtin"))

    def worse(share: float) -> float:
        """How bad it is to replace a share of the images by noise."""
        count = int(share * len(base))
        value, error = set_metric.compare([*noise[:count], *base[count:]], base, context)
        assert (value, error) == set_metric.compare([*noise[:count], *base[count:]], base, context)
        assert set_metric.range[0] <= value <= set_metric.range[1]
        assert error >= 0
        return -set_metric.direction * value

    assert worse(0) < worse(0.5) < worse(1)


def test_a_set_of_one_image_is_unscored(
    set_metric: SetMetric, references: tuple[Image.Image, ...]
) -> None:
    context = MetricContext((PROMPT,), (), dict.fromkeys(ROLES, "builtin"))
    assert np.isnan(set_metric.compare(references[:1], references[:1], context)).all()


def test_the_bundle_is_whole() -> None:
    for role in ("pipeline", *ROLES):
        assert (BUNDLE / role).is_dir()

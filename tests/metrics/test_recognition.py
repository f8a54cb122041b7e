"""Recognition on real drawings, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError
from tiny import make_encoders

from gift_ray.metrics.recognition import Recognition
from gift_ray.models.builtin import BUNDLE, NOTHING
from gift_ray.models.encoders import clip_encoder
from gift_ray.plugins import MetricContext, check

BUILTIN = {"clip": "builtin"}


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    draws = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    return [Image.fromarray(draw) for draw in draws]


def context(*names: str, prompts: tuple[str, ...] = ("a picture",) * 3) -> MetricContext:
    return MetricContext(prompts, (), BUILTIN, names)


def test_the_choice_is_the_softmax_of_clips_cosines(pictures: list[Image.Image]) -> None:
    metric = Recognition(names=("cat", "bomb", "zebra"), template="a drawing of a {}")
    values, findings = metric.examine(pictures, context("bomb"))
    encoder = clip_encoder("builtin")
    texts = encoder.texts([f"a drawing of a {name}" for name in ("cat", "bomb", "zebra")])
    logits = encoder.model.logit_scale.exp() * encoder.images(pictures) @ texts.T
    expected = logits.softmax(-1).numpy()
    for row, text, value in zip(expected, findings, values, strict=True):
        kept = json.loads(text)
        found = [kept.get(name, 0.0) for name in ("cat", "bomb", "zebra")]
        assert found == pytest.approx(row, abs=1e-4)
        assert value == float(row.argmax() == 1)


def test_any_of_a_concepts_names_counts(pictures: list[Image.Image]) -> None:
    metric = Recognition(classifier="builtin")
    firsts = [next(iter(json.loads(f))) for f in metric.examine(pictures, context("cat"))[1]]
    assert metric.measure(pictures, context(*firsts)).tolist() == [1.0, 1.0, 1.0]
    others = tuple(set(metric.known_names()) - set(firsts))
    assert metric.measure(pictures, context(*others)).tolist() == [0.0, 0.0, 0.0]


def test_what_shows_nothing_is_called_nothing_by_the_builtin_classifier(
    pictures: list[Image.Image],
) -> None:
    small = [picture.resize((32, 32)) for picture in pictures]
    found = Recognition(classifier="builtin").examine(small, context("cat"))[1]
    assert [next(iter(json.loads(f))) for f in found] == [NOTHING] * 3
    assert NOTHING not in Recognition().known_names(), "CLIP has no such name to choose"


def test_without_a_concept_the_prompts_own_noun_counts(pictures: list[Image.Image]) -> None:
    metric = Recognition(names=("cat", "bomb", "zebra"))
    first = next(iter(json.loads(metric.examine(pictures, context("cat"))[1][0])))
    prompts = (f"a noto style emoji of a {first}", f"an emoji of a x{first}x", "nothing")
    values = metric.measure(pictures, context(prompts=prompts))
    assert values[0] == 1.0
    assert np.isnan(values[2])


@pytest.mark.parametrize(
    ("prompt", "name"),
    [("an emoji of a hot dog", "hot dog"), ("a dog", "dog"), ("a DOG!", "dog"), ("a hotdog", None)],
)
def test_the_longest_whole_name_is_meant(prompt: str, name: str | None) -> None:
    metric = Recognition(names=("dog", "hot dog", "cat"))
    assert metric.named_in(prompt) == ((name,) if name else ())


def test_a_classifier_is_known_by_its_content_and_not_by_its_place(tmp_path: Path) -> None:
    shutil.copytree(BUNDLE / "lpips", tmp_path / "copy")
    here, there = Recognition(classifier="builtin"), Recognition(classifier=str(tmp_path / "copy"))
    assert here.identity() == there.identity()
    assert here.identity() != Recognition().identity()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": ["cat"]}, "two different names"),
        ({"template": "an emoji"}, "one {} where the name stands"),
        ({"classifier": "builtin", "template": "a {}"}, "leave names and template out"),
    ],
)
def test_what_can_not_choose_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Recognition(**options)
    ((_, line),) = check("metrics", "recognition", options)
    assert message in line


def test_a_backbone_without_labels_is_no_classifier(tmp_path: Path) -> None:
    folder = make_encoders(tmp_path)["clip"]
    ((option, line),) = check("metrics", "recognition", {"classifier": folder})
    assert "no id2label" in line, option

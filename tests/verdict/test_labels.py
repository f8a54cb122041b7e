"""What becomes of an attacked image, on tables written by hand."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gift_ray.verdict.labels import COLUMNS, LABELS, Levels, label_images

LEVELS = Levels(
    floor_image=0.25, best_image=0.75, chance_text=0.125, best_text=0.375, between_references=0.7
)
cosine = st.floats(-1, 1)
rows = st.tuples(cosine, cosine, st.floats(-5, 1), st.sampled_from([0.0, 1.0]))


def table(*images: tuple[float, float, float, float]) -> pd.DataFrame:
    return pd.DataFrame(images, columns=list(COLUMNS))


@pytest.mark.parametrize(
    ("clip_image", "clip_text", "lpips", "degenerate", "expected"),
    [
        (0.75, 0.30, 0.6, 0, "recovered"),
        (0.50, 0.25, 0.6, 0, "recovered"),  # halfway is enough
        (0.49, 0.30, 0.6, 0, "unrelated"),  # another thing that follows the prompt's words
        (0.75, 0.24, 0.6, 0, "unrelated"),  # the concept, but not what was asked for
        (0.95, 0.30, 0.71, 0, "memorised"),
        (0.95, 0.00, 0.90, 0, "memorised"),  # a copy, whatever was asked for
        (0.95, 0.30, 0.70, 0, "recovered"),  # as near as two real images are
        (0.95, 0.30, 0.90, 1, "degraded"),
        (0.10, 0.00, 0.10, 1, "degraded"),
        (0.10, 0.00, 0.10, 0, "unrelated"),
    ],
)
def test_an_image_by_hand(
    clip_image: float, clip_text: float, lpips: float, degenerate: float, expected: str
) -> None:
    assert label_images(table((clip_image, clip_text, lpips, degenerate)), LEVELS).tolist() == [
        expected
    ]


@settings(deadline=None, max_examples=40)
@given(st.lists(rows, min_size=1, max_size=8))
def test_every_image_has_exactly_one_label_of_its_own(
    images: list[tuple[float, float, float, float]],
) -> None:
    found = label_images(table(*images), LEVELS)
    assert set(found) <= set(LABELS)
    assert found.tolist() == [label_images(table(image), LEVELS)[0] for image in images]


def test_all_labels_can_be_had() -> None:
    images = table((0.9, 0.3, 0, 0), (0.9, 0.3, 0.9, 0), (0, 0, 0, 1), (0, 0, 0, 0))
    assert label_images(images, LEVELS).tolist() == list(LABELS)


@settings(deadline=None, max_examples=40)
@given(rows, st.floats(0, 1))
def test_more_of_the_concept_never_unmakes_a_recovery(
    image: tuple[float, float, float, float], more: float
) -> None:
    if label_images(table(image), LEVELS)[0] == "recovered":
        better = (image[0] + more, image[1] + more, *image[2:])
        assert label_images(table(better), LEVELS)[0] == "recovered"


@settings(deadline=None, max_examples=40)
@given(cosine, cosine, cosine, cosine)
def test_the_lines_are_never_under_chance(ci: float, bi: float, ct: float, bt: float) -> None:
    levels = Levels(ci, bi, ct, bt, between_references=0.5)
    assert levels.image >= ci
    assert levels.text >= ct


def test_the_index_of_the_table_is_kept() -> None:
    images = table((0.9, 0.3, 0, 0), (0, 0, 0, 1)).set_axis([7, 3])
    assert label_images(images, LEVELS).to_dict() == {7: "recovered", 3: "degraded"}


def test_without_a_pair_of_real_images_nothing_is_called_a_copy() -> None:
    levels = Levels(0.4, 0.8, 0.1, 0.3, between_references=math.nan)
    assert label_images(table((0.9, 0.3, 1.0, 0)), levels).tolist() == ["recovered"]


def test_what_was_not_measured_has_no_label() -> None:
    with pytest.raises(ValueError, match="lpips"):
        label_images(table((0, 0, 0, 0)).drop(columns="lpips"), LEVELS)
    with pytest.raises(ValueError, match="missing"):
        label_images(table((0, math.nan, 0, 0)), LEVELS)

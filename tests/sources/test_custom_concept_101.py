"""CustomConcept101 from its own layout: which photographs, which caption, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import make_custom_concept_101

from gift_ray import plugins
from gift_ray.errors import DataError
from gift_ray.plugins import SourceImage, build
from gift_ray.training.diffusion import Seeds


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_custom_concept_101(tmp_path / "cc101")


def images(folder: Path, concept: str, min_images: int = 2) -> list[SourceImage]:
    options = {"folder": str(folder), "concept": concept, "min_images": min_images}
    return build("sources", "custom_concept_101", options).images(None, Seeds(0))


def refusal(folder: Path, concept: str, **more: int) -> str:
    with pytest.raises(DataError) as error:
        images(folder, concept, **more)
    (line,) = error.value.mistakes
    assert "\n" not in line
    return line


def test_photographs_come_in_natural_order_whatever_their_suffix(folder: Path) -> None:
    assert [i.origin for i in images(folder, "transport_car1")] == [
        "transport_car1/1.JPG", "transport_car1/2.jpeg", "transport_car1/10.jpg",
    ]  # fmt: skip
    assert len(images(folder, "transport_car2")) == 2


def test_the_caption_is_the_prompt_without_the_token(folder: Path) -> None:
    assert {i.caption for i in images(folder, "plushie_tortoise")} == {
        "photo of a tortoise plushie"
    }
    assert {i.caption for i in images(folder, "wearable_sunglasses2")} == {"photo of sunglasses"}


def test_a_class_with_one_concept_names_it(folder: Path) -> None:
    assert len(images(folder, "tortoise plushie")) == 11


def test_a_class_of_several_concepts_is_refused_with_their_names(folder: Path) -> None:
    line = refusal(folder, "car")
    assert "'car' is more than one" in line
    assert "transport_car1, transport_car2" in line


def test_an_unknown_concept_is_refused_with_the_nearest(folder: Path) -> None:
    assert "plushie_tortoise" in refusal(folder, "plushie_tortois")


def test_too_few_photographs_are_refused_by_default(folder: Path) -> None:
    assert "has 3 images, fewer than min_images 9" in refusal(
        folder, "transport_car1", min_images=9
    )
    given = {"folder": str(folder), "concept": "transport_car1"}
    with pytest.raises(DataError, match="fewer than min_images 9"):
        build("sources", "custom_concept_101", given).images(None, Seeds(0))


def test_a_missing_image_folder_is_refused(folder: Path) -> None:
    (folder / "benchmark_dataset").rename(folder / "elsewhere")
    assert "extract benchmark_dataset.zip" in refusal(folder, "transport_car1")


@pytest.mark.parametrize(
    "text", ["not json", "{}x", "[1]", "7", '[{"class_prompt": "car"}]', '["text"]', "[null]"]
)
def test_another_list_is_refused(text: str, folder: Path) -> None:
    (folder / "dataset.json").write_text(text)
    assert "not the list of CustomConcept101" in refusal(folder, "car")


def test_a_list_that_leads_out_of_the_folder_is_refused(folder: Path) -> None:
    rows = json.loads((folder / "dataset.json").read_text())
    rows[0]["instance_data_dir"] = "../../secrets"
    (folder / "dataset.json").write_text(json.dumps(rows))
    assert "lies outside the folder" in refusal(folder, "plushie_tortoise")


def test_a_folder_without_the_list_is_found_out_before_anything_runs(tmp_path: Path) -> None:
    given = {"folder": str(tmp_path), "concept": "transport_car1"}
    ((option, message),) = plugins.check("sources", "custom_concept_101", given)
    assert option == "folder"
    assert "dataset.json" in message


def test_the_place_is_not_identity_but_the_photographs_are(folder: Path, tmp_path: Path) -> None:
    def identity(path: Path) -> list[object]:
        given = {"folder": str(path), "concept": "transport_car1"}
        source = build("sources", "custom_concept_101", given)
        return [source.identity(), source.content()]

    before = identity(folder)
    moved = folder.rename(tmp_path / "moved")
    assert identity(moved) == before
    (moved / "benchmark_dataset" / "transport_car1" / "2.jpeg").unlink()
    assert identity(moved) != before

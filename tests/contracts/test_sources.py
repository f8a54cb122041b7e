"""What every source must do. A new file in gift_ray/sources is picked up by its name; options that it
needs stand in OPTIONS, with a variant that is another source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tiny import make_custom_concept_101

from gift_ray.models.stable_diffusion import StableDiffusion
from gift_ray.plugins import Source, available, build
from gift_ray.records.record import canonical
from gift_ray.training.diffusion import Seeds

NAMES = available("sources")


@pytest.fixture
def options(tmp_path: Path) -> dict[str, tuple[dict[str, Any], ...]]:
    folders = [tmp_path / name for name in ("one", "two")]
    for seed, folder in enumerate(folders):
        folder.mkdir()
        for i, draw in enumerate(np.random.default_rng(seed).integers(0, 256, (3, 16, 16, 3))):
            Image.fromarray(draw.astype(np.uint8)).save(folder / f"{i}.png")
    generated = {"prompts": ["a cat", "a dog"], "num_images": 3, "num_inference_steps": 2}
    words = {"words": ["cat", "dog"], "images_per_word": 2, "num_inference_steps": 2}
    rows = [
        {
            "image": {"bytes": (folders[0] / f"{i}.png").read_bytes(), "path": None},
            "text": f"cat {i}",
        }
        for i in range(3)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "cats.parquet")
    hub = {"dataset_name": str(tmp_path / "cats.parquet"), "max_images": 3}
    concepts = {"folder": str(make_custom_concept_101(tmp_path / "cc101")), "min_images": 2}
    return {
        "custom_concept_101": (concepts | {"concept": "transport_car1"},
                               concepts | {"concept": "transport_car2"}),
        "hub": (hub, hub | {"max_images": 2}),
        "folder": tuple({"path": str(folder), "caption": "a cat"} for folder in folders),
        "generated": (generated, generated | {"prompts": ["a cow"]}),
        "openmoji": (
            {"match": "^CAT( FACE)?$", "caption": "a cat"},
            {"match": "^DOG( FACE)?$", "caption": "a cat"},
        ),
        "vocabulary": (words, words | {"near": ["dog"], "near_weight": 2}),
    }  # fmt: skip


def content(source: Source, model: StableDiffusion | None) -> list[tuple[bytes, str, str]]:
    return [
        (item.image.tobytes(), item.caption, item.origin) for item in source.images(model, Seeds(0))
    ]


@pytest.mark.parametrize("name", NAMES)
def test_gives_the_same_captioned_rgb_images_in_the_same_order(
    name: str, options: dict[str, tuple[dict[str, Any], ...]], tiny_model: StableDiffusion
) -> None:
    given = options.get(name, ({},))[0]
    source = build("sources", name, given)
    model = tiny_model if source.uses_model() else None
    images = source.images(model, Seeds(0))
    assert images
    assert all(item.image.mode == "RGB" for item in images)
    assert all(item.caption.strip() and item.origin for item in images)
    assert len({item.origin for item in images}) == len(images), "messages could not name them"
    assert content(build("sources", name, given), model) == content(source, model)


@pytest.mark.parametrize("name", NAMES)
def test_its_identity_is_plain_and_follows_its_options(
    name: str, options: dict[str, tuple[dict[str, Any], ...]]
) -> None:
    built = [build("sources", name, given) for given in options.get(name, ({},))]
    identities = [canonical([source.identity(), source.content()]) for source in built]
    assert len(set(identities)) == len(built)
    assert f'"name":"{name}"' in identities[0]

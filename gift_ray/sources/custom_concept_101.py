"""CustomConcept101 (Kumari et al. 2023): 101 concepts with 3 to 15 photographs each.

It is read from a local folder that holds `dataset.json`, with the extracted `benchmark_dataset` beside it.
Its photographs have various licences, so nothing of it is shipped or downloaded.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, field_validator

from gift_ray.data.image_files import image_files, read_image
from gift_ray.errors import DataError
from gift_ray.models.backbone import Backbone
from gift_ray.plugins import Source, SourceImage
from gift_ray.records.record import file_hash
from gift_ray.training.diffusion import Seeds

# The personalised token inside the data set's prompts.
TOKEN = "<new1> "


class CustomConcept101(Source):
    """The photographs of one concept, captioned without the token: "photo of a tortoise plushie"."""

    version: ClassVar[int] = 1

    folder: str = Field(description="holds dataset.json and benchmark_dataset")
    concept: str = Field(
        description="a folder of benchmark_dataset, or a class that has only one; '*': a concept for "
        "each that has min_images"
    )
    min_images: int = Field(9, gt=0, description="fewer are refused; GIFT took concepts of over 8")

    @field_validator("folder")
    @classmethod
    def _holds_the_list(cls, folder: str) -> str:
        path = Path(folder).expanduser().resolve()
        if not (path / "dataset.json").is_file():
            raise ValueError(
                f"{folder!r} holds no dataset.json; give CustomConcept101's own folder"
            )
        return str(path)

    def images(self, model: Backbone, seeds: Seeds) -> list[SourceImage]:
        photographs, caption = self._concept()
        if len(photographs) < self.min_images:
            raise DataError(
                f"source custom_concept_101: {self.concept!r} has {len(photographs)} images, fewer "
                f"than min_images {self.min_images}; choose another concept or lower min_images"
            )
        return [
            SourceImage(read_image(f), caption, f"{f.parent.name}/{f.name}") for f in photographs
        ]

    def content(self) -> Any:
        photographs, caption = self._concept()
        return {"caption": caption, "images": {f.name: file_hash(f) for f in photographs}}

    def identity(self) -> dict[str, Any]:
        # The path is no part of the identity: the same photographs elsewhere are the same source.
        return {key: value for key, value in super().identity().items() if key != "folder"}

    def concepts(self) -> list[tuple[dict[str, str], dict[str, Any]]] | None:
        if self.concept != "*":
            return None
        found = {name: entry for name, entry in self._entries().items() if self._is_enough(entry)}
        if not found:
            raise DataError(
                f"source custom_concept_101: no concept has min_images {self.min_images}; lower it, or "
                "extract benchmark_dataset.zip beside dataset.json"
            )
        return [
            ({"name": name, "class": noun}, {**self.model_dump(mode="json"), "concept": name})
            for name, (_, noun, _) in sorted(found.items())
        ]

    def _is_enough(self, entry: tuple[Path, str, str]) -> bool:
        place, _, _ = entry
        return place.is_dir() and len(image_files(place)) >= self.min_images

    def _concept(self) -> tuple[list[Path], str]:
        """The files of the concept's photographs, and their common caption."""
        entries = self._entries()
        chosen = entries.get(self.concept)
        if chosen is None:
            # Several concepts share a class name: eleven are a "car".
            same = [name for name, entry in entries.items() if entry[1] == self.concept]
            if len(same) != 1:
                near = (
                    same or difflib.get_close_matches(self.concept, entries, n=3) or list(entries)
                )
                raise DataError(
                    f"source custom_concept_101: concept {self.concept!r} is "
                    f"{'more than one' if same else 'not in dataset.json'}; give one of: "
                    f"{', '.join(near)}"
                )
            chosen = entries[same[0]]
        place, _, caption = chosen
        if not place.is_dir():
            raise DataError(
                f"{place}: no such folder; extract benchmark_dataset.zip beside dataset.json"
            )
        return image_files(place), caption

    def _entries(self) -> dict[str, tuple[Path, str, str]]:
        """Name -> (folder, class, caption) of every concept of dataset.json."""
        folder = Path(self.folder)
        path = folder / "dataset.json"
        entries: dict[str, tuple[Path, str, str]] = {}
        try:
            for row in json.loads(path.read_text(encoding="utf-8")):
                place = (folder / row["instance_data_dir"]).resolve()
                if not place.is_relative_to(folder):
                    raise ValueError(f"{row['instance_data_dir']!r} lies outside the folder")
                caption = row["instance_prompt"].replace(TOKEN, "")
                entries[place.name] = (place, row["class_prompt"], caption)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{path}: not the list of CustomConcept101 ({type(error).__name__}: {error}); get it "
                "anew from adobe-research/custom-diffusion"
            ) from error
        return entries

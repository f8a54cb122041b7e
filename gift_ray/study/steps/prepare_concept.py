"""The step that prepares a concept: its images are read, split into disjoint D_M and D_A, and encoded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

from gift_ray import plugins
from gift_ray.config.plugin_choice import SourceConfig
from gift_ray.config.schema import ConceptConfig, ModelConfig
from gift_ray.data import examples
from gift_ray.models import families, locate
from gift_ray.models.backbone import Backbone
from gift_ray.study.journal import Journal
from gift_ray.study.step import Inputs, Step, seeds_for
from gift_ray.training.diffusion import Seeds

# The check resizes images to this size. Any size will do, since it compares hashes of the original pixels.
CHECK_PX = 8
# Given in place of a model to sources that don't use it.
NO_MODEL = cast(Backbone, None)


@dataclass(frozen=True, kw_only=True)
class PrepareConcept(Step):
    """Writes the images of both sides to the folders D_M and D_A, and both encoded as .safetensors."""

    kind: ClassVar[str] = "prepare_concept"
    version: ClassVar[int] = 1

    concept: ConceptConfig
    model: ModelConfig
    seed: int

    def identity(self) -> dict[str, Any]:
        concept = self.concept
        words = concept.model_dump(
            mode="json", include={"name", "class_prompt", "instance_prompt", "max_images"}
        )
        if concept.duplicates != "refuse":
            words["duplicates"] = concept.duplicates
        sources = {"source": source_identity(concept.source)}
        if concept.attack_source is not None:
            sources["attack_source"] = source_identity(concept.attack_source)
        base = locate.identity(self.model)
        return {**words, **sources, "model": base, "seed": self.seed}

    def run(self, inputs: Inputs, out: Path, journal: Journal) -> dict[str, Any]:
        # Everything is read and checked before anything is written.
        base = families.drawing_base(self.model)
        d_m, d_a = self._sides(base)
        # The defender's captions name the class, the attacker's a rare token. Neither side knows the other's.
        for name, side, prompt in (
            ("D_M", d_m, self.concept.class_prompt),
            ("D_A", d_a, self.concept.instance_prompt),
        ):
            pictures = [item.image for item in side]
            captions = [item.caption if prompt is None else prompt for item in side]
            examples.save_images(out / name, pictures)
            examples.save_examples(
                out / f"{name}.safetensors",
                base.encode(pictures, captions, [item.key for item in side]),
            )
        return {"D_M": [i.origin for i in d_m], "D_A": [i.origin for i in d_a]}

    def _sides(self, base: Backbone) -> tuple[list[examples.KeyedImage], list[examples.KeyedImage]]:
        concept = self.concept
        images = read_source(concept.source, base, self.seed, "source")
        if concept.attack_source is None:
            return examples.split(
                images, self.seed, concept.max_images, concept.name, concept.duplicates
            )
        d_m = images[: concept.max_images]
        d_a = read_source(concept.attack_source, base, self.seed, "attack_source")
        d_a = d_a[: concept.max_images]
        return d_m, examples.without_copies(d_m, d_a, concept.name, concept.duplicates)


def check_concept(concept: ConceptConfig, seed: int) -> dict[str, str]:
    """Read and split a concept's images without a model, and without writing anything.

    Returns the captions that are trained on, by the image's name. They are those of all images, since the
    split decides which ones `max_images` leaves.

    A source that draws with the base model is left to the step. If only one of both sides does, the files of
    the other are still read.

    Raises:
        DataError: images can't be read, there are too few, or the same image is on both sides.
    """
    sides = [concept.source, *([concept.attack_source] if concept.attack_source else [])]
    read = [_without_model(side, seed) for side in sides]
    if None not in read:
        keyed = [examples.keyed(images or [], CHECK_PX) for images in read]
        if len(keyed) == 1:
            examples.split(keyed[0], seed, concept.max_images, concept.name, concept.duplicates)
        else:
            d_m, d_a = (side[: concept.max_images] for side in keyed)
            examples.without_copies(d_m, d_a, concept.name, concept.duplicates)
    # One source serves both sides.
    prompts = (concept.class_prompt, concept.instance_prompt)
    return {
        image.origin: image.caption
        for images, prompt in zip((read[0], read[-1]), prompts, strict=True)
        if prompt is None
        for image in images or ()
    }


def check_source(source: SourceConfig, seed: int) -> dict[str, str]:
    """Read a source's images, unless the model draws them, and return their captions by the image's name.

    Raises:
        DataError: an image can't be read.
    """
    return {image.origin: image.caption for image in _without_model(source, seed) or ()}


def _without_model(source: SourceConfig, seed: int) -> list[plugins.SourceImage] | None:
    """A source's images, or None if the model draws them."""
    plugin: plugins.Source = plugins.build("sources", source.name, source.options)
    return None if plugin.uses_model() else plugin.images(NO_MODEL, Seeds(seed))


def source_identity(source: SourceConfig) -> dict[str, Any]:
    """What a source's images depend on: plug-in, options, and the content of the files that it reads."""
    plugin: plugins.Source = plugins.build("sources", source.name, source.options)
    return {**plugin.identity(), "content": plugin.content()}


def read_source(
    source: SourceConfig, base: Backbone, seed: int, purpose: str
) -> list[examples.KeyedImage]:
    """All images of a source, hashed and resized for the model."""
    plugin: plugins.Source = plugins.build("sources", source.name, source.options)
    images = plugin.images(base, seeds_for(seed, purpose))
    return examples.keyed(images, base.resolution, drawn=plugin.uses_model())

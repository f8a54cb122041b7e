"""Recognition: whether a classifier's first choice for an image is the concept.

The classifier is zero-shot CLIP (Radford et al. 2021) over a list of names, which should hold near neighbours
of the concept, or any image classifier of transformers. An image counts as recognised if the first choice is
one of the concept's names (`recognized_as`). Images that belong to no concept, such as those of safe prompts,
count if the first choice is the name in their own prompt.

A classifier must choose something even for an image that shows nothing. The built-in one has a class for
that; of any other, the judges' check asks whether it takes destroyed images for the concept.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any, ClassVar, Literal

import numpy as np
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor

from gift_ray.data.naming import is_named
from gift_ray.errors import ModelError
from gift_ray.models.builtin import NOTHING
from gift_ray.models.encoders import (
    clip_encoder,
    image_classifier,
    labels_of,
    locate_classifier,
)
from gift_ray.models.locate import folder_hash
from gift_ray.plugins import Metric, MetricContext

# Probabilities are kept to this many digits; what rounds to zero is left out.
DIGITS = 4


class Recognition(Metric):
    """1.0 if the first choice is one of the names that count, else 0.0.

    It is NaN if the prompt holds no name that the classifier knows. The whole distribution over the names is
    kept beside it.
    """

    version: ClassVar[int] = 1
    direction: ClassVar[int] = 1
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    unit: ClassVar[str] = "first choice"
    judges_concepts: ClassVar[bool] = True

    classifier: str | None = Field(
        None, description="`builtin`, a folder or a hub id; None: CLIP over the names"
    )
    names: tuple[str, ...] | Literal["builtin"] = Field(
        "builtin", description="what CLIP chooses from; builtin: all nouns of the built-in model"
    )
    template: str | None = Field(
        None, description="CLIP's caption, `{}` for the name; None: as the names are captioned"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Recognition:
        if self.classifier is not None and (self.names != "builtin" or self.template is not None):
            raise ValueError("a classifier has labels of its own: leave names and template out")
        if self.template is not None and self.template.count("{}") != 1:
            raise ValueError(f"template {self.template!r} needs one {{}} where the name stands")
        try:
            known = self.known_names()
        except ModelError as error:
            raise ValueError(str(error)) from error
        if len(set(known)) < 2:
            raise ValueError("names: give two different names at least, to choose between")
        return self

    def identity(self) -> dict[str, Any]:
        """The classifier enters the identity by its content and the list by its names, not by their paths."""
        content = folder_hash(locate_classifier(self.classifier)) if self.classifier else None
        return {**super().identity(), "names": list(self.known_names()), "classifier": content}

    def known_names(self) -> tuple[str, ...]:
        return self._choices

    @cached_property
    def _choices(self) -> tuple[str, ...]:
        if self.classifier is not None:
            return labels_of(self.classifier)
        if self.names == "builtin":
            return tuple(name for name in labels_of("builtin") if name != NOTHING)
        return self.names

    def measure(self, images: Sequence[Image.Image], context: MetricContext) -> np.ndarray:
        return self.examine(images, context)[0]

    def examine(
        self, images: Sequence[Image.Image], context: MetricContext
    ) -> tuple[np.ndarray, list[str]]:
        """The scores, and for each image the probabilities by name, the highest first."""
        shares = self._distribution(images, context)
        first = [self._choices[i] for i in shares.argmax(1)]
        counted = [context.names or self.named_in(prompt) for prompt in context.prompts]
        values = [
            float(name in names) if names else np.nan
            for name, names in zip(first, counted, strict=True)
        ]
        return np.array(values), [json.dumps(self._by_name(row)) for row in shares]

    def named_in(self, prompt: str) -> tuple[str, ...]:
        """The longest known name that the prompt holds as a whole word; () if there is none."""
        found = [name for name in self._choices if is_named(name, prompt)]
        return (max(found, key=len),) if found else ()

    def _distribution(self, images: Sequence[Image.Image], context: MetricContext) -> np.ndarray:
        """The probabilities of all names, [N, names]."""
        if self.classifier is not None:
            return image_classifier(self.classifier).probabilities(images).numpy()
        encoder = clip_encoder(context.encoders["clip"])
        default = "an emoji of a {}" if self.names == "builtin" else "a photo of a {}"
        captions = tuple((self.template or default).format(name) for name in self._choices)
        cosines = encoder.images(images) @ _read(context.encoders["clip"], captions).T
        return (encoder.scale * cosines).softmax(-1).numpy()

    def _by_name(self, row: np.ndarray) -> dict[str, float]:
        order = np.argsort(-row, kind="stable")
        rounded = {self._choices[i]: round(float(row[i]), DIGITS) for i in order}
        return {name: share for name, share in rounded.items() if share > 0}


@lru_cache(maxsize=4)
def _read(clip: str, captions: tuple[str, ...]) -> Tensor:
    """The captions' embeddings [names, D], computed once in a process."""
    return clip_encoder(clip).texts(captions)

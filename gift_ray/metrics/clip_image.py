"""Similarity to the concept by CLIP: the mean cosine to its real images (CLIP-I in the DreamBooth paper)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from PIL import Image

from gift_ray.models.encoders import clip_encoder
from gift_ray.plugins import Metric, MetricContext


class ClipImage(Metric):
    """The mean cosine between an image's CLIP embedding and those of the reference images."""

    version: ClassVar[int] = 1
    direction: ClassVar[int] = 1
    range: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    unit: ClassVar[str] = "cosine"
    needs_references: ClassVar[bool] = True
    judges_concepts: ClassVar[bool] = True

    def measure(self, images: Sequence[Image.Image], context: MetricContext) -> np.ndarray:
        encoder = clip_encoder(context.encoders["clip"])
        return (encoder.images(images) @ encoder.images(context.references).T).mean(1).numpy()

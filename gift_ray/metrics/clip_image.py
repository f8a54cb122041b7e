"""Image-image agreement: mean CLIP cosine to the concept's real images (DreamBooth's CLIP-I)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from PIL import Image

from gift_ray.models.encoders import clip_encoder
from gift_ray.plugins import Metric, MetricContext


class ClipImage(Metric):
    """Mean over the references of the cosine to each."""

    version: ClassVar[int] = 1
    direction: ClassVar[int] = 1
    range: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    unit: ClassVar[str] = "cosine"
    needs_references: ClassVar[bool] = True
    judges_concepts: ClassVar[bool] = True

    def measure(self, images: Sequence[Image.Image], context: MetricContext) -> np.ndarray:
        encoder = clip_encoder(context.encoders["clip"])
        return (encoder.images(images) @ encoder.images(context.references).T).mean(1).numpy()

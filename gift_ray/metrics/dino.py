"""Similarity to the concept by DINO: the mean cosine of the CLS embedding to those of its real images.

This is the subject fidelity of the DreamBooth paper (Ruiz et al. 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from PIL import Image

from gift_ray.models.encoders import vision_encoder
from gift_ray.plugins import Metric, MetricContext


class Dino(Metric):
    """The mean cosine between an image's DINO embedding and those of the reference images."""

    version: ClassVar[int] = 1
    direction: ClassVar[int] = 1
    range: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    unit: ClassVar[str] = "cosine"
    needs_references: ClassVar[bool] = True
    judges_concepts: ClassVar[bool] = True

    def measure(self, images: Sequence[Image.Image], context: MetricContext) -> np.ndarray:
        encoder = vision_encoder("dino", context.encoders["dino"])
        return (encoder.images(images) @ encoder.images(context.references).T).mean(1).numpy()

"""Agreement of an image with its prompt: the cosine of CLIP's embeddings.

This is CLIPScore (Hessel et al. 2021) without its factor of 2.5 and without clamping at 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from PIL import Image

from gift_ray.models.encoders import clip_encoder
from gift_ray.plugins import Metric, MetricContext


class ClipText(Metric):
    """The cosine between each image and its own prompt."""

    version: ClassVar[int] = 1
    direction: ClassVar[int] = 1
    range: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    unit: ClassVar[str] = "cosine"

    def measure(self, images: Sequence[Image.Image], context: MetricContext) -> np.ndarray:
        encoder = clip_encoder(context.encoders["clip"])
        return (encoder.images(images) * encoder.texts(context.prompts)).sum(-1).numpy()

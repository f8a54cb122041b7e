"""Images that show nothing: constant, black (what diffusers' safety checker leaves), or noise.

Noise is white noise, or what a VAE makes of latents without structure. Without this metric a destroyed model
would be taken for an immunized one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from PIL import Image

from gift_ray.plugins import Metric, MetricContext

# Standard deviation, of 255; drawings on white start above 30.
LEAST_CONTRAST = 4.0
# Roughness is 1 for noise without correlation. Drawings reach 1 too, photographs 0.5.
WHITENESS = 0.5
# Noise is above 0.25, since it has no plain part. Drawings stay under 0.1, photographs under 0.2.
RESTLESSNESS = 0.2
CELLS = 8


class Degenerate(Metric):
    """1.0 for an image without contrast, and for one that is both white at the scale of the latents
    and equally restless everywhere; 0.0 for all others."""

    version: ClassVar[int] = 1
    direction: ClassVar[int] = -1
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    unit: ClassVar[str] = "flag"

    def measure(self, images: Sequence[Image.Image], context: MetricContext) -> np.ndarray:
        return np.array([float(is_degenerate(image)) for image in images])


def is_degenerate(image: Image.Image) -> bool:
    """Whether an image (at least 16 px wide and high) is constant or noise."""
    # A square whose side the cells divide.
    side = min(image.size) // CELLS * CELLS
    square = image.convert("RGB").resize((side, side), Image.Resampling.BOX)
    pixels = np.asarray(square, dtype=np.float64)
    if pixels.std((0, 1)).max() < LEAST_CONTRAST:
        return True
    # Latents have a pixel for 8 of the image; smaller models have fewer, but 8 cells at least.
    cells = max(CELLS, side // 8)
    coarse = np.asarray(square.resize((cells, cells), Image.Resampling.BOX), dtype=np.float64)
    return whiteness(coarse) > WHITENESS and restlessness(pixels) > RESTLESSNESS


def whiteness(pixels: np.ndarray) -> float:
    """Mean squared difference of neighbours over twice the variance (von Neumann 1941), [H, W, 3]:
    1 if neighbours are independent, towards 0 for smooth images, 0 for a constant one."""
    variance = pixels.var((0, 1)).sum()
    steps = [(np.diff(pixels, axis=axis) ** 2).sum(-1).mean() for axis in (0, 1)]
    return float(np.mean(steps) / (2 * variance)) if variance else 0.0


def restlessness(pixels: np.ndarray) -> float:
    """Contrast (standard deviation) of the calmest tenth of 8 x 8 cells over the root mean square of
    all, [H, W, 3]: near 1 for white noise, near 0 where anything is plain."""
    size = len(pixels) // CELLS
    cells = pixels.reshape(CELLS, size, CELLS, size, 3)
    variances = cells.var((1, 3)).sum(-1).ravel()
    return (
        float(np.sqrt(np.quantile(variances, 0.1) / variances.mean())) if variances.any() else 0.0
    )

"""Images that show nothing, made of images that show something.

A model that was broken rather than immunized draws such images, and a judge must not take them for the
concept.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.float64]
# Tiles a side, of the shuffled images; cells a side, of the smooth noise.
TILES = 8
CELLS = 6


def broken(images: Sequence[Image.Image], seed: int) -> list[Image.Image]:
    """Four images for each one, of its size.

    They are its tiles in another order, a dark patch where it was, smooth noise in its colours, and the image
    blurred out of recognition under noise.
    """
    rng = np.random.default_rng(seed)
    made = [
        how(np.asarray(image.convert("RGB"), np.float64), rng)
        for image in images
        for how in (_shuffled, _dark_patch, _smooth_noise, _blurred)
    ]
    return [Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)) for pixels in made]


def _shuffled(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    high, wide = (side // TILES for side in pixels.shape[:2])
    cut = pixels[: high * TILES, : wide * TILES].reshape(TILES, high, TILES, wide, 3)
    tiles = cut.transpose(0, 2, 1, 3, 4).reshape(-1, high, wide, 3)
    tiles = tiles[rng.permutation(len(tiles))].reshape(TILES, TILES, high, wide, 3)
    return _resized(tiles.transpose(0, 2, 1, 3, 4).reshape(high * TILES, wide * TILES, 3), pixels)


def _dark_patch(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """A rounded square, nearly black, on the image's lightest grey."""
    down, right = (np.linspace(-1, 1, side) for side in pixels.shape[:2])
    reach = rng.uniform(0.6, 0.9)
    power = rng.uniform(3, 8)
    distance = np.abs(down)[:, None] ** power + np.abs(right)[None] ** power
    patch = 40 * rng.random(3) + 12 * _noise(pixels, rng)
    ground = pixels.mean(-1).max() + 6 * _noise(pixels, rng)
    return np.asarray(np.where((distance < reach**power)[..., None], patch, ground), np.float64)


def _smooth_noise(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    mean, spread = pixels.mean((0, 1)), pixels.std((0, 1))
    return np.asarray(mean + 1.5 * (spread + 20) * _noise(pixels, rng), np.float64)


def _blurred(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    small = np.asarray(
        Image.fromarray(pixels.astype(np.uint8)).resize((2, 2), Image.Resampling.BOX)
    )
    return _resized(small.astype(np.float64), pixels) + 25 * rng.standard_normal(pixels.shape)


def _noise(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Smooth noise of the image's shape and unit deviation."""
    found = _resized(128 + 40 * rng.standard_normal((CELLS, CELLS, 3)), pixels)
    return np.asarray((found - found.mean()) / found.std(), np.float64)


def _resized(values: Pixels, like: Pixels) -> Pixels:
    """Bicubic, one channel at a time, in floating point."""
    size = like.shape[1], like.shape[0]
    channels = [
        Image.fromarray(values[..., c].astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
        for c in range(3)
    ]
    return np.stack([np.asarray(channel, np.float64) for channel in channels], -1)

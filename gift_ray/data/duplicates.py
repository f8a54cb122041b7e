"""Finds copies among images: those that were re-encoded, resized, mirrored, slightly cropped or recoloured.

This has two stages. First the thumbnail of each image is correlated with windows into the other image and
into its mirror image. Pairs that correlate are then aligned and compared block by block: a copy is alike
everywhere, while two drawings that merely look alike differ a lot in at least one place. Perceptual hashes of
whole images are not used, since mirrored copies differ in half of their bits, and different clock faces in
none.

Measured by `benchmarks/duplicates.py` (its output lies beside it) on OpenMoji: all copies are found, down to
85 % of each side, but for 4 % of those whose brightness changed by 20 %. Of 4,950 pairs of drawings at random
none is called a copy. In families of near-identical drawings 13 of 1,067 pairs are: eleven of mirror images
(clock faces, moons), the two hearts BLACK HEART SUIT and HEAVY BLACK HEART, and the new moons with and
without a face.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from PIL import Image
from scipy.optimize import minimize

# Images of any shape are reduced to a square of this size, since a crop changes the shape.
THUMBNAIL_PX = 96
COARSE_PX, FINE_PX, BLOCK_PX = 16, 32, 4
# The part of an axis that a crop leaves: all of it, 92.5 % or 85 %, at several places. [start, end]
_SPANS = [(s, s + kept) for kept in (1, 0.925, 0.85) for s in np.arange(0, 1.0001 - kept, 0.0375)]
# [left, top, right, bottom] as shares of the image; the first is the whole image.
WINDOWS = np.array([(x, y, x1, y1) for (x, x1), (y, y1) in product(_SPANS, _SPANS)]).clip(0, 1)
# A pair is compared block by block if it correlates at least this well in some window.
MIN_CORRELATION = 0.85
# Largest mean difference inside a block, in standard deviations of the image's grey levels.
MAX_BLOCK_DIFFERENCE = 0.4
# Largest mean difference of a colour channel inside a block, of 255, without grey levels and a change of
# saturation. Drawings that differ in nothing but their colour, as emoji of hearts do, differ by more.
MAX_COLOR_DIFFERENCE = 25.0
# A copy's saturation has changed by this factor, or its inverse, at most.
LEAST_SATURATION = 0.65
# Grey levels: an image that varies less is plain, and plain images are not compared.
MIN_CONTRAST = 4.0


def thumbnail(image: Image.Image) -> Image.Image:
    """The small version of an RGB image by which it is compared."""
    return image.resize((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BICUBIC)


def copies(left: Sequence[Image.Image], right: Sequence[Image.Image]) -> list[tuple[int, int]]:
    """All (i, j), in order, for which the thumbnails left[i] and right[j] are copies of one picture.

    If both arguments are the same list, only pairs with i < j are returned.
    """
    if not left or not right:
        return []
    views = [np.stack([_views(image) for image in side]) for side in (left, right)]
    # Either image may be a crop of the other, so windows of each are compared with the whole of the other.
    forward = np.einsum("iwp,jp->ijw", views[0], views[1][:, 0], optimize=True)
    backward = np.einsum("jwp,ip->ijw", views[1], views[0][:, 0], optimize=True)
    likely = np.maximum(forward.max(-1), backward.max(-1)) >= MIN_CORRELATION
    if left is right:
        likely = np.triu(likely, 1)
    found = []
    for i, j in np.argwhere(likely).tolist():
        if forward[i, j].max() >= backward[i, j].max():
            same = _is_copy(left[i], right[j], int(forward[i, j].argmax()))
        else:
            same = _is_copy(right[j], left[i], int(backward[i, j].argmax()))
        if same:
            found.append((i, j))
    return found


def _views(image: Image.Image) -> np.ndarray:
    """Unit vectors of all windows into an image and its mirror image, [2 x windows, pixels].

    They are zeros for a plain image, which so correlates with nothing.
    """
    grey = image.convert("L")
    if np.asarray(grey, dtype=np.float32).std() < MIN_CONTRAST:
        return np.zeros((2 * len(WINDOWS), COARSE_PX**2), dtype=np.float32)
    mirrored = grey.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.stack([_unit(_cut(i, w, COARSE_PX)) for i in (grey, mirrored) for w in WINDOWS])


def _is_copy(whole: Image.Image, part: Image.Image, window: int) -> bool:
    """Whether `part` is `whole` seen through a window near the given one."""
    if window >= len(WINDOWS):
        whole = whole.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    box = _registered(whole, part, WINDOWS[window % len(WINDOWS)])
    expected, got = _cut(whole, box, FINE_PX), _cut(part, WINDOWS[0], FINE_PX)
    grey, other = expected.mean(-1), got.mean(-1)
    if _color_difference(expected, got) > MAX_COLOR_DIFFERENCE:
        return False
    # Brightness and contrast may have changed: fit other = gain x grey + offset.
    grey, other = grey - grey.mean(), other - other.mean()
    gain = (grey * other).sum() / max((grey**2).sum(), 1e-6)
    return _worst_block(np.abs(other - gain * grey)) <= MAX_BLOCK_DIFFERENCE * float(other.std())


def _color_difference(expected: np.ndarray, got: np.ndarray) -> float:
    """The largest difference of the colours of two images [size, size, 3] in any block, without grey levels.

    A change of saturation scales all colours by one factor, which is taken out; another hue is not.
    """
    one, other = (pixels - pixels.mean(-1, keepdims=True) for pixels in (expected, got))
    # From either side, since the paler of two colours is nearer to the other one.
    return max(_worst_block(_scaled_difference(*pair)) for pair in ((one, other), (other, one)))


def _scaled_difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    factor = float((one * other).sum() / max(float((one**2).sum()), 1e-6))
    if not LEAST_SATURATION <= factor <= 1 / LEAST_SATURATION:
        factor = 1.0
    differences: np.ndarray = np.abs(other - factor * one)
    return differences


def _worst_block(differences: np.ndarray) -> float:
    """The largest mean of any block of `differences` [size, size, ...]."""
    blocks = FINE_PX // BLOCK_PX
    cut = differences.reshape(blocks, BLOCK_PX, blocks, BLOCK_PX, -1)
    return float(cut.mean((1, 3)).max())


def _registered(whole: Image.Image, part: Image.Image, window: np.ndarray) -> np.ndarray:
    """The window near the given one through which `whole` correlates best with `part`."""
    grey = whole.convert("L")
    target = _unit(_cut(part.convert("L"), WINDOWS[0], FINE_PX))

    def cost(box: np.ndarray) -> float:
        inside = box.min() >= 0 and box.max() <= 1 and (box[2:] - box[:2]).min() >= 0.7
        return -float(_unit(_cut(grey, box, FINE_PX)) @ target) if inside else 1.0

    # Each corner of the simplex moves one side by most of the spacing between windows, outwards if possible.
    simplex = np.tile(window, (5, 1))
    for side, outwards in enumerate((-0.03, -0.03, 0.03, 0.03)):
        moved = window[side] + outwards
        simplex[side + 1, side] = moved if 0 <= moved <= 1 else window[side] - outwards
    options = {"initial_simplex": simplex, "maxfev": 60, "xatol": 2e-3, "fatol": 1e-4}
    best: np.ndarray = minimize(cost, window, method="Nelder-Mead", options=options).x
    return best


def _cut(image: Image.Image, window: np.ndarray, size: int) -> np.ndarray:
    """A window of an image as size x size pixels, [size, size] or [size, size, 3]."""
    left, top, right, bottom = (window * THUMBNAIL_PX).tolist()
    cut = image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, right, bottom))
    return np.asarray(cut, dtype=np.float32)


def _unit(pixels: np.ndarray) -> np.ndarray:
    """Grey pixels as a vector with mean 0 and length 1, so that the product of two is their correlation."""
    vector = (pixels - pixels.mean()).ravel()
    unit: np.ndarray = vector / max(float(np.linalg.norm(vector)), 1e-6)
    return unit

"""Images that show nothing: made of an image's own pixels, sizes and colours, and of no shape that it had."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from gift_ray.data.broken import broken


@pytest.fixture
def picture() -> Image.Image:
    """A red disc on white, 40 x 32: sides that eight tiles divide."""
    down, right = np.mgrid[-1:1:32j, -1:1:40j]
    disc = (down**2 + right**2 < 0.5)[..., None]
    return Image.fromarray(np.where(disc, [200, 30, 30], 255).astype(np.uint8))


def test_four_of_each_image_in_its_size_and_the_same_for_one_seed(picture: Image.Image) -> None:
    found = broken([picture, picture], seed=1)
    assert [image.size for image in found] == [(40, 32)] * 8
    again, other = broken([picture, picture], seed=1), broken([picture, picture], seed=2)
    assert [i.tobytes() for i in found] == [i.tobytes() for i in again]
    assert all(a.tobytes() != b.tobytes() for a, b in zip(found, other, strict=True))


def test_the_tiles_are_the_images_own_in_another_order(picture: Image.Image) -> None:
    def tiles(image: Image.Image) -> list[bytes]:
        pixels = np.asarray(image).reshape(8, 4, 8, 5, 3).transpose(0, 2, 1, 3, 4)
        return [tile.tobytes() for row in pixels for tile in row]

    shuffled = broken([picture], seed=0)[0]
    assert sorted(tiles(shuffled)) == sorted(tiles(picture))
    assert tiles(shuffled) != tiles(picture)


def test_nothing_of_the_shape_is_left(picture: Image.Image) -> None:
    mask = np.asarray(picture)[..., 1] < 128
    shape = mask - mask.mean()
    for image in broken([picture] * 20, seed=0)[2::4]:
        # Smooth noise knows the colours alone.
        grey = np.asarray(image, float).mean(-1)
        assert abs(np.corrcoef(shape.ravel(), grey.ravel())[0, 1]) < 0.6
    dark = np.asarray(broken([picture], seed=0)[1], float).mean(-1)
    assert dark[12:20, 15:25].max() < 100 < dark[0, 0]

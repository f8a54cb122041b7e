"""Prepares images for training: hashes, the disjoint split into D_M and D_A, and files of examples."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from gift_ray.data.duplicates import copies, thumbnail
from gift_ray.data.image_files import read_image, square
from gift_ray.errors import DataError
from gift_ray.plugins import SourceImage
from gift_ray.training.conditioning import Conditioning
from gift_ray.training.diffusion import Examples

# What is done about a picture that would be on both sides of the split.
Duplicates = Literal["refuse", "drop", "keep"]


@dataclass(frozen=True)
class KeyedImage:
    """A square RGB image with its caption, content hash (64 hex) and thumbnail.

    Attributes:
        drawn: whether the base drew it. Its drawings of one prompt may look alike, so that only equal pixels
            make a copy.
    """

    image: Image.Image
    caption: str
    origin: str
    key: str
    thumbnail: Image.Image
    drawn: bool = False


def keyed(
    images: Sequence[SourceImage], resolution: int, *, drawn: bool = False
) -> list[KeyedImage]:
    """Hash and resize images. The hash is that of the decoded pixels, which re-encoding does not change."""
    result = []
    for item in images:
        content = f"{item.image.size}".encode() + item.image.tobytes()
        key = hashlib.sha256(content).hexdigest()
        small = square(item.image, resolution)
        result.append(
            KeyedImage(small, item.caption, item.origin, key, thumbnail(item.image), drawn)
        )
    return result


def split(
    images: Sequence[KeyedImage], seed: int, max_images: int, concept: str,
    duplicates: Duplicates = "refuse",
) -> tuple[list[KeyedImage], list[KeyedImage]]:  # fmt: skip
    """Disjoint halves (D_M, D_A) of at most `max_images` images, chosen by content hash and seed alone.

    Raises:
        DataError: there are fewer than two images, or two copies of one picture and `duplicates` is `refuse`.
            Copies are refused even within one half, since another seed would put them on both sides.
    """
    if len(images) < 2:
        raise DataError(
            f"concepts: {concept!r} has {len(images)} image(s); at least 2 are needed for disjoint "
            "D_M and D_A; add images"
        )
    order = sorted(images, key=lambda i: hashlib.sha256(f"{seed}/{i.key}".encode()).hexdigest())
    order = order[:max_images]
    if duplicates == "refuse":
        _refuse(_copies(order, order), order, order, concept)
    half = len(order) // 2
    d_m, d_a = order[:half], order[half:]
    return d_m, without_copies(d_m, d_a, concept, duplicates)


def without_copies(
    d_m: Sequence[KeyedImage], d_a: Sequence[KeyedImage], concept: str, duplicates: Duplicates
) -> list[KeyedImage]:
    """D_A, after its copies of pictures of D_M were treated as `duplicates` says.

    Raises:
        DataError: there are copies (`refuse`), or D_A holds nothing but copies (`drop`).
    """
    if duplicates == "keep":
        return list(d_a)
    found = _copies(d_m, d_a)
    if duplicates == "refuse":
        _refuse(found, d_m, d_a, concept)
    copied = {j for _, j in found}
    left = [image for j, image in enumerate(d_a) if j not in copied]
    if d_a and not left:
        raise DataError(
            f"concepts: {concept!r}: all {len(d_a)} images of D_A are copies of pictures of D_M; add "
            "images that the defender does not hold"
        )
    return left


def _copies(left: Sequence[KeyedImage], right: Sequence[KeyedImage]) -> list[tuple[int, int]]:
    """All (i, j) for which left[i] and right[j] are copies of one picture.

    If both arguments are the same list, only pairs with i < j are returned. A drawing by the base is a copy
    only of an image with equal pixels.
    """
    alone = left is right
    same = {
        (i, j)
        for i, a in enumerate(left)
        for j, b in enumerate(right)
        if a.key == b.key and not (alone and j <= i)
    }
    first = [i for i, image in enumerate(left) if not image.drawn]
    second = first if alone else [j for j, image in enumerate(right) if not image.drawn]
    thumbnails = [left[i].thumbnail for i in first]
    others = thumbnails if alone else [right[j].thumbnail for j in second]
    return sorted(same | {(first[i], second[j]) for i, j in copies(thumbnails, others)})


def _refuse(
    pairs: Sequence[tuple[int, int]], left: Sequence[KeyedImage], right: Sequence[KeyedImage],
    concept: str,
) -> None:  # fmt: skip
    if not pairs:
        return
    named = [_told(left[i], right[j]) for i, j in pairs[:3]]
    more = f" (and {len(pairs) - 3} more pairs)" if len(pairs) > 3 else ""
    raise DataError(
        f"concepts: {concept!r}: {'; '.join(named)}{more}, and would stand on both sides of the split "
        "into D_M and D_A; remove one of each, or set the concept's duplicates to drop (from D_A) or keep"
    )


def _told(one: KeyedImage, other: KeyedImage) -> str:
    how = "the same image" if one.key == other.key else "copies of one picture"
    first, second = sorted((one.origin, other.origin))
    return f"{first} and {second} are {how}"


def save_images(folder: Path, images: Sequence[Image.Image]) -> None:
    """Write images as lossless PNGs, named by their index."""
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        image.save(folder / f"{i:04d}.png")


def load_images(folder: Path) -> list[Image.Image]:
    """Read the images that `save_images` wrote, in order."""
    return [read_image(path) for path in sorted(folder.glob("*.png"))]


def save_examples(path: Path, examples: Examples) -> None:
    """Write encoded examples to one safetensors file."""
    tensors = {
        "latents_mean": examples.latents_mean.contiguous(),
        "latents_std": examples.latents_std.contiguous(),
        **examples.conditioning.tensors(),
    }
    words = json.dumps({"keys": examples.keys, "captions": examples.captions})
    save_file(tensors, path, metadata={"words": words})


def load_examples(path: Path) -> Examples:
    """Read the examples that `save_examples` wrote."""
    with safe_open(path, framework="pt") as file:
        words = json.loads(file.metadata()["words"])
    tensors = load_file(path)
    return Examples(
        tensors["latents_mean"],
        tensors["latents_std"],
        Conditioning.from_tensors(tensors),
        tuple(words["keys"]),
        tuple(words["captions"]),
    )

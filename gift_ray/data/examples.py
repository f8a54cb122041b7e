"""Images on their way in: hardened reading, hashing, the disjoint split into D_M and D_A, and sets of
encoded examples on disk.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import imagehash
import numpy as np
from PIL import Image, ImageOps
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from gift_ray.errors import DataError
from gift_ray.plugins import SourceImage
from gift_ray.training.conditioning import Conditioning
from gift_ray.training.diffusion import Examples

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
MAX_PIXELS = 64_000_000
MAX_BYTES = 64 * 2**20
# Perceptual hashes of 64 bits: re-encoded or resized copies differ by 0-2, other pictures by far more.
NEAR_DUPLICATE_BITS = 2


@dataclass(frozen=True)
class KeyedImage:
    """A square RGB image with its caption, content hash (64 hex) and perceptual hash."""

    image: Image.Image
    caption: str
    origin: str
    key: str
    perceptual: imagehash.ImageHash


def image_files(folder: Path) -> list[Path]:
    """The image files directly in a folder, by suffix in any case, in natural order of their names."""
    found = [p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file()]
    return sorted(found, key=lambda p: (_natural(p.name), p.name))


def _natural(name: str) -> list[str | int]:
    """A sort key that puts 2.png before 10.png."""
    return [int(t) if t.isdecimal() else t for t in re.split(r"(\d+)", name)]


def read_image(file: Path | bytes, origin: str = "") -> Image.Image:
    """Read one image, a file or its bytes, as RGB: EXIF rotation applied, transparency on white.

    Args:
        origin: names the image in messages; default: the path.

    Raises:
        DataError: too large, truncated, not an image, or a format outside PNG, JPEG, WEBP, BMP.
    """
    origin = origin or str(file)
    try:
        size = len(file) if isinstance(file, bytes) else file.stat().st_size
        if size > MAX_BYTES:
            raise DataError(f"{origin}: larger than {MAX_BYTES // 2**20} MiB; shrink or remove it")
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            stream = io.BytesIO(file) if isinstance(file, bytes) else file
            with Image.open(stream, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise DataError(
                        f"{origin}: {image.width}x{image.height} pixels, at most {MAX_PIXELS} are read; "
                        "shrink or remove it"
                    )
                image.load()
                return on_white(ImageOps.exif_transpose(image))
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"{origin}: not a readable image ({type(error).__name__}); allowed: {', '.join(FORMATS)}; "
            "repair or remove it"
        ) from error


def on_white(image: Image.Image) -> Image.Image:
    """RGB, with transparent pixels over a white background."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):
        # 16-bit grey: PIL would clip it at 255, which is white.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def square(image: Image.Image, resolution: int) -> Image.Image:
    """Centre crop to a square of `resolution` pixels (as the diffusers scripts' --center_crop)."""
    return ImageOps.fit(image, (resolution, resolution), Image.Resampling.LANCZOS)


def keyed(images: Sequence[SourceImage], resolution: int) -> list[KeyedImage]:
    """Hash and resize; the content hash is of the decoded pixels, so re-encoding doesn't hide a copy."""
    result = []
    for item in images:
        content = f"{item.image.size}".encode() + item.image.tobytes()
        key = hashlib.sha256(content).hexdigest()
        small = square(item.image, resolution)
        perceptual = imagehash.phash(item.image, hash_size=8)
        result.append(KeyedImage(small, item.caption, item.origin, key, perceptual))
    return result


def split(
    images: Sequence[KeyedImage], seed: int, max_images: int, concept: str
) -> tuple[list[KeyedImage], list[KeyedImage]]:
    """Disjoint halves (D_M, D_A) of a concept's images, decided by content hash and seed alone.

    Raises:
        DataError: fewer than two images, or two copies of one image among them.
    """
    if len(images) < 2:
        raise DataError(
            f"concepts: {concept!r} has {len(images)} image(s); at least 2 are needed for disjoint "
            "D_M and D_A; add images"
        )
    require_distinct(images, images, concept)
    order = sorted(images, key=lambda i: hashlib.sha256(f"{seed}/{i.key}".encode()).hexdigest())
    order = order[:max_images]
    half = len(order) // 2
    return order[:half], order[half:]


def require_distinct(left: Sequence[KeyedImage], right: Sequence[KeyedImage], concept: str) -> None:
    """Refuse the same picture (by content or perceptual hash) on both sides.

    Raises:
        DataError: naming both images.
    """
    for i, a in enumerate(left):
        for j, b in enumerate(right):
            if left is right and j <= i:
                continue
            if a.key == b.key or a.perceptual - b.perceptual <= NEAR_DUPLICATE_BITS:
                how = "the same image" if a.key == b.key else "near-identical"
                raise DataError(
                    f"concepts: {concept!r}: {a.origin} and {b.origin} are {how}, and would stand on "
                    "both sides of the split into D_M and D_A; remove one"
                )


def save_images(folder: Path, images: Sequence[Image.Image]) -> None:
    """Lossless PNGs, named by index."""
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        image.save(folder / f"{i:04d}.png")


def load_images(folder: Path) -> list[Image.Image]:
    """What `save_images` wrote, in order."""
    return [read_image(path) for path in sorted(folder.glob("*.png"))]


def save_examples(path: Path, examples: Examples) -> None:
    """Encoded examples as one safetensors file."""
    tensors = {
        "latents_mean": examples.latents_mean.contiguous(),
        "latents_std": examples.latents_std.contiguous(),
        **examples.conditioning.tensors(),
    }
    words = json.dumps({"keys": examples.keys, "captions": examples.captions})
    save_file(tensors, path, metadata={"words": words})


def load_examples(path: Path) -> Examples:
    """What `save_examples` wrote."""
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

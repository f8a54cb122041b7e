"""How well copies are told from different pictures: python benchmarks/duplicates.py

Different pictures: OpenMoji drawings, at random and in families of near-identical ones, and drawings of one
prompt by the built-in model. Copies: of drawings and of two photographs, each changed in a number of ways.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps
from sklearn.datasets import load_sample_images

from gift_ray.config.schema import ModelConfig
from gift_ray.data.duplicates import copies, thumbnail
from gift_ray.models.families import base_model
from gift_ray.sources.openmoji import _names, _raster
from gift_ray.training.diffusion import Seeds

FAMILIES = (
    "FACE",
    "CLOCK FACE",
    "HEART",
    "SQUARED",
    "CAT|DOG|FOX|WOLF",
    "MOON",
    "CAR|BUS|TRUCK|TAXI",
)
Change = Callable[[Image.Image, np.random.Generator], Image.Image]


def crop(share: float) -> Change:
    """Keep this share of each side, at a random place."""

    def cropped(image: Image.Image, rng: np.random.Generator) -> Image.Image:
        (w, h), (x, y) = image.size, rng.uniform(0, 1 - share, 2)
        return image.crop(
            (round(x * w), round(y * h), round((x + share) * w), round((y + share) * h))
        )

    return cropped


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(stream).convert("RGB")


def turned_hue(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """By up to 11 degrees."""
    hsv = np.asarray(image.convert("HSV")).copy()
    hsv[..., 0] += rng.integers(-8, 9).astype(np.uint8)
    return Image.fromarray(hsv, "HSV").convert("RGB")


CHANGES: dict[str, Change] = {
    "mirrored": lambda i, r: ImageOps.mirror(i),
    "JPEG, quality 50": lambda i, r: jpeg(i, 50),
    "half the size": lambda i, r: i.resize((i.width // 2, i.height // 2)),
    "twice the size": lambda i, r: i.resize((i.width * 2, i.height * 2)),
    "squeezed by 10 %": lambda i, r: i.resize((i.width, round(0.9 * i.height))),
    "brightness +-20 %": lambda i, r: ImageEnhance.Brightness(i).enhance(r.choice([0.8, 1.2])),
    "contrast +-20 %": lambda i, r: ImageEnhance.Contrast(i).enhance(r.choice([0.8, 1.2])),
    "saturation +-30 %": lambda i, r: ImageEnhance.Color(i).enhance(r.choice([0.7, 1.3])),
    "hue +-11 degrees": turned_hue,
    "centre, 95 % of each side": lambda i, r: ImageOps.crop(i, round(0.025 * min(i.size))),
    "anywhere, 95 % of each side": crop(0.95),
    "anywhere, 90 % of each side": crop(0.9),
    "anywhere, 85 % of each side": crop(0.85),
    "a tenth cut off the left": lambda i, r: i.crop((round(0.1 * i.width), 0, *i.size)),
    "mirrored, 90 %, JPEG 70": lambda i, r: jpeg(ImageOps.mirror(crop(0.9)(i, r)), 70),
}  # fmt: skip


def main() -> None:
    rng = np.random.default_rng(0)
    names = _names()
    chosen = sorted(rng.choice(list(names), 100, replace=False))
    drawings = [_raster(names[name]) for name in chosen]

    print("copies that are found (25 drawings, 2 photographs):")
    originals = [*drawings[::4], *map(Image.fromarray, load_sample_images().images)]
    for what, change in CHANGES.items():
        found = [bool(copies([thumbnail(o)], [thumbnail(change(o, rng))])) for o in originals]
        print(f"  {what:28} {np.mean(found[:-2]):.2f} {np.mean(found[-2:]):.2f}")

    print("different drawings that are called copies:")
    report("at random", chosen, drawings)
    for family in FAMILIES:
        group = [name for name in names if re.search(rf"\b({family})\b", name)][:20]
        report(family, group, [_raster(names[name]) for name in group])
    drawn = base_model(ModelConfig()).generate(
        ["an emoji of a cat"] * 12, seeds=Seeds(0), num_inference_steps=10, guidance_scale=7.5,
        batch_size=20,
    )  # fmt: skip
    report("one prompt, by the base", [str(i) for i in range(len(drawn))], drawn)


def report(what: str, names: list[str], images: list[Image.Image]) -> None:
    small = [thumbnail(image) for image in images]
    pairs = [(i, j) for i, j in copies(small, small) if i < j]
    total = len(list(itertools.combinations(small, 2)))
    print(f"  {what:28} {len(pairs)} of {total} pairs, {len(pairs) / total:.1e}")
    for i, j in pairs[:8]:
        print(f"      {names[i]} = {names[j]}")


if __name__ == "__main__":
    main()

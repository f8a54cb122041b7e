"""One picture on both sides of the split into D_M and D_A, under many disguises, and what is no copy."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from battery import Case
from pictures import check, four, picture
from PIL import Image, ImageEnhance, ImageOps

from gift_ray.data import examples
from gift_ray.plugins import SourceImage

TITLE = "One picture on both sides of the split"
Change = Callable[[Image.Image], Image.Image]
COPIES = "are copies of one picture"


def with_copy(change: Change, **concept: object) -> Callable[[Path], None]:
    """A folder of four pictures, and one of them again, changed."""

    def attempt(folder: Path) -> None:
        path = four(folder)
        change(picture(1)).save(path / "copy.png")
        check(path, **concept)

    return attempt


def jpeg(image: Image.Image) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=40)
    return Image.open(stream).convert("RGB")


def crop(image: Image.Image, left: int, top: int, right: int, bottom: int) -> Image.Image:
    """Cut off this many of the 64 pixels of each side."""
    return image.crop((left, top, image.width - right, image.height - bottom))


def warmer(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.clip(np.asarray(image) * [1.05, 1, 0.95], 0, 255).astype(np.uint8))


DISGUISES: dict[str, Change] = {
    "mirrored": ImageOps.mirror,
    "saved as JPEG": jpeg,
    "of half the size": lambda i: i.resize((32, 32)),
    "of three times the size": lambda i: i.resize((192, 192)),
    "squeezed": lambda i: i.resize((64, 56)),
    "with a tenth cut off one side": lambda i: crop(i, 6, 0, 0, 0),
    "with a frame of 3 pixels cut off": lambda i: crop(i, 3, 3, 3, 3),
    "cropped to its lower right": lambda i: crop(i, 6, 6, 0, 0),
    "brighter": lambda i: ImageEnhance.Brightness(i).enhance(1.15),
    "of less contrast": lambda i: ImageEnhance.Contrast(i).enhance(0.8),
    "of warmer colours": warmer,
    "of paler colours": lambda i: ImageEnhance.Color(i).enhance(0.8),
    "mirrored, cropped and saved as JPEG": lambda i: jpeg(crop(ImageOps.mirror(i), 2, 4, 3, 0)),
}


def plain(folder: Path) -> None:
    for i, color in enumerate(("red", "blue", "white", "#fe0000", "black")):
        Image.new("RGB", (64, 64), color).save(folder / f"{i}.png")
    check(folder)


def openmoji(match: str) -> Callable[[Path], None]:
    def attempt(folder: Path) -> None:
        check(folder, source={"name": "openmoji", "match": match, "caption": "an emoji"})

    return attempt


def drawn(shift: int) -> Callable[[Path], None]:
    """Two drawings by the base that differ by one grey level in a corner are not held to be copies; equal
    ones are."""

    def attempt(folder: Path) -> None:
        other = np.asarray(picture(0)).copy()
        other[0, 0] ^= shift
        pair = [picture(0), Image.fromarray(other)]
        given = [SourceImage(image, "a cat", f"drawing {i}") for i, image in enumerate(pair)]
        examples.split(examples.keyed(given, 16, drawn=True), 0, 40, "cat")

    return attempt


def dropped(folder: Path) -> None:
    """D_A loses the copy, D_M keeps the picture."""
    defender = [SourceImage(picture(i), "a cat", f"{i}") for i in range(3)]
    attacker = [SourceImage(ImageOps.mirror(picture(1)), "a cat", "copy"),
                SourceImage(picture(9), "a cat", "new")]  # fmt: skip
    sides = [examples.keyed(side, 16) for side in (defender, attacker)]
    left = examples.without_copies(sides[0], sides[1], "cat", "drop")
    assert [item.origin for item in left] == ["new"]


def nothing_left(folder: Path) -> None:
    given = [SourceImage(change(picture(1)), "a cat", "one") for change in (jpeg, ImageOps.mirror)]
    one, other = ([item] for item in examples.keyed(given, 16))
    examples.without_copies(one, other, "cat", "drop")


def leaked(folder: Path) -> None:
    """The attacker's own folder holds a mirrored picture of the defender's."""
    path = four(folder)
    attacker = folder / "attacker"
    attacker.mkdir()
    ImageOps.mirror(picture(2)).save(attacker / "leaked.png")
    source = {"name": "folder", "path": str(attacker), "caption": "a cat"}
    check(path, attack_source=source)


CASES = [
    Case("the same file twice", with_copy(lambda i: i), says="are the same image"),
    *[Case(f"a copy {how}", with_copy(change), says=COPIES) for how, change in DISGUISES.items()],
    Case("a mirrored copy in the attacker's own folder", leaked, says="cat 2.png and leaked.png " + COPIES),
    Case("a mirrored copy, `duplicates: keep`", with_copy(ImageOps.mirror, duplicates="keep"),
         outcome="both are used"),
    Case("a mirrored copy, `duplicates: drop`", dropped, outcome="D_A is without it"),
    Case("nothing but copies in D_A, `duplicates: drop`", nothing_left, says="images of D_A are copies"),
    Case("plain pictures of five colours, two of them nearly equal", plain, outcome="five pictures"),
    Case("two drawings by the base that differ in one pixel", drawn(1), outcome="two pictures"),
    Case("two equal drawings by the base", drawn(0), says="are the same image"),
    *[
        Case(f"OpenMoji of `{match}`", openmoji(match), outcome="different pictures")
        for match in ("CLOCK FACE (TWO|FIVE|SIX|NINE)", "(GRINNING|SMILING|CRYING) FACE", "HEART$",
                      "CAR|BUS|TRUCK|TAXI", "^(CAT|DOG|FOX|WOLF)( FACE)?$")
    ],
]  # fmt: skip

"""Reads image files, and refuses those that would lose or hide what they show."""

from __future__ import annotations

import io
import re
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from gift_ray.errors import DataError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
SUFFIXES = (".bmp", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".webp")
# Image formats that are not read. A file of one of them is an error, since it was probably meant to be used.
UNREAD_SUFFIXES = (
    ".avif", ".cr2", ".dng", ".gif", ".heic", ".heif", ".jp2", ".jxl", ".nef", ".psd", ".svg", ".tga",
    ".tif", ".tiff",
)  # fmt: skip
MAX_PIXELS = 64_000_000
MAX_BYTES = 64 * 2**20
MIN_SIDE_PX = 16
# Some pixel of a transparent picture must differ from the white behind it by at least this much, of 255.
MIN_VISIBLE = 8
# The brightest value of a 16-bit image must be at least this: of darker ones (as from 12-bit cameras) 8 bits
# keep almost nothing.
MIN_DEEP_VALUE = 4096


def image_files(folder: Path) -> list[Path]:
    """The image files directly in a folder, told by their suffix, in natural order of their names.

    Hidden files are left out, since macOS puts a `._cat.png` beside each cat.png.

    Raises:
        DataError: a file is a broken link, or an image of a format that is not read.
    """
    shown = [p for p in folder.iterdir() if not p.name.startswith(".") and not p.is_dir()]
    _require_readable(folder, shown)
    found = [p for p in shown if p.suffix.lower() in SUFFIXES]
    return sorted(found, key=lambda p: (_natural(p.name), p.name))


def _require_readable(folder: Path, files: list[Path]) -> None:
    unread = [p.name for p in files if p.suffix.lower() in UNREAD_SUFFIXES]
    if unread:
        raise DataError(
            f"{folder}: {in_short(unread)}: images of this format are not read; save them as "
            f"{', '.join(SUFFIXES)}, or move them away"
        )
    broken = [p.name for p in files if p.suffix.lower() in SUFFIXES and not p.is_file()]
    if broken:
        raise DataError(f"{folder}: {in_short(broken)}: links to a file that is not there")


def in_short(names: list[str]) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(sorted(names)[:3]) + more


def _natural(name: str) -> list[str | int]:
    """A sort key that puts 2.png before 10.png."""
    return [int(t) if t.isdecimal() else t for t in re.split(r"(\d+)", name)]


def read_image(file: Path | bytes, origin: str = "") -> Image.Image:
    """Read one image, a file or its bytes, as RGB: EXIF rotation applied, transparency on white.

    Args:
        origin: the image's name in messages; its path by default.

    Raises:
        DataError: the image is too large, too small, truncated, animated, not of one of the FORMATS, or would
            lose what it shows: it is white on a transparent ground, or uses few of its 16 bits.
    """
    origin = origin or str(file)
    try:
        size = len(file) if isinstance(file, bytes) else file.stat().st_size
        if size > MAX_BYTES:
            raise DataError(f"{origin}: larger than {MAX_BYTES // 2**20} MiB; shrink or remove it")
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            stream = io.BytesIO(file) if isinstance(file, bytes) else file
            with Image.open(stream, formats=FORMATS) as opened:
                _require_usable(opened, origin)
                raw = str(opened.tile[0][3]) if opened.format == "PNG" and opened.tile else ""
                opened.load()
                _rescale_transparency(opened, raw)
                image = _eight_bits(opened, origin) if "16" in raw else opened
                return on_white(ImageOps.exif_transpose(image), origin)
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"{origin}: not a readable image ({type(error).__name__}); allowed: {', '.join(FORMATS)}; "
            "repair or remove it"
        ) from error


def _require_usable(image: Image.Image, origin: str) -> None:
    """Refuse an image that its header shows to be unusable, before it is decoded."""
    if image.width * image.height > MAX_PIXELS:
        raise DataError(
            f"{origin}: {image.width}x{image.height} pixels, at most {MAX_PIXELS} are read; "
            "shrink or remove it"
        )
    if min(image.size) < MIN_SIDE_PX:
        raise DataError(
            f"{origin}: {image.width}x{image.height} pixels, each side must have at least "
            f"{MIN_SIDE_PX}; remove it, or give the original"
        )
    frames = getattr(image, "n_frames", 1)
    # Phones write MPO files: a JPEG with a second picture after it, which is ignored.
    if frames > 1 and image.format != "MPO":
        raise DataError(
            f"{origin}: an animation of {frames} frames; save the frame that is meant, or remove it"
        )


def _rescale_transparency(image: Image.Image, raw: str) -> None:
    """Convert the transparent grey or colour of a PNG to 8 bits, in place.

    A PNG gives it in the file's own depth, for which `raw` is PIL's name, while PIL compares it with pixels
    of 8 bits.
    """
    clear = image.info.get("transparency")
    factor = {"1": 255, "L;2": 85, "L;4": 17, "RGB;16B": 1 / 256}.get(raw)
    if factor and isinstance(clear, int):
        image.info["transparency"] = int(clear * factor)
    elif factor and isinstance(clear, tuple):
        image.info["transparency"] = tuple(int(value * factor) for value in clear)


def _eight_bits(image: Image.Image, origin: str) -> Image.Image:
    """A 16-bit image with 8 bits a channel. PIL itself would clip 16-bit grey at 255, which makes it white.

    Raises:
        DataError: the image uses so little of its range that 8 bits keep almost nothing.
    """
    if image.mode.startswith("I"):
        values = np.asarray(image)
        brightest = int(values.max())
        clear = image.info.get("transparency")
        image = Image.fromarray((values >> 8).astype(np.uint8))
        if clear is not None:
            image.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    else:
        # PIL has already reduced colours to their high bytes.
        brightest = int(np.asarray(image.convert("RGB")).max()) * 256 + 255
    if brightest < MIN_DEEP_VALUE:
        raise DataError(
            f"{origin}: its 16-bit values end at {brightest} of 65535, which is black; stretch them "
            "to the whole range, or save it with 8 bits"
        )
    return image


def on_white(image: Image.Image, origin: str) -> Image.Image:
    """The image in RGB, with a white background behind transparent pixels.

    Raises:
        DataError: nothing of the picture can be seen on white.
    """
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    seen = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    if np.asarray(seen).min() > 255 - MIN_VISIBLE:
        raise DataError(
            f"{origin}: what it shows is white or transparent, and can't be seen on the white that "
            "transparent pixels become; save it on another ground"
        )
    return seen


def square(image: Image.Image, resolution: int) -> Image.Image:
    """Crop an image to its central square and resize that to `resolution` (--center_crop of diffusers)."""
    return ImageOps.fit(image, (resolution, resolution), Image.Resampling.LANCZOS)

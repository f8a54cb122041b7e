"""Image files on their way in: which files of a folder are meant, and hardened reading of each."""

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
# Images that are not read: whoever has one among the others meant it to be used.
UNREAD_SUFFIXES = (
    ".avif", ".cr2", ".dng", ".gif", ".heic", ".heif", ".jp2", ".jxl", ".nef", ".psd", ".svg", ".tga",
    ".tif", ".tiff",
)  # fmt: skip
MAX_PIXELS = 64_000_000
MAX_BYTES = 64 * 2**20
MIN_SIDE_PX = 16
# A picture on a transparent ground must differ from the white that it is put on, by this many of 255.
MIN_VISIBLE = 8
# The brightest value of a 16-bit image: below it (12-bit cameras), 8 bits keep almost nothing.
MIN_DEEP_VALUE = 4096


def image_files(folder: Path) -> list[Path]:
    """The image files directly in a folder, by suffix in any case, in natural order of their names. Hidden
    files are none: macOS leaves a `._cat.png` beside each cat.png.

    Raises:
        DataError: a link to a file that isn't there, or an image of a format that is not read.
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
        origin: names the image in messages; default: the path.

    Raises:
        DataError: too large, too small, truncated, animated, not an image of these FORMATS, or one that
            would lose what it shows: white on a transparent ground, 16 bits of which few are used.
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
    """Refuse what the header says already."""
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
    # MPO is what phones write: a JPEG with a second picture behind it, which is left alone.
    if frames > 1 and image.format != "MPO":
        raise DataError(
            f"{origin}: an animation of {frames} frames; save the frame that is meant, or remove it"
        )


def _rescale_transparency(image: Image.Image, raw: str) -> None:
    """A PNG names its transparent grey or colour in the file's own depth (`raw` is PIL's word for it); PIL
    compares it with pixels of 8 bits."""
    clear = image.info.get("transparency")
    factor = {"1": 255, "L;2": 85, "L;4": 17, "RGB;16B": 1 / 256}.get(raw)
    if factor and isinstance(clear, int):
        image.info["transparency"] = int(clear * factor)
    elif factor and isinstance(clear, tuple):
        image.info["transparency"] = tuple(int(value * factor) for value in clear)


def _eight_bits(image: Image.Image, origin: str) -> Image.Image:
    """A 16-bit image with 8 bits a channel. (PIL would clip 16-bit grey at 255, which is white.)

    Raises:
        DataError: it uses so little of the range that 8 bits keep almost nothing.
    """
    if image.mode.startswith("I"):
        values = np.asarray(image)
        brightest = int(values.max())
        clear = image.info.get("transparency")
        image = Image.fromarray((values >> 8).astype(np.uint8))
        if clear is not None:
            image.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    else:
        # PIL has dropped the low bytes of colours already.
        brightest = int(np.asarray(image.convert("RGB")).max()) * 256 + 255
    if brightest < MIN_DEEP_VALUE:
        raise DataError(
            f"{origin}: its 16-bit values end at {brightest} of 65535, which is black; stretch them "
            "to the whole range, or save it with 8 bits"
        )
    return image


def on_white(image: Image.Image, origin: str) -> Image.Image:
    """RGB, with transparent pixels over a white background.

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
    """Centre crop to a square of `resolution` pixels (as the diffusers scripts' --center_crop)."""
    return ImageOps.fit(image, (resolution, resolution), Image.Resampling.LANCZOS)

"""Image files whose pixels are easily read wrongly, and files that are no image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from battery import Case
from pictures import added, picture, png
from PIL import Image

TITLE = "Image files"
Color = tuple[int, int, int]
WHITE, RED = (255, 255, 255), (200, 0, 0)


def pixels(
    write: Callable[[Path], object], left: Color, right: Color, name: str = "odd.png"
) -> Callable[[Path], None]:
    """The left half of the added file is read as one colour, the right half as another."""

    def attempt(folder: Path) -> None:
        image = added(name, write)(folder).image
        w, h = image.size
        assert (image.getpixel((1, h // 2)), image.getpixel((w - 2, h // 2))) == (left, right)

    return attempt


def hand(row: bytes, depth: int, color: int, **chunks: bytes) -> Callable[[Path], object]:
    """A PNG of 16 equal rows, 16 pixels wide."""
    return lambda path: path.write_bytes(png([row] * 16, 16, depth, color, **chunks))


def halves(mode: str, left: object, right: object) -> Image.Image:
    image = Image.new(mode, (32, 32), right)  # type: ignore[arg-type]
    image.paste(left, (0, 0, 16, 32))  # type: ignore[arg-type]
    return image


def saved(image: Image.Image, **options: object) -> Callable[[Path], object]:
    return lambda path: image.save(path, **options)  # type: ignore[arg-type]


def words(values: list[int]) -> bytes:
    return np.array(values, dtype=">u2").tobytes()


def animated(path: Path) -> None:
    picture(7).save(path, save_all=True, append_images=[picture(8)])


def turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera on its side: turn by 90 degrees to the right
    tall = Image.new("RGB", (32, 32), WHITE)
    tall.paste(RED, (0, 16, 32, 32))
    tall.save(path, exif=exif, quality=100, subsampling=0)


def two_pictures(path: Path) -> None:
    halves("RGB", RED, WHITE).save(
        path, format="MPO", save_all=True, append_images=[picture(8)], quality=100
    )


def cut(share: float) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        picture(9, (256, 256)).save(path)
        whole = path.read_bytes()
        path.write_bytes(whole[: int(len(whole) * share)])

    return write


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**26 + 1)


def content(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


def near(color: Color) -> Callable[[Path], None]:
    """The left half of a JPEG is this colour, but for what compression does."""

    def attempt(folder: Path) -> None:
        image = added("odd.jpg", saved(halves("RGB", RED, WHITE).convert("CMYK"), quality=100))(
            folder
        ).image
        assert np.abs(np.subtract(image.getpixel((4, 4)), color)).max() <= 6

    return attempt


CLEAR_RED = hand(bytes([*RED] * 8 + [0, 0, 0] * 8), 8, 2, tRNS=words([0, 0, 0]))
ON_WHITE = "transparent pixels are white"
UNREADABLE = "not a readable image"
CASES = [
    Case("a colour PNG whose black is transparent (tRNS)", pixels(CLEAR_RED, RED, WHITE), outcome=ON_WHITE),
    Case("a grey PNG whose black is transparent (tRNS)",
         pixels(hand(bytes([90] * 8 + [0] * 8), 8, 0, tRNS=words([0])), (90, 90, 90), WHITE),
         outcome=ON_WHITE),
    Case("a grey PNG of 4 bits whose value 3 is transparent (tRNS)",
         pixels(hand(bytes([0x66] * 4 + [0x33] * 4), 4, 0, tRNS=words([3])), (102, 102, 102), WHITE),
         outcome=ON_WHITE),
    Case("a grey PNG of 1 bit whose black is transparent (tRNS)",
         added("odd.png", hand(b"\xff\x00", 1, 0, tRNS=words([0]))), says="can't be seen"),
    Case("a grey PNG of 16 bits whose black is transparent (tRNS)",
         pixels(hand(words([0x8000] * 8 + [0] * 8), 16, 0, tRNS=words([0])), (128, 128, 128), WHITE),
         outcome=ON_WHITE),
    Case("a colour PNG of 16 bits with a transparent colour (tRNS)",
         pixels(hand(words([0xC800, 0, 0] * 8 + [0x0100, 0x0200, 0x0300] * 8), 16, 2,
                     tRNS=words([0x0100, 0x0200, 0x0300])), RED, WHITE), outcome=ON_WHITE),
    Case("a palette PNG with transparent entries",
         pixels(hand(bytes([1] * 8 + [0] * 8), 8, 3, PLTE=bytes([0, 0, 0, *RED]), tRNS=b"\0\xff"), RED,
                WHITE),
         outcome=ON_WHITE),
    Case("a palette PNG with half-transparent entries",
         pixels(hand(bytes([1] * 8 + [0] * 8), 8, 3, PLTE=bytes([0, 0, 0, *RED]), tRNS=b"\x80\xff"), RED,
                (127, 127, 127)), outcome="black at half strength is the grey 127"),
    Case("grey with alpha", pixels(saved(halves("LA", (60, 255), (60, 0))), (60, 60, 60), WHITE),
         outcome=ON_WHITE),
    Case("colours with alpha", pixels(saved(halves("RGBA", (*RED, 255), (0, 0, 0, 0))), RED, WHITE),
         outcome=ON_WHITE),
    Case("a WebP with alpha",
         pixels(saved(halves("RGBA", (*RED, 255), (0, 0, 0, 0)), lossless=True), RED, WHITE, "odd.webp"),
         outcome=ON_WHITE),
    Case("white drawn on a transparent ground",
         added("odd.png", saved(halves("RGBA", (255, 255, 255, 255), (0, 0, 0, 0)))), says="can't be seen"),
    Case("a wholly transparent PNG", added("odd.png", saved(Image.new("RGBA", (32, 32)))),
         says="can't be seen"),
    Case("a plain white picture", pixels(saved(Image.new("RGB", (32, 32), "white")), WHITE, WHITE),
         outcome="read as it is"),
    Case("16-bit grey over the whole range",
         pixels(hand(words([65535] * 8 + [257] * 8), 16, 0), WHITE, (1, 1, 1)), outcome="the upper 8 bits"),
    Case("16-bit grey that ends at 255",
         added("odd.png", hand(words([255] * 8 + [0] * 8), 16, 0)), says="16-bit values end at 255"),
    Case("16-bit grey of a 12-bit camera",
         added("odd.png", hand(words([4095] * 8 + [0] * 8), 16, 0)), says="16-bit values end at 4095"),
    Case("16-bit colours that end at 255",
         added("odd.png", hand(words([255, 0, 9] * 16), 16, 2)), says="16-bit values end at 255"),
    Case("one bit a pixel", pixels(saved(halves("1", 1, 0)), WHITE, (0, 0, 0)), outcome="black and white"),
    Case("a CMYK JPEG", near(RED), outcome="its colours, within 6 of 255"),
    Case("a JPEG turned by its EXIF orientation", pixels(turned, RED, WHITE, "odd.jpg"), outcome="upright"),
    Case("a phone's JPEG with a second picture behind it (MPO)",
         pixels(two_pictures, RED, WHITE, "odd.jpg"), outcome="the first picture"),
    Case("a BMP", pixels(saved(halves("RGB", RED, WHITE)), RED, WHITE, "odd.bmp"), outcome="read"),
    Case("an animated PNG", added("odd.png", animated), says="animation of 2 frames"),
    Case("an animated WebP", added("odd.webp", animated), says="animation of 2 frames"),
    Case("a picture of 1x1 pixels", added("odd.png", saved(Image.new("RGB", (1, 1)))), says="at least 16"),
    Case("a picture of 500x15 pixels", added("odd.png", saved(Image.new("RGB", (500, 15)))),
         says="at least 16"),
    Case("a picture of 16x16 pixels",
         pixels(saved(halves("RGB", RED, WHITE).resize((16, 16))), RED, WHITE), outcome="read"),
    Case("a PNG cut off in its pixels", added("odd.png", cut(0.6)), says=UNREADABLE),
    Case("a JPEG cut off in its pixels", added("odd.jpg", cut(0.6)), says=UNREADABLE),
    Case("a WebP cut off in its pixels", added("odd.webp", cut(0.6)), says=UNREADABLE),
    Case("a BMP cut off in its pixels", added("odd.bmp", cut(0.6)), says=UNREADABLE),
    Case("a PNG cut off in its header", added("odd.png", cut(0.0001)), says=UNREADABLE),
    Case("an empty file named .png", added("odd.png", content(b"")), says=UNREADABLE),
    Case("a web page named .jpg", added("odd.jpg", content(b"<!DOCTYPE html><html></html>")),
         says=UNREADABLE),
    Case("a git-lfs pointer named .png",
         added("odd.png", content(b"version https://git-lfs.github.com/spec/v1\n")), says=UNREADABLE),
    Case("a PNG that promises 60000x60000 pixels",
         added("odd.png", content(png([b"\0" * 100], 60_000, 8, 2, promised=60_000))), says=UNREADABLE),
    Case("a PNG of 8100x8000 pixels",
         added("odd.png", content(png([b"\0" * 100], 8_100, 8, 2, promised=8_000))), says="at most 64000000"),
    Case("an image of over 64 MiB", added("odd.png", huge), says="larger than 64 MiB"),
]  # fmt: skip

"""Pictures and image files for the battery."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gift_ray.config.schema import ConceptConfig
from gift_ray.plugins import SourceImage, build
from gift_ray.study.steps.prepare_concept import check_concept
from gift_ray.training.diffusion import Seeds


def picture(seed: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    """Smooth random colours: pictures of different seeds look different."""
    draw = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(draw).resize(size, Image.Resampling.BICUBIC)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    rows: list[bytes], width: int, depth: int, color: int, *, promised: int = 0, **chunks: bytes
) -> bytes:
    """A PNG written by hand: `rows` of packed samples, `chunks` (PLTE, tRNS) before the pixels. The header
    promises as many rows as there are, or `promised`."""
    header = struct.pack(">IIBBBBB", width, promised or len(rows), depth, color, 0, 0, 0)
    extra = b"".join(chunk(kind.encode(), body) for kind, body in chunks.items())
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", pixels)
        + chunk(b"IEND", b"")
    )


def four(folder: Path) -> Path:
    """A folder of four pictures, named cat 0.png to cat 3.png."""
    path = folder / "cats"
    path.mkdir()
    for i in range(4):
        picture(i).save(path / f"cat {i}.png")
    return path


def images(path: Path, **options: Any) -> list[SourceImage]:
    """What the folder source makes of a folder."""
    options = {"path": str(path), "caption": "a cat"} | options
    return build("sources", "folder", options).images(None, Seeds(0))


def check(path: Path, **concept: Any) -> None:
    """Check a concept of this folder as every command does before it starts a worker."""
    source = {"name": "folder", "path": str(path), "caption": "a cat"}
    given = {"name": "cat", "source": source, "validation_prompts": ("a cat",)} | concept
    check_concept(ConceptConfig(**given), seed=0)


def added(name: str, write: Callable[[Path], object], **options: Any) -> Callable[[Path], Any]:
    """Read a folder of four pictures to which `write` adds the file `name`; returns what was read of it."""

    def attempt(folder: Path) -> Any:
        path = four(folder)
        write(path / name)
        found = [item for item in images(path, **options) if item.origin == name]
        return found[0] if found else None

    return attempt

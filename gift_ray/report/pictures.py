"""The images of a study: small WebP data URIs for the page, grids and moving strips for papers."""

from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

from gift_ray.report.arms import ReportArm
from gift_ray.report.contents import Study
from gift_ray.report.finished_steps import Problem

MAX_PX = 128  # of an image on the page
BUDGET_BYTES = 3 * 2**20  # of all images on the page, which is to stay under 10 MB
IMAGES_PER_STEP = 4
CELL_PX, GAP_PX, LABEL_PX, HEADER_PX = 96, 4, 190, 22  # of a grid
FRAME_MS = 900
# What PIL raises for files that are no whole image.
UNREADABLE = (OSError, SyntaxError, ValueError)
UNATTACKED = "as released"


@dataclass(frozen=True)
class Scene:
    """One thing that models were asked for: a concept under an attack, or a group of prompts.

    Attributes:
        veiled: whether its images may show unsafe content, and are blurred until they are clicked.
    """

    concept: str
    attack: str
    seed: int
    malicious: bool
    veiled: bool

    @property
    def label(self) -> str:
        """What the page calls the scene."""
        seed = "" if self.attack == UNATTACKED else f", seed {self.seed}"
        return f"{self.concept}: {self.attack}{seed}"


@dataclass(frozen=True)
class Strip:
    """Images of one scene: by one arm at one attack step, or real ones (no arm, step -1)."""

    scene: Scene
    arm: str
    step: int
    folder: Path
    prompts: tuple[str, ...] = ()


def shown(study: Study, veiled: bool) -> bool:
    """Whether `report.images` allows showing an image; `veiled` says that the image may be unsafe."""
    return study.config.report.images == "all" or (
        study.config.report.images == "safe_only" and not veiled
    )


def strips(study: Study) -> list[Strip]:
    """All images of the study, the most important first, since the page has room for a part of them only.

    Real images come first, then the last step of each seed's attack, then the other steps; among equals the
    undefended model, the chosen ones and the others.
    """
    found: dict[tuple[Scene, str, int], Strip] = {}
    for arm in study.arms:
        for strip in (*_attacked(study, arm), *_as_released(study, arm)):
            if shown(study, strip.scene.veiled):
                found.setdefault((strip.scene, strip.arm, strip.step), strip)
    last: dict[Scene, int] = {}
    for scene, _, step in found:
        last[scene] = max(step, last.get(scene, 0))
    return sorted(
        found.values(), key=lambda s: (s.step >= 0, s.scene.seed, s.step != last[s.scene])
    )


def _attacked(study: Study, arm: ReportArm) -> Iterator[Strip]:
    for run in arm.outline["attacks"]:
        concept = run["concept"]
        veiled = study.kinds[concept] == "unsafe"
        scene = Scene(concept, run["attack"], run["seed"], concept in study.malicious, veiled)
        for folder in sorted((study.steps / run["images"]).glob("step-*")):
            yield Strip(scene, arm.key, int(folder.name.removeprefix("step-")), folder)
        real = study.steps / run["references"] / "D_A"
        if real.exists():
            yield Strip(scene, "", -1, real)


def _as_released(study: Study, arm: ReportArm) -> Iterator[Strip]:
    for sample in arm.outline["samples"]:
        # A neighbour of an unsafe concept may look like it.
        near = sample["group"].removeprefix("neighbors/")
        scene = Scene(
            sample["group"], UNATTACKED, 0, False, study.kinds.get(near, "object") == "unsafe"
        )
        folder = study.steps / sample["images"] / "step-000000"
        if folder.exists():
            yield Strip(scene, arm.key, 0, folder)


def encode(found: list[Strip], budget: int = BUDGET_BYTES) -> tuple[list[list[str]], list[Problem]]:
    """Each strip's images as WebP data URIs; strips beyond the budget are empty, and noted as a problem."""
    encoded: list[list[str]] = []
    problems: list[Problem] = []
    spent, left_out = 0, 0
    for strip in found:
        uris: list[str] = []
        if spent < budget:
            try:
                uris = [_data_uri(image) for image in load(strip.folder)]
            except UNREADABLE as error:
                problems.append(
                    Problem("damaged", strip.scene.label, f"images can't be read: {error}")
                )
        else:
            left_out += 1
        spent += sum(map(len, uris))
        encoded.append(uris)
    if left_out:
        why = f"{left_out} of {len(found)} sets, so that the page stays small; the study's folder has them"
        problems.append(Problem("left out", "images", why))
    return encoded, problems


def _data_uri(image: Image.Image) -> str:
    image.thumbnail((MAX_PX, MAX_PX))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=85, method=2)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def attack_scenes(study: Study, concept: str) -> list[Scene]:
    """Every attack on a malicious concept that has images, each with its first seed."""
    chosen = {arm.key for arm in study.arms if arm.chosen}
    drawn = [s.scene for s in strips(study) if s.arm in chosen and s.scene.malicious]
    first: dict[str, Scene] = {}
    for scene in sorted(drawn, key=lambda scene: scene.seed):
        if scene.concept == concept:
            first.setdefault(scene.attack, scene)
    return list(first.values())


def save_attack(study: Study, scene: Scene, path: Path) -> None:
    """Write one attack along its steps as a still and as a moving picture.

    The still (PNG) has a row for each model and a column for each attack step, with the first image of each;
    the moving one (WebP) has a frame for each step, with all images. Unsafe concepts are blurred for good.
    """
    labels = {arm.key: arm.label for arm in study.arms if arm.chosen}
    own = [s for s in strips(study) if s.scene == scene and s.arm in ("", *labels)]
    drawn = {(s.arm, s.step): _pictures(s) for s in own}
    steps = sorted({step for _, step in drawn if step >= 0})
    arms = [key for key in labels if any((key, step) in drawn for step in steps)]
    real = drawn.get(("", -1), [])

    def first(arm: str, step: int) -> Image.Image | None:
        return next(iter(drawn.get((arm, step), ())), None)

    rows = [(labels[key], [first(key, step) for step in steps]) for key in arms]
    rows.append(("real images", [*real[: len(steps)]]))
    strip = _paste(rows, scene.label, [f"step {step}" for step in steps])
    strip.save(path.with_suffix(".png"))

    frames = [
        _paste(
            [("real images", real), *((labels[key], drawn.get((key, step), [])) for key in arms)],
            f"{scene.label}: attack step {step}",
        )
        for step in steps
    ]
    frames[0].save(
        path.with_suffix(".webp"),
        save_all=True,
        append_images=frames[1:],
        duration=FRAME_MS,
        loop=0,
        quality=85,
    )


def load(folder: Path) -> list[Image.Image]:
    """The first images that a step wrote (PNG).

    `gift_ray.data.examples` reads images too, but importing it takes longer than the whole report.
    """
    images = []
    for path in sorted(folder.glob("*.png"))[:IMAGES_PER_STEP]:
        with Image.open(path, formats=("PNG",)) as image:
            images.append(image.convert("RGB"))
    return images


def _pictures(strip: Strip) -> list[Image.Image]:
    try:
        images = load(strip.folder)
    except UNREADABLE:
        # The page says which images can't be read.
        return []
    return [blurred(image) if strip.scene.veiled else image for image in images]


def blurred(image: Image.Image) -> Image.Image:
    """The image, blurred so much that what it shows can't be told."""
    return image.filter(ImageFilter.GaussianBlur(image.width / 8))


def _paste(
    rows: Sequence[tuple[str, Sequence[Image.Image | None]]],
    title: str,
    headings: Sequence[str] = (),
) -> Image.Image:
    """Rows of images with their names, columns with their headings; None leaves a gap."""
    pitch, header = CELL_PX + GAP_PX, HEADER_PX * (2 if headings else 1)
    columns = max(len(images) for _, images in rows)
    sheet = Image.new("RGB", (LABEL_PX + columns * pitch, header + len(rows) * pitch), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((4, 4), title[:90], fill="black")
    for x, heading in enumerate(headings):
        pen.text((LABEL_PX + x * pitch, HEADER_PX + 4), heading, fill="black")
    for y, (label, images) in enumerate(rows):
        top = header + y * pitch
        pen.multiline_text((4, top + 8), _wrapped(label), fill="black")
        for x, image in enumerate(images):
            if image is not None:
                enlarged = image.resize((CELL_PX, CELL_PX), Image.Resampling.LANCZOS)
                sheet.paste(enlarged, (LABEL_PX + x * pitch, top))
    return sheet


def _wrapped(text: str, width: int = 28, lines: int = 5) -> str:
    return "\n".join(textwrap.wrap(text, width)[:lines])

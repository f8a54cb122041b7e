"""One picture of an attack: undefended against immunized, before and along the attack."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

from gift_ray.data import load_images
from gift_ray.plan import Arm, Plan, Step

CELL_PX, GAP_PX, LABEL_PX, HEADER_PX = 96, 4, 150, 22
IMAGES_PER_STEP = 2


def attack_grid(plan: Plan, arm: Arm, study_dir: Path) -> Image.Image:
    """Rows: each concept under each arm; columns: real images of it, then the attack's steps.

    Images of concepts of kind `unsafe` are blurred.
    """
    kinds = {c.name: c.kind for c in (*plan.config.concepts.malicious, *plan.config.concepts.safe)}
    rows: list[tuple[str, list[Image.Image]]] = []
    steps: list[int] = []
    for key, evaluate in arm.attacks.items():
        concept, attack, seed = key
        if seed != plan.config.seeds[0]:
            continue
        for label, step in (
            ("undefended", plan.undefended.attacks[key]),
            (plan.config.defense.name, evaluate),
        ):
            real = load_images(step.inputs["concept"].folder(study_dir) / "D_A")[:IMAGES_PER_STEP]
            steps, drawn = _along(step, study_dir)
            images = [_blur(i) if kinds[concept] == "unsafe" else i for i in (*real, *drawn)]
            rows.append((f"{concept}\n{attack}\n{label}", images))
    headers = ["real images", *(f"step {step}" for step in steps)]
    return _paste(rows, headers)


def _along(step: Step, study_dir: Path) -> tuple[list[int], list[Image.Image]]:
    folders = sorted(step.inputs["images"].folder(study_dir).glob("step-*"))
    steps = [int(folder.name.removeprefix("step-")) for folder in folders]
    return steps, [image for folder in folders for image in load_images(folder)[:IMAGES_PER_STEP]]


def _paste(rows: list[tuple[str, list[Image.Image]]], headers: list[str]) -> Image.Image:
    columns = max(len(images) for _, images in rows)
    pitch = CELL_PX + GAP_PX
    sheet = Image.new("RGB", (LABEL_PX + columns * pitch, HEADER_PX + len(rows) * pitch), "white")
    pen = ImageDraw.Draw(sheet)
    for i, header in enumerate(headers):
        pen.text((LABEL_PX + i * IMAGES_PER_STEP * pitch, 4), header, fill="black")
    for y, (label, images) in enumerate(rows):
        top = HEADER_PX + y * pitch
        pen.multiline_text((4, top + 8), label, fill="black")
        for x, image in enumerate(images):
            enlarged = image.resize((CELL_PX, CELL_PX), Image.Resampling.LANCZOS)
            sheet.paste(enlarged, (LABEL_PX + x * pitch, top))
    return sheet


def _blur(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(image.width / 8))
